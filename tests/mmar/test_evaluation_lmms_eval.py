"""MMAR as a plug-in of lmms-eval: against a double of its interface, by the entry point that the package declares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pipeline import picture, pipeline

from mmar.evaluation.adapters.requests import Prompt, generation_options, stopped
from mmar.evaluation.likelihood import answer_log_likelihood
from mmar.pipeline import MMARPipeline

DOUBLE = Path(__file__).parent / "doubles" / "lmms"
DOCS = [{"image": [picture(i)], "question": question} for i, question in enumerate(["what colour is it?", "is it round?"])]


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The double's models, with the entry point as pyproject.toml has it: an installed copy may be older than the file."""
    import tomllib

    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    group = "lmms_eval.models"
    points = [EntryPoint(name, value, group) for name, value in declared[group].items()]

    class Points(list):
        def select(self, *, group: str) -> list[EntryPoint]:
            return [point for point in self if point.group == group]

    monkeypatch.setattr("importlib.metadata.entry_points", lambda: Points(points))
    monkeypatch.syspath_prepend(str(DOUBLE))
    yield import_module("lmms_eval.models")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval" or name.endswith("adapters.lmms_eval")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe() -> MMARPipeline:
    return pipeline()


def built(lmms_eval: Any, model: Path, force_simple: bool) -> Any:
    """As lmms_eval.evaluator builds a model, and tells it its data."""
    cls = lmms_eval.get_model("mmar", force_simple)
    lm = cls.create_from_arg_string(f"pretrained={model}", {"batch_size": 2, "max_batch_size": None, "device": "cpu"})
    lm.task_dict["toy"] = {"test": DOCS}
    return lm


def request(kind: str, *arguments: Any) -> Any:
    return import_module("lmms_eval.api.instance").Instance(kind, tuple(arguments), 0, {"task": "toy", "doc_id": 0})


def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    content = [*({"type": "image", "url": image} for image in doc["image"]), {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


OPTIONS = [
    {"max_new_tokens": 4, "temperature": 0, "do_sample": False},
    {"max_new_tokens": 3, "until": ["\n\n"], "num_beams": 1},
]


def test_chat_and_simple_models_answer_as_the_pipeline(lmms_eval: Any, model: Path, pipe: MMARPipeline) -> None:
    chat, simple = built(lmms_eval, model, False), built(lmms_eval, model, True)
    assert (chat.is_simple, simple.is_simple) == (False, True)
    assert chat.device == torch.device("cpu")
    order = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 1)]  # documents and options: groups of two, two and one
    expected = [
        pipe.answer(DOCS[doc]["image"][0], DOCS[doc]["question"], do_sample=False, max_new_tokens=(4, 3)[option])
        for doc, option in order
    ]
    asked = [request("generate_until", "ignored", to_messages, OPTIONS[o], d, "toy", "test") for d, o in order]
    assert chat.generate_until(asked) == expected
    asked = [
        request("generate_until", DOCS[d]["question"], OPTIONS[o], lambda doc: doc["image"], d, "toy", "test") for d, o in order
    ]
    assert simple.generate_until(asked) == expected
    assert len(set(expected)) > 1


def test_likelihoods_of_continuations(lmms_eval: Any, model: Path, pipe: MMARPipeline) -> None:
    simple = built(lmms_eval, model, True)
    question, image = DOCS[0]["question"], DOCS[0]["image"]
    arguments = [lambda doc: doc["image"], 0, "toy", "test"]
    asked = [request("loglikelihood", question, target, *arguments) for target in (" red", lambda doc: "blue")]
    found = simple.loglikelihood(asked)
    assert found[0][0] == pytest.approx(answer_log_likelihood(pipe, image, question, "red")[0], abs=1e-4)
    assert found[1][0] == pytest.approx(answer_log_likelihood(pipe, image, question, "blue")[0], abs=1e-4)
    with pytest.raises(NotImplementedError, match="tasks must have one round"):
        simple.generate_until_multi_round(asked)


def test_the_log_likelihood_is_the_loss_of_training(pipe: MMARPipeline) -> None:
    """The mean cross entropy of a training batch times its tokens, for one image and for two."""
    from mmar.processing.chat import UnderstandingSample

    for images in ([picture(0)], [picture(0), picture(1)]):
        batch = pipe.processor.training_batch([UnderstandingSample(images, (("is it round?", "a red square"),))])
        with torch.no_grad():
            out = pipe.model(
                batch["input_ids"], batch["attention_mask"], image_tokens=pipe.encode(images), labels=batch["labels"]
            )
        count = int((batch["labels"] != -100).sum())
        found, _ = answer_log_likelihood(pipe, images, "is it round?", "a red square")
        assert found == pytest.approx(-float(out.text_loss) * count, rel=1e-5)
        assert found != pytest.approx(answer_log_likelihood(pipe, images, "is it red?", "a red square")[0], rel=1e-3)


def test_an_answer_is_greedy_only_if_it_is_generated(pipe: MMARPipeline) -> None:
    """An untrained model's answer rarely ends; a whole one says greedy exactly if generation gives it."""
    image = picture(0)
    said = pipe.answer(image, "is it round?", max_new_tokens=20)
    _, greedy = answer_log_likelihood(pipe, [image], "is it round?", "a red square")
    assert greedy == (said == "a red square")
    with pytest.raises(ValueError, match="must have text and at least one image"):
        answer_log_likelihood(pipe, [], "is it round?", "yes")
    with pytest.raises(ValueError, match="must have text and at least one image"):
        answer_log_likelihood(pipe, [image], "is it round?", "  ")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"until": [], "max_new_tokens": 1024, "do_sample": False}),
        ({"temperature": 0, "do_sample": True, "top_p": 0.9}, {"until": [], "max_new_tokens": 1024, "do_sample": False}),
        (
            {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 16, "until": "\n"},
            {"until": ["\n"], "max_new_tokens": 16, "do_sample": True, "temperature": 0.7, "top_p": 0.9},
        ),
        ({"do_sample": False, "temperature": 0.7, "num_beams": 3, "top_p": None}, {
            "until": [], "max_new_tokens": 1024, "do_sample": False, "num_beams": 3,
        }),
        ({"image_aspect_ratio": "pad"}, {"until": [], "max_new_tokens": 1024, "do_sample": False}),
    ],
)  # fmt: skip
def test_options_are_translated(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert generation_options(Prompt.of([picture()], "q", given).options) == wanted


def test_answers_stop() -> None:
    assert stopped("yes\n\nno", ["\n\n"]) == "yes"
    assert stopped("a; b\nc", ["\n", ";"]) == "a"
    assert stopped(" yes ", ["", "x"]) == "yes"


def test_questions_that_cannot_be_asked_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image, got none with 'why"):
        Prompt.of([], "why?", {})
    with pytest.raises(ValueError, match=r"generation_kwargs must be among .* got typical_p"):
        Prompt.of([picture()], "why?", {"typical_p": 0.9})
    with pytest.raises(ValueError, match="got one of role 'assistant'"):
        Prompt.of_messages([*to_messages(DOCS[0]), {"role": "assistant", "content": []}], {})
    film = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
    with pytest.raises(ValueError, match="must hold text and images, got video"):
        Prompt.of_messages(film, {})
