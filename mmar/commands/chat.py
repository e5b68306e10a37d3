"""``mmar chat IMAGE QUESTION ... --model FOLDER``: answers about a picture; without a question, a conversation on stdin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mmar.commands.loading import add_model, existing_pipeline, load_pipeline
from mmar.commands.running import CommandParser, run_command, say, whole_number
from mmar.pipeline import MMARPipeline
from mmar.processing import MMARImageProcessor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), argv, _chat)


def _chat(options: argparse.Namespace) -> None:
    existing_pipeline(options.model)
    image = MMARImageProcessor().fetch_images(options.image)  # before the model is read
    pipe = load_pipeline(options)
    if options.questions:
        say("\n".join(pipe.answer(image, list(options.questions), max_new_tokens=options.max_new_tokens)))
    else:
        _converse(pipe, image, options.max_new_tokens)


def _converse(pipe: MMARPipeline, image: Any, max_new_tokens: int) -> None:
    for question in _asked():
        say(pipe.answer(image, question, max_new_tokens=max_new_tokens))


def _asked() -> Iterator[str]:
    """Lines of stdin up to its end; the prompt is on stderr, so that stdout holds answers alone."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        if line.strip():
            yield line.strip()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="mmar chat", description="Ask about a picture. Each question stands alone: the model does not see those before it."
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="none: read them from stdin, until its end")
    add_model(parser)
    parser.add_argument(
        "--max-new-tokens", type=whole_number(1), default=64, metavar="N", help="length of an answer at most (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
