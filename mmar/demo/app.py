"""``mmar demo --model FOLDER``: a local web page that draws token by token and answers questions about images."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

from mmar.commands.loading import add_model, existing_pipeline, load_pipeline
from mmar.commands.running import CommandParser, run_command, whole_number
from mmar.demo.server import ANY, LOCAL, DemoServer, build

PORT, LAST_PORT = 7860, 65535
INTERFACES = {"no": "127.0.0.1", "network": "0.0.0.0"}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; return the exit status."""
    return run_command(_parser(), argv, _demo)


def _demo(options: argparse.Namespace) -> None:
    existing_pipeline(options.model)
    with listen(INTERFACES[options.share], options.port) as listener:  # before the weights are read
        application = build(load_pipeline(options), hosts=LOCAL if options.share == "no" else ANY)
        print(f"{address(listener)} (Ctrl-C ends it)", flush=True)
        try:
            DemoServer(application).run(sockets=[listener])
        except KeyboardInterrupt:
            print(file=sys.stderr)


def listen(interface: str, port: int) -> socket.socket:
    """A socket of this machine.

    Args:
        interface: 127.0.0.1: for this machine alone; 0.0.0.0: for the network.
        port: 0 takes a free one.

    Raises:
        ValueError: If the port cannot be had.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((interface, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ValueError(f"--port must be a free port, got {port} ({error.strerror}); 0 takes any that is free") from error
    return listener


def address(listener: socket.socket) -> str:
    """What to type into a browser."""
    interface, port = listener.getsockname()
    return f"http://{socket.gethostname() if interface == INTERFACES['network'] else interface}:{port}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="mmar demo", description="A web page that draws token by token and answers questions.")
    add_model(parser)
    add = parser.add_argument
    add("--port", type=_port, default=PORT, metavar="N", help="where the page is; 0: any free one (%(default)s)")
    add("--share", choices=INTERFACES, default="no", help="network: other machines can open the page too (%(default)s)")
    return parser


def _port(text: str) -> int:
    port = whole_number(0)(text)
    if port > LAST_PORT:
        raise argparse.ArgumentTypeError(f"must be at most {LAST_PORT}, got {port}")
    return port


if __name__ == "__main__":
    sys.exit(main())
