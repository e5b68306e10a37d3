"""What was measured of arms, kept with the records, so that a comparison can be split over sessions and machines.

``python -m experiments.paper_study.kept`` copies what the runs here measured in full to ``experiments/records/arms``. An
experiment with ``--resume`` takes from there what it has not measured itself. Each file says on which device that was. Only
arms whose frozen language model is committed too are kept: otherwise those of two machines would differ in that as well.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from experiments.command import RUNS
from experiments.paper_study.measure import Amount
from experiments.record import RECORDS

KEPT = RECORDS / "arms"
FULL = (("objects", Amount(400, 200)), ("float32", Amount(400, 200)))
"""What is worth keeping: measured as much as in the ``cpu`` preset, with a language model that is committed."""


def file_name(what: str, amount: Amount) -> str:
    """Of a measurement, in the folder of its arm."""
    return "-".join([what, *(str(number) for number in asdict(amount).values())]) + ".json"


def keep(runs: Path, kept: Path = KEPT) -> list[Path]:
    """Copy full measurements that are not kept yet; one that is kept stays as it is.

    Args:
        runs: Folder of arms, see :class:`experiments.paper_study.runs.Runs`.
        kept: Where to.
    """
    names = {file_name(*one) for one in FULL}
    return _copy_missing([path for path in sorted(runs.glob("*/*.json")) if path.name in names], kept)


def take_up(runs: Path, kept: Path = KEPT) -> list[Path]:
    """Copy kept measurements to the folders of their arms, where these have none of their own."""
    return _copy_missing(sorted(kept.glob("*/*.json")), runs)


def _copy_missing(paths: list[Path], folder: Path) -> list[Path]:
    copied = []
    for path in paths:
        target = folder / path.parent.name / path.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            copied.append(target)
    return copied


def main() -> None:
    for path in keep(RUNS / "paper_study"):
        print(path.relative_to(RECORDS))


if __name__ == "__main__":
    main()
