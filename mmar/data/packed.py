"""Many small records in little memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np


class PackedRecords:
    """A list of JSON values in one string of bytes.

    A list of Python objects takes several times the memory, and every worker process its own copy: reading an object writes
    its reference count, and that unshares the page. These bytes stay shared.

    Attributes:
        fingerprint: Differs for other records or another order of them.

    Args:
        records: JSON values.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        data, ends = bytearray(), [0]
        for record in records:
            data += json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")  # as json.loads decodes
            ends.append(len(data))
        self._data, self._ends = bytes(data), np.array(ends, dtype=np.int64)
        sha = hashlib.sha256(self._ends.tobytes())
        sha.update(self._data)
        self.fingerprint = sha.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in [0, {len(self)}), got {index}")
        return json.loads(self._data[self._ends[index] : self._ends[index + 1]])
