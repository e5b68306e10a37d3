"""Images with texts: made ones (digits, drawn scenes) and those of files. Data sets deliver :class:`Example`.

The names below are loaded when they are first used: the digits need scikit-learn, the others do not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mmar.data.example import Example

if TYPE_CHECKING:
    from mmar.data.digits import DigitDataset
    from mmar.data.folder import FolderDataset
    from mmar.data.scenes import SceneDataset
    from mmar.data.shards import ShardStream

_MODULES = {"DigitDataset": "digits", "FolderDataset": "folder", "SceneDataset": "scenes", "ShardStream": "shards"}

__all__ = ["DigitDataset", "Example", "FolderDataset", "SceneDataset", "ShardStream"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
