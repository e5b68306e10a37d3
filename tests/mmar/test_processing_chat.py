"""The chat format: Qwen2's own on text, the same from jinja and from pieces, and what is learned."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from mmar.processing import ChatFormat, GenerationSample, UnderstandingSample, chat_template
from mmar.processing.chat import CONTROL_TOKENS, QWEN2_SYSTEM_PROMPT, images_of, render
from mmar.processing.rendered import PLACEHOLDER, check_template, joined

QWEN2_PUBLISHED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat_template of Qwen2-0.5B-Instruct and Qwen2-7B-Instruct."""

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
IMAGE_PART = {"type": "image"}


def conversations(parts: bool) -> st.SearchStrategy[list[dict]]:
    """User and assistant in any order, maybe a system message first; with ``parts`` images and lists of texts as well."""
    some = st.lists(st.one_of(TEXT.map(lambda text: {"type": "text", "text": text}), st.just(IMAGE_PART)), max_size=4)
    content = st.one_of(TEXT, some) if parts else TEXT
    turns = st.lists(
        st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), content),
        min_size=1,
        max_size=4,
    )
    system = st.lists(TEXT.map(lambda text: {"role": "system", "content": text}), max_size=1)
    return st.builds(lambda first, rest: first + rest, system, turns)


def by_jinja(messages: list[dict], system_prompt: str | None, prompt: bool = False, template: str | None = None) -> str:
    template = chat_template(system_prompt) if template is None else template
    return render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt)[0][0]


def targets(messages: list[dict]) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in render(messages, system_prompt=None) if piece.is_target]


# -- the template -----------------------------------------------------------------------------------------------------


def test_text_is_rendered_as_qwen2_renders_it_literally() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "?"}]
    wanted = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert by_jinja(messages, QWEN2_SYSTEM_PROMPT, prompt=True) == wanted
    assert joined(render(messages, system_prompt=QWEN2_SYSTEM_PROMPT, add_generation_prompt=True)) == wanted


@given(conversations(parts=False), st.booleans())
def test_any_text_is_rendered_as_by_the_published_template(messages: list[dict], prompt: bool) -> None:
    published = by_jinja(messages, None, prompt, QWEN2_PUBLISHED)
    assert by_jinja(messages, QWEN2_SYSTEM_PROMPT, prompt) == published
    assert joined(render(messages, system_prompt=QWEN2_SYSTEM_PROMPT, add_generation_prompt=prompt)) == published


@given(conversations(parts=True), st.none() | TEXT, st.booleans())
def test_pieces_and_jinja_agree(messages: list[dict], system_prompt: str | None, prompt: bool) -> None:
    pieces = render(messages, system_prompt=system_prompt, add_generation_prompt=prompt)
    assert joined(pieces) == by_jinja(messages, system_prompt, prompt)
    assert sum(piece.kind == "image" for piece in pieces) == len(images_of(messages))
    for first, second in itertools.pairwise(pieces):  # texts next to each other only where a prompt ends
        assert not (first.kind == second.kind == "text") or first.text == "assistant\n"


def test_no_system_prompt_leaves_the_turn_out() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert by_jinja(messages, None) == "<|im_start|>user\nHi<|im_end|>\n"
    assert by_jinja([{"role": "system", "content": "S"}, *messages], None).startswith("<|im_start|>system\nS<|im_end|>\n")


def test_a_template_that_differs_is_refused() -> None:
    check_template(chat_template(None), None)
    for template, system_prompt in (
        (chat_template(None), "S"),
        (QWEN2_PUBLISHED, QWEN2_SYSTEM_PROMPT),
        ("{% if", None),
        ("", None),
    ):
        with pytest.raises(ValueError, match="chat_template must render conversations as the chat format does"):
            check_template(template, system_prompt)


def test_the_template_refuses_what_it_cannot_render() -> None:
    for message in (
        {"role": "user"},
        {"role": "user", "content": [{"type": "video"}]},
        {"role": "system", "content": [IMAGE_PART]},
    ):
        with pytest.raises(Exception, match="must"):
            by_jinja([message], None)


# -- prompts and samples ----------------------------------------------------------------------------------------------


def test_an_image_to_draw_stands_in_the_assistants_turn() -> None:
    chat = ChatFormat(system_prompt=None)
    text = joined(render(GenerationSample("a {red} circle", "image").messages(chat), system_prompt=None))
    assert text == (
        f"<|im_start|>user\nGenerate an image: a {{red}} circle<|im_end|>\n<|im_start|>assistant\n{PLACEHOLDER}<|im_end|>\n"
    )


def test_unconditional_is_the_same_with_an_empty_caption() -> None:
    chat = ChatFormat()
    none, empty, given_ = (GenerationSample(caption).messages(chat) for caption in (None, "", "x"))
    assert none == empty
    assert none[0]["content"] == "Generate an image: "
    assert given_[0]["content"] == "Generate an image: x"


def test_several_images_and_questions_make_one_sequence() -> None:
    sample = UnderstandingSample(["i", "j"], [("A?", "a"), ("B?", "b"), ("C?", None)])
    messages = sample.messages(ChatFormat(question_prompt="Q: {question}"))
    assert joined(render(messages, system_prompt=None)) == (
        f"<|im_start|>user\n{PLACEHOLDER}{PLACEHOLDER}Q: A?<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nQ: B?<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nQ: C?<|im_end|>\n"
    )
    assert images_of(messages) == ["i", "j"]


# -- what is learned --------------------------------------------------------------------------------------------------


def test_answers_after_an_image_and_their_ends_are_learned() -> None:
    sample = UnderstandingSample([None], [("A?", "a"), ("B?", "")])
    assert targets(sample.messages(ChatFormat())) == [
        ("text", "a"),
        ("control", "<|im_end|>"),
        ("text", ""),
        ("control", "<|im_end|>"),
    ]


def test_answers_before_an_image_are_not() -> None:
    messages = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "B?"}, IMAGE_PART]},
        {"role": "assistant", "content": "b"},
    ]
    assert targets(messages) == [("text", "b"), ("control", "<|im_end|>")]
    assert targets(messages[:2]) == []


def test_an_image_in_the_assistants_turn_is_generated_and_ends_no_answer() -> None:
    assert targets(GenerationSample("c").messages(ChatFormat())) == [("image", "")]
    mixed = [
        {"role": "assistant", "content": [{"type": "text", "text": "before"}, IMAGE_PART, {"type": "text", "text": "after"}]}
    ]
    assert targets(mixed) == [("image", ""), ("text", "after"), ("control", "<|im_end|>")]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([], ValueError, "messages must be a list of at least one message"),
        ("Hi", ValueError, "messages must be a list"),
        (["Hi"], TypeError, "a message must be a dict with role and content, got 'Hi'"),
        ([{"role": "user"}], TypeError, "role and content"),
        ([{"role": "tool", "content": "x"}], ValueError, "role must be system, user or assistant, got 'tool'"),
        ([{"role": "user", "content": 3}], TypeError, "content must be a string or a list of parts, got int in the user's"),
        ([{"role": "user", "content": ["x"]}], ValueError, "a part must be a dict of type text or image, got 'x'"),
        ([{"role": "user", "content": [{"type": "video"}]}], ValueError, "type text or image, got .*video"),
        ([{"role": "user", "content": [{"type": "text"}]}], TypeError, "text of a part must be a string, got NoneType"),
        (
            [{"role": "user", "content": [{"type": "image", "image": 1, "path": 2}]}],
            ValueError,
            "hold one image, got image and path",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "image_url": "x"}]}],
            ValueError,
            "under image, path, url, base64, got image_url",
        ),
        ([{"role": "system", "content": [IMAGE_PART]}], ValueError, "system message must be text, got an image"),
        (
            [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
            ValueError,
            "come first, got one at position 1",
        ),
    ],
)
def test_messages_are_checked(messages: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        render(messages, system_prompt=None)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        (GenerationSample(3), TypeError, "caption must be a string, or None for unconditional, got int"),
        (UnderstandingSample([], [("a", "b")]), ValueError, "images must be a list of at least one image"),
        (UnderstandingSample("image.png", [("a", "b")]), ValueError, "images must be a list"),
        (UnderstandingSample([None], []), ValueError, r"at least one pair \(question, answer\)"),
        (UnderstandingSample([None], [(None, "b")]), TypeError, "question must be a string, got NoneType"),
        (UnderstandingSample([None], [("a", 3)]), TypeError, "answer must be a string, or None"),
        (UnderstandingSample([None], [("a", None), ("b", "c")]), ValueError, "answer of None must be the last"),
        (UnderstandingSample([None], ["ab"]), TypeError, r"turns must hold pairs \(question, answer\), got 'ab'"),
    ],
)
def test_samples_are_checked(sample: GenerationSample | UnderstandingSample, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample.messages(ChatFormat())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_prompt": "Draw."}, r"generation_prompt must be a string that holds \{caption\} once, got 'Draw.'"),
        ({"generation_prompt": "{caption} {caption}"}, "once"),
        ({"question_prompt": None}, r"question_prompt must be a string that holds \{question\} once, got None"),
        *[({"system_prompt": f"x{token}"}, "system_prompt must be plain text, got ") for token in CONTROL_TOKENS],
        ({"generation_prompt": "<|im_end|>{caption}"}, r"generation_prompt must be plain text, got <\|im_end\|>"),
    ],
)
def test_the_format_is_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatFormat(**options)
