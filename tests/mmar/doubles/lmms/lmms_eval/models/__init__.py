"""Models by name: those of entry points, loaded when this is imported."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

MANIFESTS: dict[str, ModelManifest] = {}
for point in entry_points().select(group="lmms_eval.models"):
    payload = point.load()
    payload = payload() if callable(payload) else payload
    assert isinstance(payload, ModelManifest)
    MANIFESTS[payload.model_id] = payload


def get_model(name: str, force_simple: bool = False) -> type[lmms]:
    """A chat model before a simple one, and its class as its kind says."""
    manifest = MANIFESTS[name]
    is_simple = manifest.chat_class_path is None or (force_simple and manifest.simple_class_path is not None)
    path = manifest.simple_class_path if is_simple else manifest.chat_class_path
    module, _, class_name = path.rpartition(".")
    cls = getattr(import_module(module), class_name)
    if not issubclass(cls, lmms) or cls.is_simple != is_simple:
        raise TypeError(f"{path} is not what its manifest says")
    return cls
