"""Independent jobs on worker processes, with one progress bar and results kept on disk so that a run can be resumed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.record import write_json

_TO_SAVE_S = 60
"""What a worker has to save its training after its parent is gone."""
Tick = Callable[[int], None]
"""Called by a job with the number of units it has done since the last call."""
Job = Callable[..., Mapping[str, Any]]
"""``job(config, key, tick) -> result``: a module-level function, so that a worker process can import it."""


def run_jobs(
    job: Job,
    config: Any,
    keys: list[str],
    *,
    units_per_job: int,
    folder: Path,
    workers: int,
    resume: bool,
    in_keys: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Run ``job`` for every key and return the results by key.

    Args:
        job: What to run.
        config: A frozen dataclass; part of what identifies a finished job.
        keys: One per job.
        units_per_job: Length of a job on the progress bar.
        folder: Where finished jobs are kept.
        workers: Processes of one thread each; 0 runs the jobs here, one after another, with all threads.
        resume: Use the finished jobs of an earlier run with the same config; otherwise start from nothing.
        in_keys: Fields of the config whose values the keys name one by one, such as seeds: a job does not depend on how many
            others there are, so further ones are run beside those that are finished.
    """
    identity = {name: value for name, value in asdict(config).items() if name not in in_keys}
    folder = folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    paths = {key: folder / f"{key}.json" for key in keys}
    todo = [key for key in keys if not paths[key].exists()]
    with tqdm(total=len(keys) * units_per_job, initial=(len(keys) - len(todo)) * units_per_job, unit="step") as bar:
        if workers == 0:
            for key in todo:
                bar.set_description(key)
                write_json(job(config, key, bar.update), paths[key])
        elif todo:
            _run_in_processes(job, config, {key: paths[key] for key in todo}, min(workers, len(todo)), bar)
    return {key: json.loads(path.read_text()) for key, path in paths.items()}


def _run_in_processes(job: Job, config: Any, paths: dict[str, Path], workers: int, bar: Any) -> None:
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(_follow_parent)
    with manager, ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        ticks = manager.Queue()
        running: dict[Future[None], str] = {pool.submit(_work, job, config, key, p, ticks): key for key, p in paths.items()}
        try:
            while running:
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                while True:
                    try:
                        bar.update(ticks.get_nowait())
                    except queue.Empty:
                        break
                for future in done:
                    running.pop(future)
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _work(job: Job, config: Any, key: str, path: Path, ticks: Any) -> None:
    write_json(job(config, key, ticks.put), path)


def _start_worker() -> None:
    torch.set_num_threads(1)
    _follow_parent()


def _follow_parent() -> None:
    """End with the parent, however it ends: a worker waits for work for ever, and its own queue keeps it from noticing."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """The signal lets a training save what it has."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_TO_SAVE_S)
        os._exit(1)
