"""Settings shared by all tests: reproducible Hypothesis, deterministic torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("repository", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("repository")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(20241010)
