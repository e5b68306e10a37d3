"""The data of a run: its sources as one stream, and the words that a small tokenizer is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

from torch.utils.data import Dataset

from mmar.data.digits import DigitDataset
from mmar.data.example import Example
from mmar.data.folder import FolderDataset
from mmar.data.images import ImageLimits
from mmar.data.latent_dataset import LatentDataset
from mmar.data.order import StreamSettings
from mmar.data.scenes import RepeatedWords, SceneDataset
from mmar.data.shards import ShardStream
from mmar.data.skipped import Skipped
from mmar.data.stream import ExampleStream, Stream
from mmar.processing.chat import ChatFormat
from mmar.tokenizers import ImageTokenizer
from mmar.training.config import DataSource
from mmar.training.tasks import as_text

KINDS = ("digits", "scenes", "repeats", "folder", "llava", "shards", "latents")


class Concatenated(Dataset[Any]):
    """Data sets one after the other; one of weight 2 twice.

    Args:
        parts: Data sets by index.
        weights: Whole numbers.
    """

    def __init__(self, parts: Sequence[Any], weights: Sequence[float]) -> None:
        if any(weight < 1 or not float(weight).is_integer() for weight in weights):
            raise ValueError(f"weight of a data source must be a whole number of at least 1, got {list(weights)}")
        self.parts = [part for part, weight in zip(parts, weights, strict=True) for _ in range(int(weight))]
        self.fingerprint = " ".join(str(getattr(part, "fingerprint", len(part))) for part in self.parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Any:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(f"index must be below {len(self)}, got {index}")


def make_stream(
    sources: Sequence[DataSource], settings: StreamSettings, tokenizer: ImageTokenizer | None = None
) -> Stream[Any]:
    """One stream of all sources.

    Args:
        sources: Shards stand alone; all others can be mixed, in proportion to size times weight.
        settings: Seed, rank, strictness.
        tokenizer: Whose latents a cache must hold.

    Raises:
        ValueError: If a kind is unknown, a path is missing, or shards are mixed with others.
    """
    if any(source.kind == "shards" for source in sources):
        if len(sources) > 1:
            raise ValueError("data must list shards alone, got other sources beside them; write those as shards too")
        return ShardStream(_path(sources[0]), settings, **_options(sources[0], ShardStream, "shards", "settings"))
    parts = [make_dataset(source, tokenizer, strict=settings.strict) for source in sources]
    return ExampleStream(Concatenated(parts, [source.weight for source in sources]), settings)


def make_dataset(source: DataSource, tokenizer: ImageTokenizer | None = None, *, strict: bool = False) -> Any:
    """A data set by index.

    Raises:
        ValueError: If the kind is unknown or has no index, or a path or tokenizer is missing.
    """
    if source.kind == "digits":
        return DigitDataset(source.split, **_options(source, DigitDataset, "split"))  # type: ignore[arg-type]
    if source.kind == "scenes":
        return SceneDataset(source.split, **_options(source, SceneDataset, "split"))  # type: ignore[arg-type]
    if source.kind == "repeats":
        return RepeatedWords(**_options(source, RepeatedWords))
    if source.kind == "folder":
        from_folder = FolderDataset.from_folder
        return from_folder(_path(source), strict=strict, **_options(source, from_folder, "folder", "strict"))
    if source.kind == "llava":
        from_llava = FolderDataset.from_llava
        return from_llava(_path(source), strict=strict, **_options(source, from_llava, "file", "strict"))
    if source.kind == "latents":
        if tokenizer is None:
            raise ValueError("data of kind latents must come with an image tokenizer, got none")
        return LatentDataset(_path(source), tokenizer, **_options(source, LatentDataset, "folder", "tokenizer"))
    raise ValueError(f"data.kind must be one of {', '.join(KINDS)}, got {source.kind!r}")


def _options(source: DataSource, made: Callable[..., Any], *given: str) -> dict[str, Any]:
    """Options that ``made`` takes beyond what is ``given`` by the rest of the source; limits as their class."""
    options = dict(source.options)
    _check_known(f"data.options of {source.kind}", options, made, given)
    if not isinstance(options.get("limits", {}), dict):
        raise ValueError(
            f"data.options.limits must be a mapping, got {options['limits']!r}; as limits: {{max_pixels: 1000000}}"
        )
    if "limits" in options:
        _check_known("data.options.limits", options["limits"], ImageLimits)
        options["limits"] = ImageLimits(**options["limits"])
    return options


def _check_known(name: str, options: Mapping[str, Any], made: Callable[..., Any], given: Sequence[str] = ()) -> None:
    known = [parameter for parameter in signature(made).parameters if parameter not in given]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} must be among {', '.join(known)}, got {', '.join(unknown)}")


def left_out_of(stream: Any) -> list[Skipped]:
    """What the data sets of a stream left out before anything was read of them; only those that left something out."""
    dataset = getattr(stream, "dataset", None)
    found = (getattr(part, "skipped", None) for part in getattr(dataset, "parts", [dataset]))
    return [skipped for skipped in found if isinstance(skipped, Skipped) and skipped.total]


def texts_of(stream: Stream[Any], chat: ChatFormat, limit: int = 20_000) -> Iterator[str]:
    """Prompts, captions, questions and answers of the first examples, for a tokenizer of their words."""
    yield from ("user", "assistant", "system")
    for count, item in enumerate(stream.read()):
        example: Example = item[1] if isinstance(item, tuple) else item
        for caption in (example.caption, *example.captions):
            if caption is not None:
                yield chat.generation_prompt.replace("{caption}", caption)
        yield from (message["content"] for message in as_text(example.turns))
        if count + 1 >= limit:
            return


def _path(source: DataSource) -> str:
    if source.path is None:
        raise ValueError(f"data.path must be given for {source.kind}, got None")
    return source.path
