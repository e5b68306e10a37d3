"""Reading the weights in a checkpoint of LDM's code, without running what else is in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("state_dict", "model")
"""Where Lightning (LDM) and MAR keep the weights."""


class _Inert:
    """Stands in for objects of libraries that need not be there, such as Lightning's callbacks; it does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_ldm_file(path: str | Path) -> dict[str, Tensor]:
    """The weights by name.

    Pickles are read with ``weights_only=True``: LDM's files also hold objects of the training library, which would need that
    library and could run code; they become inert placeholders.

    Args:
        path: .safetensors, or a torch pickle (.ckpt, .pt, .pth).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds no weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be an existing file, got {str(path)!r}; unpack kl-f16.zip for its model.ckpt")
    try:
        content = load_file(path) if Path(path).suffix == ".safetensors" else _load_pickle(Path(path))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"path must be a checkpoint of LDM's code, but {str(path)!r} cannot be read: {_reason(error)}; "
            "fetch the file again, or keep only its weights (state_dict)"
        ) from error
    return _weights(content, path)


def _load_pickle(path: Path) -> Any:
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    placeholders = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in foreign]
    with torch.serialization.safe_globals(placeholders):  # type: ignore[arg-type]
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """The line that says what happened. torch's advice around it, to run the code in the file, is not passed on."""
    lines = (line.strip() for line in str(error).rpartition("WeightsUnpickler error:")[2].splitlines())
    return next((line for line in lines if line and "weights_only" not in line), type(error).__name__)


def _weights(content: Any, path: str | Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"path must hold weights by name, at the top or under {' or '.join(_WRAPPERS)}; {str(path)!r} does not: "
            "save autoencoder.state_dict()"
        )
    return {str(name): tensor for name, tensor in content.items()}
