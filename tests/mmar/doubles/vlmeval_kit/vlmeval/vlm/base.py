"""The base class of models: what infer_data calls, and what it hands on."""

from __future__ import annotations

import mimetypes
from typing import Any


class BaseModel:
    INTERLEAVE = False
    allowed_types = ("text", "image", "video")

    def __init__(self) -> None:
        self.dump_image_func = None

    def use_custom_prompt(self, dataset: str) -> bool:
        return False

    def set_dump_image(self, dump_image_func: Any) -> None:
        self.dump_image_func = dump_image_func

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """A text, a list of texts and paths, or a list of parts; always a list of parts for generate_inner."""
        parts = [self._part(one) for one in (message if isinstance(message, list) else [message])]
        assert all(part["type"] in self.allowed_types for part in parts), f"Invalid input type: {message}"
        return self.generate_inner(parts, dataset)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        raise NotImplementedError

    @staticmethod
    def _part(one: Any) -> dict[str, str]:
        if isinstance(one, dict):
            assert {"type", "value"} <= set(one)
            return one
        mime = mimetypes.guess_type(one)[0]
        return {"type": "text" if mime is None else mime.split("/")[0], "value": one}
