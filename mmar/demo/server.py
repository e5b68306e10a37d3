"""The web application: the page's files and its endpoints; and the server that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from socket import socket

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mmar.demo.endpoints import Endpoints, complain, fail
from mmar.demo.same_origin import SameOriginOnly
from mmar.pipeline import MMARPipeline

PAGE = Path(__file__).parent / "page"
LOCAL = ("127.0.0.1", "localhost")
ANY = ("*",)


def build(pipeline: MMARPipeline, *, hosts: Sequence[str] = LOCAL) -> Starlette:
    """The application for a pipeline.

    Args:
        pipeline: Draws and answers.
        hosts: Names under which it answers: another site's name that leads to this machine is no way in.
    """
    endpoints = Endpoints(pipeline)
    application = Starlette(
        routes=[
            Route("/options", endpoints.options),
            Route("/draw", endpoints.draw, methods=["POST"]),
            Route("/answer", endpoints.answer, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(SameOriginOnly)],
        exception_handlers={ValueError: complain, TypeError: complain, Exception: fail},
    )
    application.state.end = endpoints.end
    return application


class DemoServer(uvicorn.Server):
    """Quiet but for failures; a drawing that is under way ends with it.

    Args:
        application: From :func:`build`.
    """

    def __init__(self, application: Starlette) -> None:
        super().__init__(
            uvicorn.Config(application, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        )
        self.application = application

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """As uvicorn's, which waits for what is being sent."""
        self.application.state.end()
        await super().shutdown(sockets)
