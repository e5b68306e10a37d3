"""Text and images to the rows of placeholders that the model reads: prompts, training batches, and text back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mmar.config import MMARConfig
from mmar.processing.chat import (
    GENERATION_PROMPT,
    IMAGE,
    QUESTION_PROMPT,
    QWEN2_SYSTEM_PROMPT,
    ChatFormat,
    GenerationSample,
    Message,
    UnderstandingSample,
    images_of,
    render,
)
from mmar.processing.chat import chat_template as default_template
from mmar.processing.errors import checked_list, located
from mmar.processing.image_processor import MMARImageProcessor, pixel_channels
from mmar.processing.rendered import check_options, check_placeholders, check_template
from mmar.processing.rows import Row, RowEncoder, Sample, Side, Truncation, check_length, fitted
from mmar.processing.text_tokenizer import check_tokenizer


class MMARProcessor(ProcessorMixin):
    """Tokenizer, image processor and chat format of a model.

    :meth:`for_generation`, :meth:`for_understanding` and :meth:`training_batch` take captions, questions and images, and read
    what stands in a text as text: a control token typed by a user has no effect. Calling the processor is Hugging Face's way:
    it takes texts that were rendered already, with one ``<|vision_start|><|image_pad|><|vision_end|>`` per image.

    Args:
        image_processor: Makes pixel values.
        tokenizer: With the markers of the chat format and the tokens of images.
        chat_template: Jinja template of ``apply_chat_template``; by default that of the chat format. It must render the same.
        tokens_per_image: Placeholders of an image, ``config.image_config.count``.
        system_prompt: See :class:`mmar.processing.chat.ChatFormat`.
        generation_prompt: As above.
        question_prompt: As above.
    """

    text_kwargs = {"padding": True, "return_tensors": "pt"}  # noqa: RUF012 - as transformers spells it
    images_kwargs = {"return_tensors": "pt"}  # noqa: RUF012

    def __init__(
        self,
        image_processor: MMARImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        tokens_per_image: int = 256,
        system_prompt: str | None = QWEN2_SYSTEM_PROMPT,
        generation_prompt: str = GENERATION_PROMPT,
        question_prompt: str = QUESTION_PROMPT,
    ) -> None:
        self.chat = ChatFormat(system_prompt, generation_prompt, question_prompt)
        self.system_prompt, self.generation_prompt, self.question_prompt = system_prompt, generation_prompt, question_prompt
        self.tokens_per_image = tokens_per_image
        template = default_template(system_prompt) if chat_template is None else chat_template
        check_template(template, system_prompt)
        super().__init__(image_processor, tokenizer, chat_template=template)
        self.image_token, self.image_token_id = IMAGE, self._encoder().control[IMAGE]

    @classmethod
    def from_config(
        cls,
        config: MMARConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: ChatFormat | None = None,
        channels: int | None = None,
        do_resize: bool = True,
        resample: str = "bicubic",
    ) -> Self:
        """A processor for a model: image size and tokens per image from ``config.image_config``.

        Args:
            config: Of the model.
            tokenizer: Of text.
            chat: The words around captions and questions.
            channels: Colours of a pixel. None: 1 where the image tokenizer is ``patches`` and a token has as many channels as a
                patch has pixels, else 3; a grey image tokenizer of another kind has to be told.
            do_resize: See :class:`MMARImageProcessor`.
            resample: As above.

        Raises:
            ValueError: If the tokenizer does not fit the configuration; see :func:`check_tokenizer`.
        """
        check_tokenizer(tokenizer, config)
        image: Any = config.image_config
        chat = ChatFormat() if chat is None else chat
        channels = pixel_channels(image) if channels is None else channels
        pixels = MMARImageProcessor(image.image_size, channels, do_resize=do_resize, resample=resample)
        prompts = (chat.system_prompt, chat.generation_prompt, chat.question_prompt)
        return cls(pixels, tokenizer, None, image.count, *prompts)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode rendered texts and their images; ``apply_chat_template(..., tokenize=True)`` comes here.

        Control tokens count in ``text``. Where a part of it was typed by somebody else, use the other methods, or
        ``apply_chat_template(..., sanitize_control_tokens=True)``.

        Args:
            images: Images of all texts in order; if grouped by text in lists, each text must have as many placeholders.
            text: One text or several.
            videos: Refused.
            audio: Refused.
            **kwargs: padding, padding_side, max_length (an error beyond, never a cut), return_tensors, input_data_format and
                what ``apply_chat_template`` passes on.

        Returns:
            ``input_ids``, ``attention_mask (B, L)`` and ``pixel_values (n, C, H, W)``, images in row-major order.

        Raises:
            TypeError: If an option is unknown or a text is no string.
            ValueError: If placeholders and images differ in number, a marker of images stands outside a placeholder, there is
                nothing to encode, or a text is too long.
        """
        check_options(kwargs)
        length = kwargs.get("max_length") if kwargs.get("padding") == "max_length" else kwargs.pop("max_length", None)
        options = {**kwargs, "truncation": False}
        batch = super().__call__(images=images, text=text, videos=videos, audio=audio, **options)
        if length is not None and text is not None:
            for i, row in enumerate(batch["attention_mask"]):
                check_length(int(sum(row)), length, f"text {i}")
        return batch

    def for_generation(
        self,
        captions: Sequence[str | None],
        *,
        max_length: int | None = None,
        truncation: Truncation | None = None,
        padding_side: Side = "left",
    ) -> BatchFeature:
        """Prompts that end with the placeholders of the image to be drawn.

        Args:
            captions: One per image; None or an empty string: unconditional, as for classifier-free guidance.
            max_length: Tokens of a row at most.
            truncation: None: a longer row is an error; caption: its caption is shortened, with a warning.
            padding_side: left lets all images stand in the same columns.

        Returns:
            ``input_ids`` and ``attention_mask``, ``(B, L)`` long.
        """
        encoder, rows = self._encoder(), []
        build = partial(self._row, encoder, is_prompt=True)
        for i, caption in enumerate(checked_list(captions, "captions")):
            with located(f"captions[{i}]"):
                rows.append(fitted(GenerationSample(caption), build, self.tokenizer, max_length, truncation))
        return BatchFeature(encoder.pad(rows, padding_side))

    def for_understanding(
        self,
        images: Sequence[Any],
        questions: Sequence[str],
        *,
        max_length: int | None = None,
        padding_side: Side = "left",
    ) -> BatchFeature:
        """Prompts that end where the assistant's answer begins.

        Args:
            images: For each question an image or a list of images; None where the tokens of the image travel outside.
            questions: One per row.
            max_length: Tokens of a row at most.
            padding_side: left, as ``generate()`` needs it.

        Returns:
            ``input_ids``, ``attention_mask`` ``(B, L)`` and, unless all images are None, ``pixel_values (n, C, H, W)``.
        """
        questions, images = checked_list(questions, "questions"), checked_list(images, "images")
        if len(images) != len(questions):
            raise ValueError(f"images must be as many as questions, got {len(images)} and {len(questions)}; group by row")
        encoder, rows, flat = self._encoder(), [], []
        for i, (image, question) in enumerate(zip(images, questions, strict=True)):
            with located(f"questions[{i}]"):
                group = list(image) if isinstance(image, list | tuple) else [image]
                messages = UnderstandingSample(group, [(question, None)]).messages(self.chat)
                row = encoder.encode(render(messages, system_prompt=self.system_prompt, add_generation_prompt=True))
                check_length(len(row.ids), max_length, "the row")
            rows.append(row)
            flat += group
        return BatchFeature({**encoder.pad(rows, padding_side), **self._pixel_values(flat)})

    def training_batch(
        self,
        samples: Sequence[Sample],
        *,
        max_length: int | None = None,
        truncation: Truncation | None = None,
        padding_side: Side = "right",
    ) -> BatchFeature:
        """Rows with labels, of any mixture of samples.

        Args:
            samples: Generation samples, understanding samples, and conversations as lists of messages.
            max_length: Tokens of a row at most.
            truncation: None: a longer row is an error; caption: the caption of a generation sample is shortened, with a
                warning. Conversations are never shortened.
            padding_side: right or left.

        Returns:
            - ``input_ids``, ``attention_mask`` ``(B, L)`` long.
            - ``labels (B, L)``: the token itself on answers after an image and on the ``<|im_end|>`` of each, -100 elsewhere;
              not shifted.
            - ``image_targets (n,)`` bool: the images to be generated; the others are read. Row-major, as ``image_tokens``.
            - ``pixel_values (n, C, H, W)``, unless no image was given.
        """
        encoder, rows, flat = self._encoder(), [], []
        build = partial(self._row, encoder)
        for i, sample in enumerate(checked_list(samples, "samples")):
            with located(f"samples[{i}]"):
                rows.append(fitted(sample, build, self.tokenizer, max_length, truncation))
                flat += images_of(self._messages(sample))
        targets = torch.tensor([target for row in rows for target in row.image_targets], dtype=torch.bool)
        text = {**encoder.pad(rows, padding_side), "labels": encoder.pad_labels(rows, padding_side)}
        return BatchFeature({**text, "image_targets": targets, **self._pixel_values(flat)})

    def faults(self, samples: Sequence[Sample], *, max_length: int | None = None) -> list[ValueError | TypeError | None]:
        """What :meth:`training_batch` would raise for each sample by itself, None where nothing; images are not looked at."""
        encoder, found = self._encoder(), []
        build = partial(self._row, encoder)
        for sample in samples:
            fault: ValueError | TypeError | None = None
            try:
                fitted(sample, build, self.tokenizer, max_length, None)
            except (ValueError, TypeError) as error:
                fault = error
            found.append(fault)
        return found

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        """Text of one row of ids, without control tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True) -> list[str]:
        """Texts of several rows of ids, without control tokens."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What one placeholder in a rendered text becomes; called by the base class."""
        return IMAGE * self.tokens_per_image

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> None:
        """Check a call; the base class hands over lists, and texts without the control tokens that it neutralised."""
        if videos is not None or audio is not None:
            raise ValueError("videos and audio must be None, got one of them; the model reads and draws images")
        if images is None and text is None:
            raise ValueError("text or images must be given, got neither")
        if text is None:
            return
        if not text or not all(isinstance(row, str) for row in text):
            raise TypeError(f"text must be a string or a list of at least one string, got {text!r:.80}")
        images = [] if images is None else images if isinstance(images, list) else [images]
        check_placeholders(text, images)

    def _encoder(self) -> RowEncoder:
        """Made for each batch: as an attribute it would be copied, with the vocabulary, whenever the processor is saved."""
        return RowEncoder(self.tokenizer, self.tokens_per_image)

    def _messages(self, sample: Sample) -> Sequence[Message]:
        return sample.messages(self.chat) if isinstance(sample, GenerationSample | UnderstandingSample) else sample

    def _row(self, encoder: RowEncoder, sample: Sample, *, is_prompt: bool = False) -> Row:
        """A whole conversation, or without the end of its last turn."""
        pieces = render(self._messages(sample), system_prompt=self.system_prompt)
        return encoder.encode(pieces[:-2] if is_prompt else pieces)

    def _pixel_values(self, images: list[Any]) -> dict[str, Tensor]:
        given = [image is not None for image in images]
        if not any(given):
            return {}
        if not all(given):
            raise ValueError(
                f"images must be given for all placeholders or for none, got {sum(given)} of {len(given)}; "
                "batch samples with images apart from those whose image tokens travel outside"
            )
        pixels: Tensor = self.image_processor(images)["pixel_values"]
        if len(pixels) != len(images):
            raise ValueError(f"an image must be one image, got {len(pixels)} in {len(images)} places; pass arrays one by one")
        return {"pixel_values": pixels}
