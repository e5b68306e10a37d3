"""Images with texts: made ones (digits, drawn scenes) and those of files. Data sets deliver :class:`Example`."""

from mmar.data.example import Example

__all__ = ["Example"]
