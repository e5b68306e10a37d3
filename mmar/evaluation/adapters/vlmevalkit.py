"""``python -m mmar.evaluation.adapters.vlmevalkit --model FOLDER -- ...``: VLMEvalKit's own run.py with MMAR among its models.

The kit is not forked: the model is put into its table of models, then its run.py runs with the arguments behind ``--``.
Importing the kit switches gradients off and seeds torch for the whole process, so this is one to be started by itself.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from mmar.commands.loading import DTYPES, add_model, existing_device, existing_pipeline
from mmar.commands.running import CommandParser, run_command, whole_number
from mmar.evaluation.adapters.table4 import dataset_names
from mmar.pipeline import MMARPipeline

LONGEST_ANSWER = 512


def split_message(message: Sequence[dict[str, str]]) -> tuple[list[str], str]:
    """Images and text of a message of the kit.

    The images stand before the text in MMAR's prompts, whatever their order in the message.

    Args:
        message: ``{"type": "image" or "text", "value": path or text}``.

    Returns:
        Paths, and texts joined by line ends.

    Raises:
        ValueError: If something else is in it, or no image.
    """
    others = [part["type"] for part in message if part["type"] not in ("image", "text")]
    images = [part["value"] for part in message if part["type"] == "image"]
    if others or not images:
        raise ValueError(f"message must hold text and at least one image, got {', '.join(others) or 'no image'}")
    return images, "\n".join(part["value"] for part in message if part["type"] == "text").strip()


def model_class() -> type:
    """The class of the model, made when the kit is there: its base class is the kit's.

    Raises:
        ImportError: If the kit is not installed.
    """
    base: Any = _kit("vlmeval.vlm.base").BaseModel

    class MMAR(base):
        """MMAR as VLMEvalKit calls it: greedily, one question at a time."""

        INSTALL_REQ = False
        INTERLEAVE = True  # all images are read, not only the first

        def __init__(
            self,
            model: str,
            device: str = "cpu",
            compute_dtype: str | None = None,
            max_new_tokens: int = LONGEST_ANSWER,
            **_: Any,  # the kit hands over options of other models
        ) -> None:
            super().__init__()
            dtype = None if compute_dtype is None else DTYPES[compute_dtype]
            self.pipeline = MMARPipeline.from_pretrained(
                existing_pipeline(Path(model)), compute_dtype=dtype, device=existing_device(device)
            )
            self.max_new_tokens = max_new_tokens

        def generate_inner(self, message: Sequence[dict[str, str]], dataset: str | None = None) -> str:
            """Answer a message."""
            images, question = split_message(message)
            return self.pipeline.answer(images, question, do_sample=False, max_new_tokens=self.max_new_tokens)

    return MMAR


def register(name: str, **options: Any) -> None:
    """Put MMAR into the kit's table of models.

    Args:
        name: As run.py's ``--model`` names it.
        **options: Of the model.

    Raises:
        ImportError: If the kit is not installed.
        ValueError: If the name is taken.
    """
    supported: dict[str, Any] = _kit("vlmeval.config").supported_VLM
    if name in supported:
        raise ValueError(f"--name must be new to VLMEvalKit, got {name!r}, one of its own models; choose another")
    supported[name] = partial(model_class(), **options)


def run_py() -> Path:
    """The kit's run.py, beside the package in its repository.

    Raises:
        ImportError: If the kit is not installed.
        FileNotFoundError: If it was installed without its repository.
    """
    path = Path(_kit("vlmeval").__file__).parent.parent / "run.py"
    if not path.is_file():
        raise FileNotFoundError(f"VLMEvalKit must be installed from its repository (pip install -e), got no {str(path)!r}")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, theirs = _parted(arguments)
    return run_command(_parser(), own, partial(_evaluate, theirs=theirs))


def _evaluate(options: argparse.Namespace, theirs: list[str]) -> None:
    clash = [word for word in theirs if word.partition("=")[0] in ("--model", "--config")]
    if clash:
        raise ValueError(f"run.py's {clash[0]} must not be given, it is {options.name} here; --name calls it otherwise")
    existing_pipeline(options.model)
    script = run_py()
    register(
        options.name,
        model=str(options.model),
        device=options.device,
        compute_dtype=options.compute_dtype,
        max_new_tokens=options.max_new_tokens,
    )
    data = [] if any(word.partition("=")[0] == "--data" for word in theirs) else ["--data", *dataset_names()]
    before = sys.argv
    sys.argv = [str(script), "--model", options.name, *data, *theirs]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before ``--`` and behind it."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _kit(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "vlmeval":
            raise
        raise ImportError(
            "VLMEvalKit must be installed, got no package vlmeval; clone open-compass/VLMEvalKit and pip install -e it"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m mmar.evaluation.adapters.vlmevalkit",
        description="Evaluate MMAR with VLMEvalKit. What follows -- goes to its run.py; without --data there, "
        "the data sets of the paper's table 4.",
    )
    add_model(parser)
    parser.add_argument("--name", default="MMAR", help="what the kit calls the model (%(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=whole_number(1), default=LONGEST_ANSWER, metavar="N", help="of an answer (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
