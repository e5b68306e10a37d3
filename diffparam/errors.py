"""The library's named exceptions and the near-match helper for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SingularParameterization(ValueError):
    r"""``sin(psi - phi) = 0``: the output and the state carry the same combination of x and noise.

    Nothing but that one combination can be recovered from the pair, whatever the precision.

    Attributes:
        param: Name of the parameterization.
        phi: The angle at which it is singular, in radians.
        timestep: The timestep at which it is singular, or ``None`` where only the angle is known.
    """

    def __init__(self, param: str, phi: float, *, timestep: float | None = None) -> None:
        self.param, self.phi, self.timestep = param, phi, timestep
        at = f"phi = {phi!r} rad" if timestep is None else f"timestep {timestep:g} (phi = {phi!r} rad)"
        super().__init__(
            f"sin(psi - phi) must not vanish, but parameterization {param!r} is singular at {at}: "
            f"there its output and x_t are the same direction. {_remedy(param, phi)}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_singular, (self.param, self.phi, self.timestep))


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity entered or would leave the library."""


class UnknownName(ValueError):
    """A name is not one of those accepted; the message offers the nearest."""

    def __init__(self, what: str, name: object, known: Iterable[str], remedy: str = "") -> None:
        self.what, self.name, self.known, self.remedy = what, name, tuple(known), remedy
        by_lower = {known.lower(): known for known in self.known}
        near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
        hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
        tail = f" {remedy}" if remedy else ""
        super().__init__(f"{what} must be one of {', '.join(self.known)}; got {name!r}.{hint}{tail}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.what, self.name, self.known, self.remedy))


def _rebuild_singular(param: str, phi: float, timestep: float | None) -> SingularParameterization:
    return SingularParameterization(param, phi, timestep=timestep)


def _remedy(param: str, phi: float) -> str:
    if phi > 1.5:
        return "Use V, FLOW or X0 there, or start at a smaller timestep."
    if phi == 0:
        return "Use V, FLOW or EPSILON there, or stop at a larger timestep."
    return "Use V, whose sin(psi - phi) is 1 at every angle."
