"""Text after images: what ``generate`` gives is what the model says row by row, without cache, padding or neighbours.

Tolerance of logits: as in test_model.py, relative to their size: 2e-5 in float32; 20 x 2^-8 = 0.08 under bf16 autocast.
Tokens are compared exactly in float32: random models have no ties, and their gaps between logits are far above 1e-5.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import BLOCK, rows, some_tokens, tiny_model
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from mmar.generation.text import answer_questions, padded_left, shared_prefix
from mmar.model import MMARForConditionalGeneration

NEW = 5
MARKERS = [4, 5, 6]
PROMPTS = ([1, 20, 21, *BLOCK, 7, 8], [*BLOCK, 30, 31, 32, *BLOCK, 9], [50, 51, 52])
"""An image, two images, text alone; of different lengths."""


def talker(name: str = "mmar", **options: Any) -> MMARForConditionalGeneration:
    """A model whose next token depends on what it reads: weights of order 1 / sqrt(width), an untied head, no end."""
    text = {"initializer_range": 0.125, "tie_word_embeddings": False, "eos_token_id": None}
    return tiny_model(name, text_config=text, **options)


@pytest.fixture(scope="module")
def model() -> MMARForConditionalGeneration:
    return talker()


def by_row(tokens: Tensor) -> list[Tensor | None]:
    """Of PROMPTS."""
    return [tokens[:1], tokens[1:3], None]


@torch.no_grad()
def next_logits(model: MMARForConditionalGeneration, ids: list[int], tokens: Tensor | None) -> Tensor:
    """``(V,)`` after a row that is run alone, from its beginning."""
    return model(torch.tensor([ids]), image_tokens=tokens).logits[0, -1].float()


def without_markers(scores: Tensor) -> Tensor:
    return scores.index_fill(0, torch.tensor(MARKERS), -torch.inf)


def greedy(model: MMARForConditionalGeneration, prompt: list[int], tokens: Tensor | None, count: int = NEW) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(without_markers(next_logits(model, ids, tokens)).argmax()))
    return ids[len(prompt) :]


def beam_search(
    model: MMARForConditionalGeneration, prompt: list[int], tokens: Tensor | None, beams: int
) -> list[tuple[float, list[int]]]:
    """The textbook's, without an end token: log probability per new token, best first.

    As in transformers, what is suppressed keeps its share of the probability.
    """
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(NEW):
        longer = []
        for score, new in live:
            log_p = without_markers(next_logits(model, prompt + new, tokens).log_softmax(-1))
            longer += [(score + float(log_p[t]), [*new, t]) for t in log_p.topk(beams).indices.tolist()]
        live = sorted(longer, reverse=True)[:beams]
    return [(score / NEW, new) for score, new in live]


def generate(model: MMARForConditionalGeneration, tokens: Tensor, **options: Any) -> Any:
    ids, mask = rows(*PROMPTS, side="left")
    return model.generate(ids, mask, image_tokens=tokens, **{"max_new_tokens": NEW, "do_sample": False, **options})


# -- every way of decoding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mmar", "vq", "raster", "transfusion", "understanding-only"])
def test_a_padded_batch_says_what_each_row_says_alone(name: str) -> None:
    model = talker(name)
    tokens = some_tokens(model, 3)
    wanted = [greedy(model, prompt, images) for prompt, images in zip(PROMPTS, by_row(tokens), strict=True)]
    assert generate(model, tokens)[:, -NEW:].tolist() == wanted
    changed = generate(model, some_tokens(model, 3, seed=9))[:, -NEW:].tolist()  # the control: images matter where they are
    assert changed[0] != wanted[0]
    assert changed[1] != wanted[1]
    assert changed[2] == wanted[2]


def test_without_a_cache_it_says_the_same(model: MMARForConditionalGeneration) -> None:
    tokens = some_tokens(model, 3)
    assert torch.equal(generate(model, tokens), generate(model, tokens, use_cache=False))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.08)])
def test_logits_of_every_step_are_those_of_one_pass(
    model: MMARForConditionalGeneration, precision: str, tolerance: float
) -> None:
    tokens = some_tokens(model, 3)

    def worst(**options: Any) -> float:
        """Difference of logits from those of the whole sequence in one pass, relative to the largest."""
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"), torch.no_grad():
            out = generate(model, tokens, return_dict_in_generate=True, output_logits=True, **options)
            steps = torch.stack(out.logits, 1).float()  # (B, NEW, V)
            whole = [
                model(torch.tensor([prompt + out.sequences[i, -NEW:].tolist()]), image_tokens=images).logits[0, -NEW - 1 : -1]
                for i, (prompt, images) in enumerate(zip(PROMPTS, by_row(tokens), strict=True))
            ]
        return float((steps - torch.stack(whole)).abs().max() / steps.abs().max())

    assert worst() < tolerance
    mask = rows(*PROMPTS, side="left")[1]
    assert worst(position_ids=(mask.cumsum(-1) - 1).clamp_min(0)) > 3 * tolerance  # what transformers would count


def test_sampling_draws_from_the_models_own_distribution(model: MMARForConditionalGeneration) -> None:
    """A loop of softmax and multinomial on the same random numbers."""
    tokens = some_tokens(model, 3)
    torch.manual_seed(3)
    drawn = generate(model, tokens, do_sample=True, temperature=1.7, top_k=0)[:, -NEW:]
    torch.manual_seed(3)
    new: list[list[int]] = [[], [], []]
    for _ in range(NEW):
        pairs = zip(PROMPTS, new, by_row(tokens), strict=True)
        logits = torch.stack([without_markers(next_logits(model, prompt + ids, images)) for prompt, ids, images in pairs])
        for ids, token in zip(new, torch.multinomial((logits / 1.7).softmax(-1), 1), strict=True):
            ids.append(int(token))
    assert drawn.tolist() == new


def test_beams_are_those_of_the_textbook(model: MMARForConditionalGeneration) -> None:
    tokens = some_tokens(model, 3)
    out = generate(
        model, tokens, num_beams=3, num_return_sequences=2, length_penalty=1.0, return_dict_in_generate=True, output_scores=True
    )
    wanted = [
        best
        for prompt, images in zip(PROMPTS, by_row(tokens), strict=True)
        for best in beam_search(model, prompt, images, beams=3)[:2]
    ]
    assert out.sequences[:, -NEW:].tolist() == [ids for _, ids in wanted]
    # Scores are sums of NEW log probabilities of logits within 2e-5 x 5 of each other.
    assert torch.allclose(out.sequences_scores, torch.tensor([score for score, _ in wanted]), atol=1e-3, rtol=0)
    assert out.sequences[:, -NEW:].tolist()[::2] != generate(model, tokens)[:, -NEW:].tolist()  # beams found something better


def test_returned_sequences_all_see_the_images_of_their_row(model: MMARForConditionalGeneration) -> None:
    """Returned twice is the same as asked twice."""
    tokens = some_tokens(model, 3)
    torch.manual_seed(5)
    returned = generate(model, tokens, do_sample=True, num_return_sequences=2)
    ids, mask = rows(*(prompt for prompt in PROMPTS for _ in range(2)), side="left")
    torch.manual_seed(5)
    doubled = torch.cat([tokens[:1], tokens[:1], tokens[1:], tokens[1:]])
    assert torch.equal(returned, model.generate(ids, mask, image_tokens=doubled, do_sample=True, max_new_tokens=NEW))


def test_images_may_come_grouped_by_row(model: MMARForConditionalGeneration) -> None:
    tokens = some_tokens(model, 3)
    grouped = torch.zeros(3, 2, *tokens.shape[1:])
    grouped[0, 0], grouped[1] = tokens[0], tokens[1:]
    assert torch.equal(generate(model, tokens, num_beams=2), generate(model, grouped, num_beams=2))


def test_prompt_lookup_says_the_same(model: MMARForConditionalGeneration) -> None:
    """Several tokens at once behind a cached image."""
    ids, tokens = torch.tensor([[*PROMPTS[0], 7, 8]]), some_tokens(model, 1)
    plain = model.generate(ids, image_tokens=tokens, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(
        plain, model.generate(ids, image_tokens=tokens, max_new_tokens=NEW, do_sample=False, prompt_lookup_num_tokens=2)
    )


def test_rows_end_where_the_generation_config_says(model: MMARForConditionalGeneration) -> None:
    tokens = some_tokens(model, 3)
    free = generate(model, tokens)[:, -NEW:]
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=[int(free[0, 1])], pad_token_id=3)
    ids, mask = rows(*PROMPTS, side="left")
    ended = model.generate(ids, mask, image_tokens=tokens, generation_config=config)[:, -NEW:]
    assert ended[0].tolist() == [*free[0, :2].tolist(), 3, 3, 3]
    assert torch.equal(ended[1:], free[1:])


# -- what is never said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 1}, {"num_beams": 3}, {"suppress_tokens": [9]}])
def test_image_tokens_are_never_generated(options: dict[str, Any]) -> None:
    """By a model that wants nothing else."""
    model, ids = talker(), torch.tensor([[50, 51]])
    with torch.no_grad():
        state = model.language_model(inputs_embeds=model.embed_text(ids), attention_mask=torch.ones_like(ids)).last_hidden_state
        model.lm_head.weight[[*MARKERS, 9]] += torch.tensor([100.0, 100.0, 100.0, 50.0])[:, None] * state.mean((0, 1))
        favourites = model(ids).logits[0, -1].topk(4).indices
    assert set(favourites.tolist()) == {*MARKERS, 9}  # the control
    said = model.generate(ids, max_new_tokens=NEW, **{"do_sample": False, **options})
    assert not torch.isin(said, torch.tensor(MARKERS)).any()
    assert bool((said[0, 2] == 9).any()) == ("suppress_tokens" not in options)  # other options count as well


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention_mask": rows(*PROMPTS)[1]}, "1 in the last column, got 0"),
        ({"attention_mask": None}, "attention_mask must be given where rows start with the padding token 0"),
        ({"image_tokens": torch.zeros(2, 16, 12)}, "the 3 images of input_ids, got 2"),
        ({"image_tokens": torch.zeros(3, 1, 16, 12)}, "up to 2 in a row"),
        ({"image_tokens": None}, "image_tokens must be given for the 3 images"),
        ({"cache_implementation": "static"}, "must be dynamic"),
        ({"prefill_chunk_size": 8}, "prefill_chunk_size must be None"),
        ({"image_timesteps": torch.zeros(3, dtype=torch.int64), "num_beams": 2}, "use answer_questions"),
        ({"image_timesteps": torch.zeros(3, dtype=torch.int64), "use_cache": False}, "use answer_questions"),
        ({"past_key_values": DynamicCache(), "attention_mask": torch.ones(3, 60)}, "position_ids must be given"),
        ({"pixel_values": torch.zeros(1)}, "pixel_values"),
    ],
)
def test_bad_calls_are_refused(model: MMARForConditionalGeneration, options: dict[str, Any], words: str) -> None:
    ids, mask = rows(*PROMPTS, side="left")
    arguments = {"attention_mask": mask, "image_tokens": some_tokens(model, 3), "max_new_tokens": 1, **options}
    with pytest.raises(ValueError, match=words):
        model.generate(ids, **arguments)


# -- many questions, one reading -------------------------------------------------------------------------------------------

PREFIXES = ([1, 20, *BLOCK], [*BLOCK, 30, 31, *BLOCK], [*BLOCK])
QUESTIONS = [[[40], [41, 42, 43]], [[44, 45], [46, 40, 40, 41], [47]], []]


def asked(model: MMARForConditionalGeneration, tokens: Tensor, **options: Any) -> list[list[list[int]]]:
    ids, mask = rows(*PREFIXES, side="left")
    questions = [[torch.tensor(question) for question in group] for group in QUESTIONS]
    answers = answer_questions(
        model, ids, questions, mask, image_tokens=tokens, **{"max_new_tokens": NEW, "do_sample": False, **options}
    )
    return [[answer.tolist() for answer in group] for group in answers]


def one_by_one(model: MMARForConditionalGeneration, tokens: Tensor, **options: Any) -> list[list[list[int]]]:
    """Each whole prompt in a call of its own."""
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    images = iter((tokens[:1], tokens[1:3], tokens[3:]))
    answers: list[list[list[int]]] = []
    for prefix, group in zip(PREFIXES, QUESTIONS, strict=True):
        read = next(images)
        whole = [torch.tensor([[*prefix, *question]]) for question in group]
        answers.append([model.generate(ids, image_tokens=read, **options)[0, ids.shape[1] :].tolist() for ids in whole])
    return answers


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}])
def test_questions_are_answered_as_if_asked_one_by_one(model: MMARForConditionalGeneration, options: dict[str, Any]) -> None:
    tokens = some_tokens(model, 4)
    answers = asked(model, tokens, **options)
    assert answers == one_by_one(model, tokens, **options)
    assert [len(group) for group in answers] == [2, 3, 0]
    assert answers[0] != asked(model, tokens.roll(1, 0), **options)[0]  # the control: each prefix has its own images


def test_each_image_is_read_once(model: MMARForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, read = some_tokens(model, 4), []
    encode = model.image_model.encode

    def counted(images: Any, generator: torch.Generator | None = None) -> Any:
        read.append(len(images))
        return encode(images, generator)

    monkeypatch.setattr(model.image_model, "encode", counted)
    asked(model, tokens, num_beams=2)
    assert read == [4]
    one_by_one(model, tokens)
    assert read[1:] == [1, 1, 2, 2, 2]


def test_an_answer_ends_with_its_end_token(model: MMARForConditionalGeneration) -> None:
    tokens = some_tokens(model, 4)
    free = asked(model, tokens)
    end = free[1][0][2]
    ended = asked(model, tokens, eos_token_id=end)
    for group, free_group in zip(ended, free, strict=True):
        for answer, free_answer in zip(group, free_group, strict=True):
            assert answer == (free_answer[: free_answer.index(end) + 1] if end in free_answer else free_answer)
    assert len(ended[1][0]) <= 3


def test_all_questions_see_an_image_through_the_same_noise() -> None:
    """Transfusion reads noisy images (figure 7)."""
    model = talker("transfusion")
    tokens, timesteps = some_tokens(model, 1), torch.tensor([500])

    def source() -> torch.Generator:
        return torch.Generator().manual_seed(4)

    prefix, questions = torch.tensor([PREFIXES[0]]), [torch.tensor([40, 41]), torch.tensor([42])]
    options = {"image_tokens": tokens, "max_new_tokens": NEW, "do_sample": False}
    noisy = answer_questions(model, prefix, [questions], image_timesteps=timesteps, generator=source(), **options)[0]
    for question, answer in zip(questions, noisy, strict=True):
        ids = torch.cat([prefix, question[None]], -1)
        alone = model.generate(ids, image_timesteps=timesteps, generator=source(), **options)
        assert torch.equal(alone[0, ids.shape[1] :], answer)
        assert not torch.equal(model.generate(ids, **options)[0, ids.shape[1] :], answer)  # the control: noise matters


@pytest.mark.parametrize(
    ("questions", "options", "words"),
    [
        ([[torch.tensor([1])]], {}, "a list for each of 3 prefixes, got 1"),
        ([[torch.tensor([[1]])], [], []], {}, r"ids \(length,\), at least one"),
        ([[torch.tensor([], dtype=torch.int64)], [], []], {}, "at least one"),
        ([[torch.tensor(BLOCK)], [], []], {}, "must be text, got an image"),
        ([[torch.tensor([1])], [], []], {"num_return_sequences": 2, "num_beams": 2}, "num_return_sequences must be 1"),
    ],
)
def test_bad_questions_are_refused(
    model: MMARForConditionalGeneration, questions: list[list[Tensor]], options: dict[str, Any], words: str
) -> None:
    ids, mask = rows(*PREFIXES, side="left")
    with pytest.raises(ValueError, match=words):
        answer_questions(model, ids, questions, mask, image_tokens=some_tokens(model, 4), **options)


ids_of_a_prompt = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(prompts=st.lists(ids_of_a_prompt, min_size=1, max_size=4))
def test_a_shared_prefix_is_the_longest_that_leaves_something(prompts: list[list[int]]) -> None:
    shared = shared_prefix([torch.tensor(prompt) for prompt in prompts])
    assert all(prompt[:shared] == prompts[0][:shared] and len(prompt) > shared for prompt in prompts)
    longer = {tuple(prompt[: shared + 1]) for prompt in prompts}
    assert len(longer) > 1 or min(map(len, prompts)) == shared + 1


@given(prompts=st.lists(ids_of_a_prompt, min_size=1, max_size=4))
def test_left_padding_keeps_the_ids(prompts: list[list[int]]) -> None:
    ids, mask = padded_left([torch.tensor(prompt) for prompt in prompts], 9)
    assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == prompts
    assert bool(mask[:, -1].all())
    assert bool((ids[mask == 0] == 9).all())
