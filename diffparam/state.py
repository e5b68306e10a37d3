"""Which multiple of the variance-preserving state a sampler carries. Angles do not change, only the scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from diffparam._checks import check_phi
from diffparam.angle import HALF_PI, Angle, is_traced, namespace
from diffparam.errors import UnknownName

_KINDS = ("vp", "ve", "flow")


@dataclass(frozen=True)
class StateSpace:
    """A convention for the state: ``scale(phi) * (cos(phi) x + sin(phi) eps)``.

    ``vp``: scale 1. ``ve``: scale 1/cos(phi), the sigma-space ``x + sigma eps`` of Karras with sigma = tan(phi).
    ``flow``: scale 1/(cos(phi) + sin(phi)), rectified flow's ``(1 - t) x + t eps``.
    """

    kind: Literal["vp", "ve", "flow"]

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UnknownName("kind", self.kind, _KINDS)

    def scale(self, phi: Angle) -> Any:
        """float64 factor from the VP state to this one, in the kind of ``phi``.

        Raises:
            ValueError: For ``ve`` at phi = pi/2, where sigma is infinite.
        """
        phi = check_phi(phi)
        if self.kind == "vp":
            return 1.0
        xp = namespace(phi)
        if self.kind == "flow":
            return 1.0 / (xp.cos(phi) + xp.sin(phi))
        at_end = phi == HALF_PI
        if not is_traced(at_end) and bool(at_end if isinstance(at_end, bool) else at_end.any()):
            raise ValueError("phi must be below pi/2 in sigma-space, got pi/2 where sigma is infinite; use StateSpace('vp')")
        return 1.0 / xp.cos(phi)


VP = StateSpace("vp")
VE = StateSpace("ve")
FLOW_STATE = StateSpace("flow")
