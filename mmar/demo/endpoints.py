"""What the page asks of the server: its options, drawings, answers."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

from anyio import to_thread
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mmar.demo.drawing import Step, draw_steps
from mmar.demo.options import page_options
from mmar.demo.orders import DrawingOrder, drawing_order, question_text
from mmar.demo.uploads import uploaded_image
from mmar.pipeline import MMARPipeline

logger = logging.getLogger(__name__)


class Endpoints:
    """One model, which serves one request at a time; the others wait.

    Args:
        pipeline: Draws and answers.
    """

    def __init__(self, pipeline: MMARPipeline) -> None:
        self.pipeline = pipeline
        self._turn = asyncio.Lock()
        self._stop = threading.Event()

    async def options(self, request: Request) -> Response:
        """See :func:`page_options`."""
        return JSONResponse(page_options(self.pipeline))

    async def draw(self, request: Request) -> Response:
        """Fields in JSON to lines of JSON: the seed, a line per step as soon as it is done, and an error if there is one.

        A client that goes away stops the drawing.
        """
        order = drawing_order(await _json(request), self.pipeline.settings, self.pipeline.model.config)
        return StreamingResponse(self._lines(order), media_type="application/x-ndjson")

    async def answer(self, request: Request) -> Response:
        """The image is the body, the question a parameter of the address; the answer is JSON."""
        image = await run_in_threadpool(uploaded_image, await request.body())
        question = question_text(request.query_params.get("question", ""))
        async with self._turn:
            answer = await run_in_threadpool(self.pipeline.answer, image, question)
        return JSONResponse({"answer": answer})

    def end(self) -> None:
        """Stop the drawing that is under way, for a server that is to end."""
        self._stop.set()

    async def _lines(self, order: DrawingOrder) -> AsyncIterator[bytes]:
        yield _line({"seed": order.seed})
        async with self._turn:
            self._stop = stop = threading.Event()
            steps = draw_steps(self.pipeline, order, stop)
            try:
                while (step := await to_thread.run_sync(next, steps, None, abandon_on_cancel=True)) is not None:
                    yield _line(_shown(step))
            except Exception as error:  # the status is sent already
                logger.exception("drawing failed")
                yield _line({"error": told(error)})
            finally:
                stop.set()


async def complain(request: Request, error: Exception) -> Response:
    """A complaint about what was sent."""
    return JSONResponse({"error": told(error)}, status_code=400)


async def fail(request: Request, error: Exception) -> Response:
    """A failure that nobody foresaw; the server shows its trace on stderr."""
    return JSONResponse({"error": told(error)}, status_code=500)


def told(error: Exception) -> str:
    """The message of an error; with its type where it is not a complaint."""
    return str(error) if isinstance(error, ValueError | TypeError) else f"this failed: {type(error).__name__}: {error}"


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise ValueError(f"fields must be JSON, got {error}; reload the page") from error


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _shown(step: Step) -> dict[str, Any]:
    return {"done": step.done, "total": step.total, "picture": data_url(step.picture)}


def data_url(picture: Image.Image) -> str:
    """The picture as a PNG in an address of its own."""
    file = BytesIO()
    picture.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
