"""Where the data go on when the number of ranks changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmar.data.skipped import Skipped


def moved(loaders: Sequence[dict[str, Any]], *, rank: int, size: int) -> dict[str, Any] | None:
    """State of a rank's loader among ``size``, from the states of all ranks before.

    Of one long sequence of samples, n ranks that took t each have taken the first n t, whichever took which: then m ranks go on
    with sample n t, if m divides it. So it is as long as every rank reads in one process and has left out equally many samples.

    Args:
        loaders: ``StreamLoader.state_dict()`` of each rank before.
        rank: Of the new ones.
        size: How many there are now.

    Returns:
        The state; None where no number of samples per new rank makes the same beginning.
    """
    if any(len(loader["workers"]) != 1 or loader["num_workers"] != 1 for loader in loaders):
        return None
    streams = [loader["workers"][0][1] for loader in loaders]
    turn, place = streams[0]["cursor"]
    taken = turn * len(loaders)
    if any(stream["cursor"] != [turn, 0] for stream in streams) or place or taken % size:
        return None
    report = Skipped.merged(Skipped.from_state(loader["workers"][0][2]) for loader in loaders) if rank == 0 else Skipped()
    stream = copy.deepcopy(streams[0])
    stream["data"].update(rank=rank, world_size=size)
    stream.update(reader=[rank, size], cursor=[taken // size, 0], window=[0, 0], skipped=report.state_dict())
    return {"num_workers": 1, "next": 0, "workers": [[0, stream, report.state_dict()]]}
