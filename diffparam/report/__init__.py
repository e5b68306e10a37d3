"""Advice a person can use: what a sampler's low precision costs, from where it is safe, and what would help."""

from diffparam.report.convert import convert_layer, convert_tensors
from diffparam.report.document import Report, report
from diffparam.report.errors import BadInput, NotARescaling
from diffparam.report.plot import plot_report
from diffparam.report.rescaling import constant_factor

__all__ = [
    "BadInput",
    "NotARescaling",
    "Report",
    "constant_factor",
    "convert_layer",
    "convert_tensors",
    "plot_report",
    "report",
]
