"""Which data sets of VLMEvalKit give the columns of the paper's table 4: the file beside this one."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from mmar.evaluation.averages import HIGHEST

FILE = Path(__file__).with_name("table4.yaml")


def table4_datasets(path: str | Path = FILE) -> dict[str, str]:
    """The data set of each column.

    Args:
        path: YAML, ``column: data set``.

    Raises:
        ValueError: If the columns are not those of :data:`mmar.evaluation.averages.HIGHEST`.
    """
    found = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(found, dict) or list(found) != list(HIGHEST):
        raise ValueError(f"{str(path)!r} must name the {len(HIGHEST)} columns of table 4 in their order, got {found!r}")
    return {str(column): str(dataset) for column, dataset in found.items()}


def dataset_names(path: str | Path = FILE) -> list[str]:
    """Each data set once, in the order of the columns."""
    return list(dict.fromkeys(table4_datasets(path).values()))
