"""The pipeline is its parts in the right order: compared with the parts called by hand, and with what must not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_tokenizers import vq
from torch import Tensor

from mmar.config import MMARConfig
from mmar.generation.image import generate_image_tokens
from mmar.generation.settings import ImageGenerationConfig
from mmar.model import MMARForConditionalGeneration
from mmar.pipeline import MMARPipeline
from mmar.pixel_mask import painted_pixels, touched_tokens
from mmar.processing import ChatFormat, MMARProcessor, train_tokenizer
from mmar.tokenizers import ImageTokenizer, LatentScale, PatchTokenizer

TEXTS = ["a red square", "a blue circle", "what colour is it?", "is it round?"]
SETTINGS = ImageGenerationConfig(ar_steps=4, head_steps=3, guidance_scale=2.0)
GRID, SIDE = 4, 8


def pipeline(image_tokenizer: ImageTokenizer | None = None, **options: Any) -> MMARPipeline:
    """A small model with no part at zero, in float32."""
    image_tokenizer = PatchTokenizer(SIDE, SIDE // GRID) if image_tokenizer is None else image_tokenizer
    text = {"initializer_range": 0.125, "tie_word_embeddings": False}
    objective = "masked_diffusion" if image_tokenizer.codebook_size is None else "masked_codes"
    images = image_tokenizer.image_tokens_config()
    config = MMARConfig.preset("mmar-tiny", text_config=text, image_config=images, image_objective=objective)
    torch.manual_seed(0)
    model = MMARForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        if image_tokenizer.codebook_size is not None:
            model.image_model.input.codebook.weight.copy_(image_tokenizer.codebook)
    processor = MMARProcessor.from_config(config, train_tokenizer(TEXTS * 3), chat=ChatFormat(system_prompt=None))
    return MMARPipeline(model, processor, image_tokenizer, **{"settings": SETTINGS, "compute_dtype": torch.float32, **options})


@pytest.fixture(scope="module")
def pipe() -> MMARPipeline:
    return pipeline()


def picture(seed: int = 0, width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(a: list[Image.Image], b: list[Image.Image], levels: int = 0) -> bool:
    """Equal up to some of 255 levels."""
    pairs = [(np.asarray(x, dtype=int), np.asarray(y, dtype=int)) for x, y in zip(a, b, strict=True)]
    return all(int(np.abs(x - y).max()) <= levels for x, y in pairs)


# -- text to image ---------------------------------------------------------------------------------------------------------


def test_drawing_is_prompts_tokens_and_decoding(pipe: MMARPipeline) -> None:
    prompts, empty = pipe.processor.for_generation(["a red square", "a blue circle"]), pipe.processor.for_generation([""])
    tokens = generate_image_tokens(
        pipe.model,
        **prompts,
        settings=SETTINGS,
        uncond_input_ids=empty["input_ids"],
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
    )
    by_hand = pipe.processor.image_processor.to_pil(pipe.image_tokenizer.decode(tokens))
    drawn = pipe.draw(["a red square", "a blue circle"], seed=[5, 6])
    assert same(drawn, by_hand)
    assert [image.size for image in drawn] == [(SIDE, SIDE)] * 2
    assert not same(drawn, pipe.draw(["a blue circle", "a red square"], seed=[5, 6]))  # the control: captions matter


def test_an_image_does_not_depend_on_its_batch(pipe: MMARPipeline) -> None:
    """Captions of different lengths; one level of 255 for rounding."""
    captions = ["a red square", None, "is it round? what colour is it?"]
    together = pipe.draw(captions, seed=3)
    assert same(together, pipe.draw(captions, seed=3, batch_size=2), 1)
    assert same(together, pipe.draw(captions, seed=3, batch_size=1), 1)
    assert same(together[:1], pipe.draw("a red square", seed=3), 1)
    assert not same(together, pipe.draw(captions, seed=4), 20)  # the control


def test_an_empty_caption_is_unconditional(pipe: MMARPipeline) -> None:
    assert same(pipe.draw([None], seed=1), pipe.draw("", seed=1))
    assert same(pipe.draw([None], seed=1, guidance=1.0), pipe.draw([None], seed=1, guidance=5.0), 1)  # guided from itself


def test_settings_and_guidance_are_heard(pipe: MMARPipeline) -> None:
    base = pipe.draw("a red square", seed=1)
    assert same(base, pipe.draw("a red square", seed=1, settings=SETTINGS))
    assert same(base, pipe.draw("a red square", seed=1, guidance=2.0))
    assert not same(base, pipe.draw("a red square", seed=1, guidance=4.0), 5)
    assert not same(base, pipe.draw("a red square", seed=1, settings=ImageGenerationConfig(ar_steps=4, head_steps=2)), 5)


def test_torchs_generator_is_the_source_without_a_seed(pipe: MMARPipeline) -> None:
    torch.manual_seed(1)
    first = pipe.draw("a red square")
    assert not same(first, pipe.draw("a red square"), 5)
    torch.manual_seed(1)
    assert same(first, pipe.draw("a red square"))


def test_steps_are_reported(pipe: MMARPipeline) -> None:
    seen = []
    pipe.draw(["a red square", None], seed=0, on_step=lambda done, total, tokens: seen.append((done, total, len(tokens))))
    assert seen == [(1, 4, 2), (2, 4, 2), (3, 4, 2), (4, 4, 2)]


# -- painting over ---------------------------------------------------------------------------------------------------------


def test_what_is_not_painted_over_stays(pipe: MMARPipeline) -> None:
    """Patches are decoded one by one and without loss, so all other pixels come back as they were."""
    image, mask = picture(), np.zeros((SIDE, SIDE), dtype=bool)
    mask[0, 0] = mask[3, 4] = True  # touches tokens (0, 0) and (1, 2)
    drawn = [np.asarray(one) for one in pipe.draw(["a red square", "a blue circle"], seed=2, image=image, mask=mask)]
    touched = np.zeros((SIDE, SIDE), dtype=bool)
    touched[0:2, 0:2] = touched[2:4, 4:6] = True
    for one in drawn:
        assert (one[~touched] == np.asarray(image)[~touched]).all()
        assert (one[0:2, 0:2] != np.asarray(image)[0:2, 0:2]).any()
        assert (one[2:4, 4:6] != np.asarray(image)[2:4, 4:6]).any()
    assert (drawn[0][touched] != drawn[1][touched]).any()  # captions are heard


def test_what_is_drawn_knows_what_stays(pipe: MMARPipeline) -> None:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:2, :2] = True
    a, b = (np.asarray(pipe.draw("a red square", seed=2, image=picture(seed), mask=mask)[0]) for seed in (0, 1))
    assert (a[:2, :2] != b[:2, :2]).any()


def test_image_and_mask_are_cropped_alike(pipe: MMARPipeline) -> None:
    """A wide image: the mask lies on its right half, of which the centred square keeps a part."""
    image = picture(3, width=24, height=16)
    mask = Image.new("L", image.size)
    mask.paste(255, (16, 0, 24, 16))  # of the square, 4..20, the last quarter
    drawn, kept = (np.asarray(one) for one in (pipe.draw("", seed=2, image=image, mask=mask)[0], pipe.reconstruct(image)))
    assert (drawn[:, :6] == kept[:, :6]).all()
    assert (drawn[:, 6:] != kept[:, 6:]).any()


@given(
    height=st.integers(4, 13),
    width=st.integers(4, 13),
    painted=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5),
)
def test_a_token_is_touched_by_any_pixel_of_its_cell(height: int, width: int, painted: list[tuple[int, int]]) -> None:
    mask = torch.zeros(height, width, dtype=torch.bool)
    for y, x in painted:
        mask[y % height, x % width] = True
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    wanted = torch.zeros(GRID, GRID, dtype=torch.bool)
    for y, x in mask.nonzero().tolist():
        for i in range(GRID):
            for j in range(GRID):  # pixel y covers [y, y + 1); cell i covers [i, i + 1) side / GRID
                inside = all(p < (c + 1) * side / GRID and p + 1 > c * side / GRID for p, c in ((y - top, i), (x - left, j)))
                wanted[i, j] |= inside
    if wanted.any():
        assert torch.equal(touched_tokens(mask, GRID), wanted.flatten())
    else:
        with pytest.raises(ValueError, match="painted within the centred square"):
            touched_tokens(mask, GRID)


def test_masks_of_every_kind_are_the_same() -> None:
    wanted = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    white = (wanted.numpy() * 255).astype(np.uint8)
    for mask in (wanted, wanted.numpy(), white, wanted.float(), Image.fromarray(white), Image.fromarray(white).convert("RGB")):
        assert torch.equal(painted_pixels(mask), wanted)
    assert painted_pixels(np.array([[127, 128]], dtype=np.uint8)).tolist() == [[False, True]]
    turned = Image.fromarray(white)
    turned.getexif()[0x0112] = 6  # a quarter turn
    assert painted_pixels(turned).shape == (5, 6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"image": picture()}, ValueError, "image and mask must come together"),
        ({"mask": np.ones((8, 8), dtype=bool)}, ValueError, "image and mask must come together"),
        ({"image": picture(), "mask": np.ones((9, 8), dtype=bool)}, ValueError, r"height and width of the image, got \(9, 8\)"),
        ({"image": picture(), "mask": np.zeros((8, 8), dtype=bool)}, ValueError, "got nothing there"),
        ({"image": picture(), "mask": np.ones((1, 8, 8), dtype=bool)}, ValueError, "one plane"),
        ({"image": picture(), "mask": np.full((8, 8), np.nan)}, ValueError, "must lie in 0..1"),
        ({"image": picture(), "mask": np.full((8, 8), 256)}, ValueError, "must lie in 0..255"),
        ({"image": picture(), "mask": "mask.png"}, TypeError, "must be a Pillow image, an array or a tensor, got str"),
        ({"image": picture(0, 3, 3), "mask": np.ones((3, 3), dtype=bool)}, ValueError, "at least 4 pixels a side"),
        ({"captions": []}, ValueError, "must hold at least one"),
        ({"batch_size": 0}, ValueError, "batch_size be at least 1"),
        ({"seed": [1, 2]}, ValueError, "one for each of the 1 rows, got 2"),
        ({"settings": ImageGenerationConfig(top_k=3)}, ValueError, "top_k"),
    ],
)
def test_bad_orders_are_refused(pipe: MMARPipeline, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pipe.draw(**{"captions": "a red square", **options})


# -- image to text ---------------------------------------------------------------------------------------------------------


def by_hand(pipe: MMARPipeline, images: list[Image.Image], question: str, **options: Any) -> str:
    batch = pipe.processor.for_understanding([images], [question])
    tokens = pipe.image_tokenizer.encode(batch.pop("pixel_values"))
    out = pipe.model.generate(**batch, image_tokens=tokens, **{"max_new_tokens": 8, "do_sample": False, **options})
    return pipe.processor.decode(out[0, batch["input_ids"].shape[1] :]).strip()


def test_answers_are_those_of_generate(pipe: MMARPipeline) -> None:
    image, questions = picture(1), ["what colour is it?", "is it round?", "a"]
    wanted = [by_hand(pipe, [image], question) for question in questions]
    assert pipe.answer(image, questions, max_new_tokens=8) == wanted
    assert pipe.answer(image, "is it round?", max_new_tokens=8) == wanted[1]
    assert wanted != pipe.answer(picture(2), questions, max_new_tokens=8)  # the control: the image matters
    assert pipe.answer(image, questions, max_new_tokens=8, num_beams=2) == [
        by_hand(pipe, [image], question, num_beams=2) for question in questions
    ]


def test_several_images_in_one_question_and_several_questions_in_one_batch(pipe: MMARPipeline) -> None:
    pair, one = [picture(1), picture(2)], picture(3)
    answers = pipe.answer_batch([(pair, ["is it round?"]), (one, ["a", "what colour is it?"])], max_new_tokens=8)
    assert answers == [
        [by_hand(pipe, pair, "is it round?")],
        [by_hand(pipe, [one], "a"), by_hand(pipe, [one], "what colour is it?")],
    ]
    assert pipe.answer(pair, "is it round?", max_new_tokens=8) == answers[0][0]


def test_a_caption_is_an_answer(pipe: MMARPipeline) -> None:
    assert pipe.caption(picture(1), max_new_tokens=8) == by_hand(pipe, [picture(1)], "Describe the image.")
    assert pipe.caption(picture(1), prompt="a", max_new_tokens=8) == by_hand(pipe, [picture(1)], "a")


def test_questions_are_needed(pipe: MMARPipeline) -> None:
    for samples in ([], [(picture(), [])]):
        with pytest.raises(ValueError, match="at least one question"):
            pipe.answer_batch(samples)


def test_patches_are_reconstructed_without_loss(pipe: MMARPipeline) -> None:
    assert same([pipe.reconstruct(picture(4))], [picture(4)])


# -- codes -----------------------------------------------------------------------------------------------------------------


def test_codes_go_the_same_ways() -> None:
    pipe = pipeline(vq(), settings=ImageGenerationConfig(ar_steps=3, guidance_scale=2.0))
    image = picture(5, 32, 32)
    codes = pipe.encode([image])
    assert not codes.is_floating_point()
    assert same([pipe.reconstruct(image)], pipe.processor.image_processor.to_pil(pipe.image_tokenizer.decode_codes(codes)))
    assert isinstance(pipe.answer(image, "is it round?", max_new_tokens=4), str)
    mask, drawn = np.zeros((32, 32), dtype=bool), []
    mask[:4, :4] = True
    pipe.draw("a", seed=0, image=image, mask=mask, on_step=lambda done, total, tokens: drawn.append(tokens))
    assert torch.equal(drawn[-1][:, 1:], codes[:, 1:])
    assert [one.size for one in pipe.draw(["a", "b"], seed=0)] == [(32, 32)] * 2


# -- precision and modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "compute"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_model_computes_in_the_dtype_that_was_asked_for(weights: torch.dtype, compute: torch.dtype) -> None:
    """Whatever autocast surrounds the call."""
    pipe, seen = pipeline(), []
    pipe.model.to(weights)
    pipe = MMARPipeline(pipe.model, pipe.processor, pipe.image_tokenizer, settings=SETTINGS, compute_dtype=compute)
    layer = pipe.model.language_model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    tokens: list[Tensor] = []
    plain = pipe.draw("a", seed=0, on_step=lambda done, total, now: tokens.append(now))
    answer = pipe.answer(picture(), "a", max_new_tokens=4)
    assert set(seen) == {compute}
    assert {one.dtype for one in tokens} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert same(plain, pipe.draw("a", seed=0))
        assert pipe.answer(picture(), "a", max_new_tokens=4) == answer
    assert set(seen) == {compute}


def test_bfloat16_is_the_default_and_float32_needs_float32_weights(pipe: MMARPipeline) -> None:
    parts = pipe.model, pipe.processor, pipe.image_tokenizer
    assert MMARPipeline(*parts).compute_dtype is torch.bfloat16
    rounded = pipeline().model.bfloat16()
    with pytest.raises(ValueError, match=r"compute_dtype must be torch.bfloat16.*got torch.float32"):
        MMARPipeline(rounded, *parts[1:], compute_dtype=torch.float32)


def test_a_model_in_training_is_left_in_training() -> None:
    pipe = pipeline()
    pipe.model.train()
    assert same(pipe.draw("a", seed=0), pipeline().draw("a", seed=0))
    assert pipe.model.training
    with pytest.raises(ValueError, match="top_k"):
        pipe.draw("a", settings=ImageGenerationConfig(top_k=3))
    assert pipe.model.training
    assert all(parameter.grad is None for parameter in pipe.model.parameters())


# -- files -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(pipe: MMARPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder)
    return folder


def test_a_pipeline_comes_back_from_its_folder(pipe: MMARPipeline, saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "image_tokenizer",
        "image_generation_config.json",
        "mmar_pipeline.json",
    }
    loaded = MMARPipeline.from_pretrained(saved)
    assert same(loaded.draw(["a red square", None], seed=3), pipe.draw(["a red square", None], seed=3))
    assert loaded.answer(picture(), "is it round?", max_new_tokens=8) == pipe.answer(
        picture(), "is it round?", max_new_tokens=8
    )
    assert (loaded.settings, loaded.compute_dtype) == (SETTINGS, torch.float32)
    assert not loaded.model.lm_head.weight.requires_grad


def test_weights_and_compute_can_be_chosen_at_the_door(saved: Path) -> None:
    loaded = MMARPipeline.from_pretrained(saved, dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    assert (loaded.model.dtype, loaded.compute_dtype) == (torch.bfloat16, torch.bfloat16)
    assert MMARPipeline.from_pretrained(saved, compute_dtype=torch.bfloat16).model.dtype is torch.float32


def test_float32_loads_float32_weights_whatever_the_config_says(tmp_path: Path) -> None:
    """As adapters and commands ask for it."""
    pipe = pipeline(compute_dtype=torch.bfloat16)
    for parameter in pipe.model.language_model.parameters():
        parameter.data = parameter.data.bfloat16()  # frozen beside masters, as a run in bf16 leaves it
    pipe.save_pretrained(tmp_path)
    assert MMARPipeline.from_pretrained(tmp_path).model.dtype is torch.bfloat16
    loaded = MMARPipeline.from_pretrained(tmp_path, compute_dtype=torch.float32)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_prompt_beyond_the_context_is_refused(pipe: MMARPipeline) -> None:
    limit = pipe.model.config.text_config.max_position_embeddings
    long = "red " * limit
    with pytest.raises(ValueError, match=rf"a prompt must have at most {limit} positions, .* got \d{{4}}"):
        pipe.draw(["a", long], seed=0)
    with pytest.raises(ValueError, match="a prompt must have at most"):
        pipe.answer(picture(), long)
    assert pipe.draw("red " * (limit // 4), seed=0)


def edit(path: Path, *keys: str, value: Any) -> None:
    """Change one entry of a JSON file."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def copied(saved: Path, folder: Path) -> Path:
    for path in saved.rglob("*"):
        target = folder / path.relative_to(saved)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: PatchTokenizer(16, 4).save_pretrained(f / "image_tokenizer"), "image_size 16"),
        (lambda f: PatchTokenizer(8, 2, scale=LatentScale(0.5)).save_pretrained(f / "image_tokenizer"), "saved with, patches-"),
        (lambda f: edit(f / "config.json", "boi_token_id", value=7), r"<\|vision_start\|> is token 5 and boi_token_id is 7"),
        (
            lambda f: edit(f / "processor_config.json", "tokens_per_image", value=9),
            "tokens_per_image of the processor must be 16",
        ),
        (
            lambda f: edit(f / "processor_config.json", "image_processor", "channels", value=1),
            "channels of the processor must be 3",
        ),
        (lambda f: edit(f / "mmar_pipeline.json", "compute_dtype", value="half a float"), "must name a compute_dtype"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    saved: Path, spoil: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    folder = copied(saved, tmp_path)
    MMARPipeline.from_pretrained(folder)  # the control
    spoil(folder)
    (folder / "model.safetensors").unlink()  # found before the weights are read
    with pytest.raises(ValueError, match=words):
        MMARPipeline.from_pretrained(folder)


def test_all_disagreements_are_in_one_message(pipe: MMARPipeline) -> None:
    other = MMARProcessor(pipe.processor.image_processor, pipe.processor.tokenizer, tokens_per_image=9)
    with pytest.raises(ValueError, match=r"\(1\) image_config must agree.*\(2\) tokens_per_image.*\(3\) image_size") as caught:
        MMARPipeline(pipe.model, other, PatchTokenizer(16, 4))
    assert "belong together" in str(caught.value)


@pytest.mark.parametrize("part", ["mmar_pipeline.json", "image_tokenizer/image_tokenizer.json", "config.json"])
def test_missing_parts_are_named(saved: Path, part: str, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    (folder / part).unlink()
    with pytest.raises(OSError, match=part.split("/")[-1]):
        MMARPipeline.from_pretrained(folder)
