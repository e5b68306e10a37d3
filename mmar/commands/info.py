"""``mmar info CHECKPOINT``: sizes, parameterization, image tokenizer, drawing settings, and its sampler's verdict in bf16."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffparam.report import Report
from mmar.checkpoint import stored_config
from mmar.commands.checkpoint_facts import checkpoint_facts, has_diffusion, sampler_report, stored_settings
from mmar.commands.loading import existing_model
from mmar.commands.running import CommandParser, run_command, say
from mmar.generation.settings import ImageGenerationConfig

_LABELS = {
    "language_model": "language model",
    "plora": "PLoRA",
    "embedding_vit": "EmbeddingViT",
    "head": "head",
    "projectors_and_tables": "projectors, tables, boi and eoi",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), argv, _info)


def _info(options: argparse.Namespace) -> None:
    folder = existing_model(options.checkpoint)
    facts, sampler = checkpoint_facts(folder), _sampler(folder)
    if options.json:
        verdict = sampler.to_dict() if isinstance(sampler, Report) else sampler and {"error": sampler}
        say(json.dumps({**facts, "sampler_in_bf16": verdict}, indent=1, allow_nan=False))
    else:
        say("\n".join([*_sizes(facts), "", *_meaning(facts)]))
        if sampler is not None:
            say(f"\nthe sampler, with the output rounded to bf16:\n\n{sampler}")


def _sampler(folder: Path) -> Report | str | None:
    """The report, or why there is none; None where nothing is sampled by diffusion."""
    config = stored_config(folder)
    if not has_diffusion(config):
        return None
    try:
        return sampler_report(config, stored_settings(folder) or ImageGenerationConfig.default_for(config))
    except ValueError as error:
        return f"the stored settings cannot be run: {error}"


def _sizes(facts: dict[str, Any]) -> list[str]:
    dtypes = ", ".join(f"{size:,} {dtype}" for dtype, size in facts["stored_as"].items())
    total = {"parameters": facts["parameters"], "trained": facts["trained"]}
    rows = {**{_LABELS[name]: part for name, part in facts["parts"].items()}, "all": total}
    width = max(map(len, rows))
    return [
        f"{facts['folder']}: {facts['objective']}, fingerprint {facts['fingerprint']}",
        f"stored: {dtypes}; {facts['bytes'] / 2**20:,.1f} MiB",
        "",
        f"{'':{width}}  {'parameters':>15}  {'trained':>15}  {'frozen':>15}",
        *(_size_row(label.ljust(width), part) for label, part in rows.items()),
    ]


def _size_row(label: str, part: dict[str, int]) -> str:
    frozen = part["parameters"] - part["trained"]
    return f"{label}  {part['parameters']:15,}  {part['trained']:15,}  {frozen:15,}"


def _meaning(facts: dict[str, Any]) -> list[str]:
    rows = {
        "images": facts["images"],
        "image tokenizer": facts["image_tokenizer"],
        "parameterization": facts["parameterization"],
        "schedule": facts["schedule"],
        "computes in": facts["compute_dtype"],
        "drawing": facts["drawing"],
    }
    indent = " " * 18
    return [textwrap.fill(f"{label:18}{_told(value)}", 118, subsequent_indent=indent) for label, value in rows.items()]


def _told(value: Any) -> str:
    """``key value, key value``, without the keys that have none."""
    if value is None:
        return "none"
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key} {_shortened(entry)}" for key, entry in value.items() if entry is not None)


def _shortened(entry: Any) -> str:
    if isinstance(entry, list | tuple) and len(entry) > 1:
        return f"{min(entry):.6g} to {max(entry):.6g} ({len(entry)} channels)"
    return f"{entry:.6g}" if isinstance(entry, float) else str(entry)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="mmar info", description="What a saved model is. Reads the headers of its weights, not the weights."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a pipeline, or of a model alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
