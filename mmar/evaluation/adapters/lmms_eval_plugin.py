"""What lmms-eval finds under its entry point ``lmms_eval.models``: the name ``mmar`` and where its classes are."""

from __future__ import annotations

from typing import Any

_CLASSES = "mmar.evaluation.adapters.lmms_eval"


def manifest() -> Any:
    """Called by lmms-eval when it collects its models."""
    from lmms_eval.models.registry_v2 import ModelManifest  # it calls us, so it is there

    return ModelManifest(model_id="mmar", simple_class_path=f"{_CLASSES}.MMARSimple", chat_class_path=f"{_CLASSES}.MMARChat")
