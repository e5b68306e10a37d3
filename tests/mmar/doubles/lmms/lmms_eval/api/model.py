"""The base class of models."""

from __future__ import annotations

import abc
from typing import Any


class lmms(abc.ABC):  # noqa: N801 - its name
    is_simple: bool = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]: ...

    @abc.abstractmethod
    def generate_until(self, requests: list) -> list[str]: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: list) -> list[str]: ...

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> lmms:
        args = dict(pair.split("=") for pair in arg_string.split(",") if pair)
        return cls(**args, **{k: v for k, v in (additional_config or {}).items() if v is not None})

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size
