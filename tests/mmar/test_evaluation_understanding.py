"""Questions: what counts as right, families, the error of a share, and that a pipeline is asked what the examples say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmar.data.digits import DigitDataset
from mmar.data.example import Example
from mmar.data.scenes import CHANCE, Scene, SceneDataset, draw
from mmar.evaluation.digits import DigitReader
from mmar.evaluation.scenes import ask_scenes, draw_scenes, read
from mmar.evaluation.understanding import Accuracy, Answered, ask, by_family, mean_accuracy, normalized


class Oracle:
    """A pipeline that knows the examples; ``wrong`` answers every n-th question wrongly."""

    def __init__(self, examples: Sequence[Example], wrong: int = 0) -> None:
        self.answers = {(id(example.image), q): a for example in examples for q, a in example.turns}
        self.wrong, self.asked, self.batches, self.options = wrong, 0, [], {}

    def answer_batch(self, samples: Sequence[tuple[Any, Sequence[str]]], **options: Any) -> list[list[str]]:
        self.batches.append(len(samples))
        self.options = options
        return [[self._answer(id(image), question) for question in questions] for image, questions in samples]

    def _answer(self, image: int, question: str) -> str:
        self.asked += 1
        right = self.answers[image, question]
        return f"not {right}" if self.wrong and self.asked % self.wrong == 0 else f" {right.upper()}. "

    def draw(self, captions: Sequence[str], *, settings: Any, seed: Sequence[int]) -> list[Image.Image]:
        self.batches.append(len(captions))
        self.seeds = [*getattr(self, "seeds", []), *seed]
        return [self.pictures[caption] for caption in captions]


def examples(count: int = 12, questions: int = 2) -> list[Example]:
    data = SceneDataset("test", count, questions=questions)
    return [data[i] for i in range(count)]


# -- what is right -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("yes", "yes", True),
        ("  Yes. ", "yes", True),
        ("top   left", "top left", True),
        ("A", "a", True),
        ("yes..", "yes", False),
        ("yes, it is", "yes", False),
        ("topleft", "top left", False),
        ("", "yes", False),
        ("yes .", "yes", False),
    ],
)
def test_exact_matching(said: str, answer: str, right: bool) -> None:
    assert Answered("k", "f", "q", answer, said).is_right is right


def test_matching_is_symmetric_in_what_it_forgives() -> None:
    assert normalized("  The RED\n square. ") == normalized("the red square") == "the red square"


# -- families and shares -----------------------------------------------------------------------------------------------------


def test_families_are_counted_apart_and_weigh_the_same() -> None:
    """Nine of ten in one, one of two in the other: 0.7, where the share of all questions is 10 / 12."""
    answered = [Answered("k", "colour", "q", "red", "red" if i else "blue") for i in range(10)]
    answered += [Answered("k", "count", "q", "two", said) for said in ("two", "three")]
    found = by_family(answered)
    assert found == {"colour": Accuracy(9, 10), "count": Accuracy(1, 2)}
    assert list(found) == ["colour", "count"]
    assert mean_accuracy(found) == pytest.approx(0.7)
    assert mean_accuracy(found) != pytest.approx(10 / 12)


def test_the_standard_error_is_that_of_repeated_questions() -> None:
    """Over 4000 draws of 400 questions answered right with probability 0.3; a sample deviation is off by 1 / sqrt(8000)."""
    shares = np.random.default_rng(0).binomial(400, 0.3, 4000) / 400
    assert Accuracy(120, 400).standard_error == pytest.approx(shares.std(), rel=5 / math.sqrt(8000) + 4 / 400)
    assert Accuracy(400, 400).standard_error > 0
    assert Accuracy(30, 100).standard_error > 1.9 * Accuracy(120, 400).standard_error  # the control: fewer questions


def test_no_families_have_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one family, got none"):
        mean_accuracy({})


# -- asking ------------------------------------------------------------------------------------------------------------------


def test_every_question_is_asked_once_in_order() -> None:
    asked = examples()
    oracle, done = Oracle(asked), []
    answered = ask(oracle, asked, batch_size=5, max_new_tokens=3, tick=done.append)
    assert [(one.key, one.question, one.answer) for one in answered] == [(e.key, q, a) for e in asked for q, a in e.turns]
    assert [one.family for one in answered] == [family for e in asked for family in e.meta["families"]]
    assert all(one.is_right for one in answered)
    assert oracle.batches == done == [5, 5, 2]
    assert oracle.options == {"do_sample": False, "max_new_tokens": 3}


def test_noise_is_asked_for_each_image_and_is_the_same_each_time() -> None:
    some, noises = examples(5), []
    for _ in range(2):
        pipeline = Oracle(some)
        ask(pipeline, some, batch_size=5, timestep=250)  # type: ignore[arg-type]
        assert pipeline.options["image_timesteps"].tolist() == [250] * 5
        noises.append(torch.rand(3, generator=pipeline.options["generator"]))
    assert torch.equal(*noises)
    pipeline = Oracle(some)
    ask(pipeline, some)  # type: ignore[arg-type]
    assert "image_timesteps" not in pipeline.options


def test_wrong_answers_are_counted() -> None:
    """The control: every third answer is wrong."""
    asked = examples()
    answered = ask(Oracle(asked, wrong=3), asked)
    total = len(answered)
    assert sum(one.is_right for one in answered) == total - total // 3


def test_examples_that_cannot_be_asked_are_refused() -> None:
    bare = [Example("k", Image.new("RGB", (8, 8)), "a caption")]
    with pytest.raises(ValueError, match="got none in k"):
        ask(Oracle(bare), bare)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ask(Oracle([]), [], batch_size=0)
    unnamed = [Example("k", Image.new("RGB", (8, 8)), turns=(("q?", "a"),))]
    assert ask(Oracle(unnamed), unnamed)[0].family == "other"


# -- scenes ------------------------------------------------------------------------------------------------------------------


def test_scenes_are_drawn_with_seeds_of_their_own_and_read() -> None:
    asked = examples(7)
    oracle, done = Oracle(asked), []
    oracle.pictures = {str(e.caption): e.image for e in asked}
    drawn = draw_scenes(oracle, asked, seed=3, batch_size=3, tick=done.append)
    assert oracle.seeds == list(range(3, 10))
    assert oracle.batches == done == [3, 3, 1]
    assert [one.caption for one in drawn] == [e.caption for e in asked]
    assert all(one.score.exact == 1.0 for one in drawn)


def test_pictures_of_other_scenes_are_not_exact() -> None:
    """The control: each caption gets the picture of the next one."""
    asked = examples(7)
    assert not any(read(a.image, b).exact for a, b in zip(asked, [*asked[1:], asked[0]], strict=True))
    scene = Scene.from_dict(asked[0].meta["scene"])
    assert read(draw(scene, 64).convert("RGBA"), asked[0]).exact == 1.0


# -- digits ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> DigitReader:
    return DigitReader()


def test_the_ceiling_is_what_it_reads_of_test_scans(reader: DigitReader) -> None:
    data = DigitDataset("test", caption_only=True)
    scans = [data[i] for i in range(len(data))]
    read_right = np.mean(reader.read([one.image for one in scans]) == [one.meta["digit"] for one in scans])
    assert reader.ceiling() == pytest.approx(read_right, abs=2 / len(scans))  # levels are rounded to 8 bits
    assert reader.ceiling() > 0.97


def test_noise_and_other_digits_are_not_read_as_asked(reader: DigitReader) -> None:
    """The control: random pixels are the digit asked for about as often as chance has it."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(200)]
    asked = np.arange(200) % 10
    assert (reader.read(noise) == asked).mean() < 0.25
    with pytest.raises(ValueError, match="images must be of 8 x 8 pixels, got 9 x 8"):
        reader.read([noise[0], Image.new("L", (9, 8))])


def test_scenes_are_asked_family_by_family_and_once_each() -> None:
    seen: list[list[Example]] = []

    def half_right(_: Any, group: list[Example]) -> list[Answered]:
        seen.append(group)
        turns = [(one, *one.turns[0], one.meta["families"][0]) for one in group]
        return [
            Answered(one.key, family, question, answer, answer if i % 2 else "no idea")
            for i, (one, question, answer, family) in enumerate(turns)
        ]

    done: list[int] = []
    found = ask_scenes(None, "held_out", 8, families=("colour", "position"), max_objects=1, asker=half_right, tick=done.append)
    assert [{example.meta["families"][0] for example in group} for group in seen] == [{"colour"}, {"position"}]
    assert all(len(group) == len({one.key for one in group}) == 8 for group in seen)
    assert all(len(one.turns) == 1 and len(one.meta["scene"]["objects"]) == 1 for group in seen for one in group)
    assert found["mean"] == 0.5
    assert {name: (one["right"], one["asked"], one["chance"]) for name, one in found["families"].items()} == {
        name: (4, 8, CHANCE[name]) for name in ("colour", "position")
    }
    assert done == [1, 1]
