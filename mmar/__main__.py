"""``python -m mmar``: the same as the command ``mmar``."""

from __future__ import annotations

import sys

from mmar.cli import main

if __name__ == "__main__":
    sys.exit(main())
