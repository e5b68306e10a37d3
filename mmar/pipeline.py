"""From captions to pictures and from pictures to words: model, processor and image tokenizer as one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, overload

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from mmar.checkpoint import stored_config
from mmar.compatibility import check_compatibility
from mmar.generation.image import OnStep, generate_image_tokens
from mmar.generation.randomness import row_generators
from mmar.generation.settings import ImageGenerationConfig
from mmar.generation.text import answer_questions, padded_left, shared_prefix
from mmar.inference import check_compute_dtype, inference
from mmar.model import MMARForConditionalGeneration
from mmar.picture_codec import PictureCodec
from mmar.pipeline_record import PipelineRecord
from mmar.pixel_mask import PixelMask, check_size, painted_pixels, touched_tokens
from mmar.processing import MMARProcessor
from mmar.tokenizers import ImageTokenizer, load_image_tokenizer

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
CAPTION_PROMPT = "Describe the image."


class MMARPipeline:
    """Draws, paints over, answers, captions.

    Args:
        model: Left in the mode it is in; evaluated in evaluation mode.
        processor: Makes prompts and pixels.
        image_tokenizer: Makes tokens and pictures.
        settings: How images are drawn unless :meth:`draw` is told otherwise; by default the preset fast where the model
            can, see :meth:`ImageGenerationConfig.default_for`. The paper's way is ``ImageGenerationConfig.preset("paper")``.
        compute_dtype: What the model computes in: under autocast where its weights are of another dtype, which casts them at
            each call; faster is a model loaded in bfloat16. The paper trains in bfloat16. The dtype of the weights goes without
            autocast. The image tokenizer computes in the dtype of its own weights.

    Raises:
        ValueError: If the three do not belong together.
    """

    def __init__(
        self,
        model: MMARForConditionalGeneration,
        processor: MMARProcessor,
        image_tokenizer: ImageTokenizer,
        *,
        settings: ImageGenerationConfig | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        check_compatibility(model.config, processor, image_tokenizer)
        check_compute_dtype(model, compute_dtype)
        self.model, self.processor, self.image_tokenizer = model, processor, image_tokenizer
        self.settings = ImageGenerationConfig.default_for(model.config) if settings is None else settings
        self.compute_dtype = compute_dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def to(self, device: torch.device | str) -> Self:
        """Move model and image tokenizer."""
        self.model.to(device)
        self.image_tokenizer.to(device)
        return self

    # -- text to image --------------------------------------------------------------------------------------------------------

    def draw(
        self,
        captions: str | Sequence[str | None],
        *,
        settings: ImageGenerationConfig | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] | None = None,
        image: Any = None,
        mask: PixelMask | None = None,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Draw an image for each caption.

        Args:
            captions: One or several; None or an empty string: unconditional.
            settings: Options; those of the pipeline by default.
            guidance: Replaces their ``guidance_scale``.
            seed: One, from which each image gets its own random numbers, whatever the batch; or one per image; None: torch's
                generator.
            image: An image to paint over, the same for all captions: a Pillow image, a path, an array.
            mask: ``(H, W)`` of the size of ``image``, white where to paint anew. Every token that it touches is drawn whole;
                the other tokens stay, so the rest of the picture is the image tokenizer's reconstruction.
            batch_size: Images at a time; all by default.
            on_step: As in :func:`generate_image_tokens`.

        Returns:
            As many pictures as captions.

        Raises:
            ValueError: If options do not fit the model, or only one of ``image`` and ``mask`` is given.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        settings = self.settings if settings is None else settings
        settings = settings if guidance is None else replace(settings, guidance_scale=guidance)
        sources = _sources(seed, len(captions))
        kept = self._kept(image, mask)
        size = len(captions) if batch_size is None else batch_size
        if size < 1:
            raise ValueError(
                f"captions must hold at least one, and batch_size be at least 1, got {len(captions)} and {batch_size}"
            )
        pictures: list[Image.Image] = []
        for start in range(0, len(captions), size):
            part = slice(start, start + size)
            tokens = self._draw(captions[part], settings, sources[part], kept, on_step)
            pictures += self._codec.decode(tokens)
        return pictures

    def _draw(
        self,
        captions: list[str | None],
        settings: ImageGenerationConfig,
        sources: list[torch.Generator],
        kept: tuple[Tensor, Tensor] | None,
        on_step: OnStep | None,
    ) -> Tensor:
        prompts = self._within_context(self.processor.for_generation(captions)).to(self.device)
        empty = self.processor.for_generation([None]).to(self.device) if settings.is_guided else {}
        tokens, known = (None, None) if kept is None else (part.expand(len(captions), *part.shape[1:]) for part in kept)
        with inference(self.model, self.compute_dtype):
            return generate_image_tokens(
                self.model,
                prompts["input_ids"],
                prompts["attention_mask"],
                settings=settings,
                uncond_input_ids=empty.get("input_ids"),
                uncond_attention_mask=empty.get("attention_mask"),
                known_tokens=tokens,
                known=known,
                generator=sources,
                on_step=on_step,
            )

    def _kept(self, image: Any, mask: PixelMask | None) -> tuple[Tensor, Tensor] | None:
        """Tokens ``(1, N, ...)`` of an image and which of them stay, ``(1, N)``."""
        if (image is None) != (mask is None):
            raise ValueError("image and mask must come together, got one of them; to draw from nothing, give neither")
        if image is None or mask is None:
            return None
        image = self.processor.image_processor.fetch_images(image)
        painted = painted_pixels(mask)  # (H, W)
        check_size(painted, image)
        touched = touched_tokens(painted, self.model.config.image_config.grid)
        return self.encode([image]), ~touched[None].to(self.device)

    # -- image to text --------------------------------------------------------------------------------------------------------

    @overload
    def answer(self, image: Any, question: str, **generation: Any) -> str: ...

    @overload
    def answer(self, image: Any, question: list[str], **generation: Any) -> list[str]: ...

    def answer(self, image: Any, question: str | list[str], **generation: Any) -> str | list[str]:
        """Answer one question about an image, or several from one reading of it.

        Args:
            image: A Pillow image, a path, an array; or a list of them, which are read one after the other.
            question: One, or a list.
            **generation: As in transformers' ``generate``. Greedy and at most 64 new tokens, unless a ``generation_config``
                says otherwise.

        Returns:
            A string, or a list of strings.
        """
        if isinstance(question, str):
            return self.answer_batch([(image, [question])], **generation)[0][0]
        return self.answer_batch([(image, question)], **generation)[0]

    def answer_batch(self, samples: Sequence[tuple[Any, Sequence[str]]], **generation: Any) -> list[list[str]]:
        """As :meth:`answer` for several images with their questions, in two passes of the model for all.

        Args:
            samples: Pairs of an image, or a list of images, and questions.
            **generation: As in :meth:`answer`.

        Returns:
            The answers of each sample.
        """
        if not samples or not all(questions for _, questions in samples):
            raise ValueError("samples must hold at least one pair of an image and questions, each with at least one question")
        prefixes, suffixes = zip(*(self._split_prompts(image, questions) for image, questions in samples), strict=True)
        ids, mask = padded_left(prefixes, self.processor.tokenizer.pad_token_id)
        defaults = {} if "generation_config" in generation else {"do_sample": False, "max_new_tokens": 64}
        images = [one for image, _ in samples for one in _images(image)]
        tokens = self.encode(images)
        with inference(self.model, self.compute_dtype):
            answers = answer_questions(
                self.model,
                ids.to(self.device),
                suffixes,
                mask.to(self.device),
                image_tokens=tokens,
                **{**defaults, **generation},
            )
        return [[self.processor.decode(ids).strip() for ids in group] for group in answers]

    def caption(self, image: Any, *, prompt: str = CAPTION_PROMPT, **generation: Any) -> str:
        """Say what is on an image.

        Args:
            image: As in :meth:`answer`.
            prompt: What asks for it; use the words of training.
            **generation: As in :meth:`answer`.
        """
        return self.answer(image, prompt, **generation)

    def _split_prompts(self, image: Any, questions: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """What the prompts of all questions begin with, images included, and the rest of each."""
        placeholders = [[None] * len(_images(image))] * len(questions)
        batch = self._within_context(self.processor.for_understanding(placeholders, list(questions)))
        rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        shared = shared_prefix(rows)
        return rows[0][:shared], [row[shared:] for row in rows]

    def _within_context(self, batch: BatchFeature) -> BatchFeature:
        """A batch of prompts, or a ValueError if one has positions beyond those that the language model knows."""
        limit = self.model.config.text_config.max_position_embeddings
        layout = self.model.layout(batch["input_ids"], batch["attention_mask"])
        longest = int(layout.position_ids.max()) + 1
        if longest > limit:
            raise ValueError(
                f"a prompt must have at most {limit} positions, the context of the language model, got {longest}; shorten the "
                "text (an image counts as three positions where its tokens share one)"
            )
        return batch

    # -- images and tokens ----------------------------------------------------------------------------------------------------

    def encode(self, images: Sequence[Any]) -> Tensor:
        """Tokens ``(n, N, C)``, or codes ``(n, N)``, of images: what the model reads. On the device of the model."""
        return self._codec.encode(images, self.device)

    def reconstruct(self, image: Any) -> Image.Image:
        """The image after the image tokenizer: the best that a drawn image can look like."""
        return self._codec.decode(self.encode([image]))[0]

    @property
    def _codec(self) -> PictureCodec:
        return PictureCodec(self.processor.image_processor, self.image_tokenizer, self.model.config.has_codes)

    # -- files ----------------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and processor into the folder, the image tokenizer into its subfolder ``image_tokenizer``.

        Which image tokenizer it is, what the model computes in and how images are drawn is written beside them.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.image_tokenizer.save_pretrained(folder / IMAGE_TOKENIZER_FOLDER)
        self.settings.save(folder)
        PipelineRecord(self.compute_dtype, self.image_tokenizer.identity).write(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: On disk.
            dtype: Of the model's weights; by default that of ``config.json``, so that a run with float32 masters over a frozen
                language model in bfloat16 is loaded in bfloat16 as a whole; ``torch.float32`` keeps the masters as they are,
                and is the default where ``compute_dtype`` is float32.
            compute_dtype: See the constructor; as saved by default.
            device: Where to put model and image tokenizer.

        Raises:
            FileNotFoundError: If a part is missing.
            ValueError: If the parts do not belong together; found before the weights of the model are read.
        """
        folder = Path(folder)
        record = PipelineRecord.read(folder)
        image_tokenizer = load_image_tokenizer(folder / IMAGE_TOKENIZER_FOLDER)
        processor = MMARProcessor.from_pretrained(folder)
        check_compatibility(stored_config(folder), processor, image_tokenizer)
        record.check(image_tokenizer)
        compute_dtype = record.compute_dtype if compute_dtype is None else compute_dtype
        if dtype is None and compute_dtype is torch.float32:  # it needs weights in float32
            dtype = torch.float32
        model = MMARForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        settings = ImageGenerationConfig.load(folder)
        return cls(model, processor, image_tokenizer, settings=settings, compute_dtype=compute_dtype).to(device)


def _images(image: Any) -> list[Any]:
    return list(image) if isinstance(image, list | tuple) else [image]


def _sources(seed: int | Sequence[int] | None, count: int) -> list[torch.Generator]:
    """One generator per image, drawn before the images are put into batches."""
    if isinstance(seed, Sequence):
        return row_generators([torch.Generator().manual_seed(one) for one in seed], count)
    return row_generators(None if seed is None else torch.Generator().manual_seed(seed), count)
