"""A picture while it is drawn: the callback of :meth:`MMARPipeline.draw` as a generator of pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from PIL import Image
from torch import Tensor

from mmar.demo.orders import DrawingOrder
from mmar.demo.unfinished import unfinished_picture
from mmar.picture_codec import PictureCodec
from mmar.pipeline import MMARPipeline

PAUSE = 0.1
"""Seconds after which a reader that waits looks whether it is to stop."""


@dataclass(frozen=True)
class Step:
    """One autoregressive step of a drawing; for whole-image models, a diffusion step.

    Attributes:
        done: Steps so far, counted from 1.
        total: Steps of the whole drawing.
        picture: So far, with a pattern where tokens are unknown.
    """

    done: int
    total: int
    picture: Image.Image


@dataclass(frozen=True)
class _Report:
    done: int
    total: int
    drawn: Tensor | Image.Image


class _Stopped(Exception):
    """Ends a drawing that nobody waits for."""


def draw_steps(pipeline: MMARPipeline, order: DrawingOrder, stop: threading.Event | None = None) -> Generator[Step, None, None]:
    """Draw in a thread of its own, and give the picture after each step; decoding goes on beside the next step.

    Args:
        pipeline: Draws and decodes.
        order: What.
        stop: Ends the steps once it is set, without a word, and the thread after the step that it is in; closing the generator
            sets it.

    Yields:
        Each step; the last picture is what :meth:`MMARPipeline.draw` returns.

    Raises:
        Exception: What drawing or decoding raises.
    """
    stop = threading.Event() if stop is None else stop
    reports: SimpleQueue[_Report | Exception] = SimpleQueue()
    threading.Thread(target=_draw, args=(pipeline, order, reports.put, stop)).start()  # no daemon: torch aborts when cut off
    try:
        yield from _steps(pipeline, lambda: _next(reports, stop))
    finally:
        stop.set()


def _draw(
    pipeline: MMARPipeline, order: DrawingOrder, put: Callable[[_Report | Exception], None], stop: threading.Event
) -> None:
    """Put a report after each step but the last, then one with the finished picture; or what went wrong."""
    total = 1

    def on_step(done: int, of: int, tokens: Tensor) -> None:
        nonlocal total
        total = of
        if stop.is_set():
            raise _Stopped
        if done < of:
            put(_Report(done, of, tokens[0]))

    try:
        pictures = pipeline.draw(order.caption, settings=order.settings, seed=order.seed, on_step=on_step)
        put(_Report(total, total, pictures[0]))
    except Exception as error:  # raised again where the steps are read
        put(error)


def _steps(pipeline: MMARPipeline, get: Callable[[], _Report | Exception | None]) -> Generator[Step, None, None]:
    codec = PictureCodec(pipeline.processor.image_processor, pipeline.image_tokenizer, pipeline.model.config.has_codes)
    while (report := get()) is not None:
        if isinstance(report, Exception):
            raise report
        picture = unfinished_picture(codec, report.drawn) if isinstance(report.drawn, Tensor) else report.drawn
        yield Step(report.done, report.total, picture)
        if report.done == report.total:
            return


def _next(reports: SimpleQueue[_Report | Exception], stop: threading.Event) -> _Report | Exception | None:
    """The next report, or None after a stop."""
    while not stop.is_set():
        with suppress(Empty):
            return reports.get(timeout=PAUSE)
    return None
