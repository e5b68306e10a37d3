"""Files in another parameterization: stored outputs, or the last layer of a checkpoint. Reads and writes safetensors only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffparam._checks import check_finite, check_pair, check_phi
from diffparam._combine import combine
from diffparam.conversion import conversion_gains
from diffparam.errors import UnknownName
from diffparam.parameterization import AngularParam
from diffparam.report.config_file import shown
from diffparam.report.errors import BadInput
from diffparam.report.rescaling import constant_factor
from diffparam.rounding import FORMATS, round_to
from diffparam.schedule import Schedule
from diffparam.state import VP, StateSpace


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: Where.
        tensors: Names of the tensors that were changed.
        factor: What a layer was multiplied by; None for outputs, whose gains depend on the angle.
        exact: Whether no digit was rounded.
    """

    path: Path
    tensors: tuple[str, ...]
    factor: float | None
    exact: bool


def convert_tensors(
    path: str | Path,
    out: str | Path,
    *,
    source: AngularParam,
    target: AngularParam,
    phi: float | None = None,
    timestep: float | None = None,
    schedule: Schedule | None = None,
    state: StateSpace | None = None,
    overwrite: bool = False,
) -> Converted:
    """Convert the outputs ``u`` in a file, given the states ``x_t`` they were computed from.

    Args:
        path: A .safetensors file with tensors ``u`` and ``x_t`` of one shape ``(batch, *event)``, and with ``phi`` (float64) or
            ``timestep``, ``(batch,)`` or scalar, unless they are given here. Other tensors are kept.
        out: File to write: the same, with ``u`` converted, in its dtype.
        source: What ``u`` means.
        target: What it shall mean.
        phi: Angle of the states, radians.
        timestep: Or their timestep in ``schedule``.
        schedule: What timesteps mean.
        state: Convention of ``x_t``; by default the schedule's, or variance preserving.
        overwrite: Whether ``out`` may exist.

    Raises:
        BadInput: If a file cannot be read or written, or a tensor is missing or does not fit.
        SingularParameterization: Where the source says nothing new at an angle.
        NonFiniteError: If ``u`` or ``x_t`` is not finite.
    """
    out = _writable(path, out, overwrite)
    tensors, metadata = _read(path)
    for name in ("u", "x_t"):
        if name not in tensors:
            raise BadInput(f"the file must hold tensors 'u' and 'x_t', and {shown(path)} has no {name!r}: {_some(tensors)}")
    u, x_t = tensors["u"], tensors["x_t"]
    check_pair(u, x_t, ("u", "x_t"))
    check_finite(u, "u", "a conversion is a sum of u and x_t")
    check_finite(x_t, "x_t", "a conversion is a sum of u and x_t")
    angle = _angle(tensors, phi, timestep, schedule)
    convention = state or (schedule.state if schedule is not None else VP)
    gain_u, gain_x = conversion_gains(angle, source=source, target=target)
    wide = combine(gain_x / convention.scale(angle), x_t.double(), gain_u, u.double())
    converted = _rounded(wide, u.dtype, "the converted u")
    _write({**tensors, "u": converted}, metadata, out)
    return Converted(out, ("u",), None, False)


def convert_layer(
    path: str | Path,
    out: str | Path,
    *,
    layer: str,
    source: AngularParam,
    target: AngularParam,
    rows: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Converted:
    """Convert a checkpoint by its last layer, where the target is a constant multiple of the source.

    Args:
        path: A .safetensors checkpoint.
        out: File to write: the same, with ``layer.weight`` and ``layer.bias`` multiplied; other tensors bit for bit.
        layer: Name of the last linear or convolution layer, as in ``proj_out``.
        source: What it gives now.
        target: What it shall give.
        rows: Output channels ``(start, stop)`` to change, where the layer gives variances or other things too; all by default.
        overwrite: Whether ``out`` may exist.

    Raises:
        NotARescaling: If the target is no constant multiple of the source; nothing is written then.
        BadInput: If a file cannot be read or written, or the layer is missing.
        NonFiniteError: If the layer would not be finite.
    """
    factor = constant_factor(source, target)
    out = _writable(path, out, overwrite)
    tensors, metadata = _read(path)
    names = [name for name in (f"{layer}.weight", f"{layer}.bias") if name in tensors]
    if f"{layer}.weight" not in names:
        layers = sorted({name.removesuffix(".weight") for name in tensors if name.endswith(".weight")})
        raise BadInput(str(UnknownName("layer", layer, layers[-20:])) if layers else f"{shown(path)} has no tensor '*.weight'")
    exact = True
    for name in names:
        old = tensors[name]
        tensors[name] = _scaled(old, factor, rows, name)
        exact = exact and bool(torch.equal(tensors[name].double(), _product(old, factor, rows)))
    _write(tensors, metadata, out)
    return Converted(out, tuple(names), factor, exact)


def _product(old: Tensor, factor: float, rows: tuple[int, int] | None) -> Tensor:
    new = old.to(torch.float64, copy=True)
    start, stop = (0, len(old)) if rows is None else rows
    new[start:stop] *= factor
    return new


def _scaled(old: Tensor, factor: float, rows: tuple[int, int] | None, name: str) -> Tensor:
    """``old`` times the factor, rounded once to its own dtype."""
    if not old.is_floating_point() or old.ndim < 1:
        raise BadInput(
            f"{name} must be a floating-point tensor with output channels first, got {old.dtype} of {tuple(old.shape)}"
        )
    if rows is not None and not 0 <= rows[0] < rows[1] <= len(old):
        raise BadInput(f"rows must be START:STOP within 0:{len(old)} of {name}, got {rows[0]}:{rows[1]}")
    return _rounded(_product(old, factor, rows), old.dtype, name)


def _rounded(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """float64 values in another dtype; a cast from float64 to bf16 would round twice."""
    fmt = next((f for f in FORMATS.values() if f.dtype is dtype), None)
    if fmt is None and dtype is not torch.float64:
        raise BadInput(f"{name} must be of a dtype that can be rounded to, got {dtype}; convert the file to float32")
    rounded = values if fmt is None else round_to(values, fmt)
    check_finite(rounded, name, "the file holds such values, or its dtype is too small for the target: convert it to float32")
    return rounded.to(dtype)


def _angle(tensors: dict[str, Tensor], phi: float | None, timestep: float | None, schedule: Schedule | None) -> Any:
    """The one angle source among the options and the file."""
    given = {"phi": phi, "timestep": timestep}
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    held = [name for name in given if name in tensors]
    if found and held and not _same_angle(found, tensors, held):
        raise BadInput(
            f"{' and '.join(found)} must be left out for a file that holds its own {' and '.join(held)}, got another value; "
            "the file would keep angles that are not those of its conversion"
        )
    if not found:
        found = {name: tensors[name] for name in given if name in tensors}
    if len(found) != 1:
        both = " and ".join(found) or "none"
        raise BadInput(f"exactly one of phi and timestep must be given, as an option or in the file, got {both}")
    ((name, value),) = found.items()
    if name == "phi":
        return check_phi(value)
    if schedule is None:
        raise BadInput("schedule must be given with a timestep, got none; --schedule cosine, or --scheduler with a config")
    return schedule.phi_at(value)


def _same_angle(found: Mapping[str, Any], tensors: Mapping[str, Tensor], held: Sequence[str]) -> bool:
    """Whether options say what the file says, of each thing that either speaks of."""
    return set(found) == set(held) and all(bool((tensors[name] == found[name]).all()) for name in held)


def _writable(path: str | Path, out: str | Path, overwrite: bool) -> Path:
    """``out``, if writing there loses nothing."""
    out = Path(out)
    if out.suffix != ".safetensors":
        raise BadInput(f"out must end in .safetensors, got {shown(out)}")
    if os.path.realpath(out) == os.path.realpath(path):
        raise BadInput(f"out must not be the input itself, got {shown(out)}; the old file is the way back")
    if os.path.lexists(out) and not overwrite:
        raise BadInput(f"out must not exist, and {shown(out)} does; pass overwrite")
    return out


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    safetensors, _ = _safetensors()
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"the input must be a .safetensors file, and {shown(path)} is no regular file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(
            f"the input must be a .safetensors file, and {shown(path)} cannot be read as one: {error}; "
            "pickles (.bin, .pt, .ckpt) run code when they are read, and are not read"
        ) from None


def _write(tensors: dict[str, Tensor], metadata: dict[str, str] | None, out: Path) -> None:
    """Whole or not at all."""
    _, torch_io = _safetensors()
    try:
        handle, partial = tempfile.mkstemp(dir=out.parent, suffix=".partial")
        os.close(handle)
        try:
            torch_io.save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata=metadata)
            os.replace(partial, out)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        raise BadInput(f"out must be a file that can be written, but {shown(out)} is not: {error.strerror or error}") from None


def _safetensors() -> tuple[Any, Any]:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError(
            "reading .safetensors needs safetensors, which is not installed: pip install 'diffparam[mmar]'"
        ) from None
    return safetensors, safetensors.torch


def _some(tensors: dict[str, Tensor]) -> str:
    names = sorted(tensors)
    return "it has " + (", ".join(map(repr, names[:8])) or "none") + (" and more" if len(names) > 8 else "")
