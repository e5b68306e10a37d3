"""Text after images: transformers' ``generate()`` for MMAR, and many questions about an image that is read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.generation import LogitsProcessor, LogitsProcessorList

from mmar.config import MMARConfig
from mmar.layout import ImageIds, SequenceLayout

if TYPE_CHECKING:
    from mmar.model import MMARForConditionalGeneration


class NoImageMarkers(LogitsProcessor):
    """Text holds no image tokens: their ids are never generated."""

    def __init__(self, ids: ImageIds) -> None:
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(B, V)`` scores with -inf at the three ids."""
        markers = torch.tensor([self.ids.image, self.ids.boi, self.ids.eoi], device=scores.device)
        return scores.index_fill(1, markers[markers < scores.shape[1]], -torch.inf)


class TextGenerationMixin(GenerationMixin):
    """``generate()`` of a model that has ``layout`` and ``image_ids``.

    transformers takes a class for generative by its name: it must end in GenerationMixin.
    """

    if TYPE_CHECKING:
        config: MMARConfig
        image_ids: ImageIds
        layout: Callable[[Tensor, Tensor | None], SequenceLayout]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        image_tokens: Tensor | None = None,
        image_timesteps: Tensor | None = None,
        position_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **options: Any,
    ) -> Any:
        """Continue rows of text and images with text.

        Greedy, sampled, by beams, with ``num_return_sequences``, streamed: all that transformers' ``generate`` does.

        Args:
            input_ids: ``(B, L)`` as in ``forward``; prompts of different lengths are padded left.
            attention_mask: ``(B, L)``, 0 on padding; None: no padding.
            image_tokens: As in ``forward``: ``(n, N, ...)`` of all images, or ``(B, I, N, ...)`` by row.
            image_timesteps: ``(n,)``, as in ``forward``; one sequence per row then.
            position_ids: ``(B, L)``; needed only beside a filled ``past_key_values`` of which ``input_ids`` is the rest.
            generation_config: As in transformers; what it leaves open is taken from ``model.generation_config``.
            logits_processor: Further processors; image tokens are never generated in any case.
            **options: What transformers' ``generate`` takes: ``max_new_tokens``, ``num_beams``, ``do_sample``, ...

        Returns:
            As in transformers: ``(B * num_return_sequences, L + new)`` ids, prompts included.

        Raises:
            ValueError: If rows are padded on the right, pads are not marked, or images do not fit the rows.
        """
        attention_mask = self._mask_of_prompts(input_ids, attention_mask)
        if position_ids is None:
            position_ids = self._positions_of_prompts(input_ids, attention_mask)
        if image_tokens is not None:
            self._check_options(image_timesteps, generation_config, options)
        images = {
            "image_tokens": None if image_tokens is None else self._by_row(input_ids, image_tokens),
            "image_timesteps": image_timesteps,
        }
        return super().generate(
            input_ids,
            generation_config=generation_config,
            logits_processor=LogitsProcessorList([NoImageMarkers(self.image_ids), *(logits_processor or [])]),
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{name: value for name, value in images.items() if value is not None},
            **options,
        )

    def prepare_inputs_for_generation(  # noqa: D102 - see transformers
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,  # transformers looks for this very name
    ) -> dict[str, Any]:
        if not is_first_iteration and kwargs.get("use_cache", True):  # by now the cache holds the images
            for name in ("image_tokens", "image_timesteps", "generator"):
                kwargs.pop(name, None)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length, past_key_values, attention_mask, inputs_embeds, is_first_iteration, **kwargs
        )
        return inputs

    def _mask_of_prompts(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            pad = self.generation_config.pad_token_id
            if pad is not None and len(input_ids) > 1 and bool((input_ids[:, 0] == pad).any()):
                raise ValueError(
                    f"attention_mask must be given where rows start with the padding token {pad}, got None; it comes with "
                    "input_ids from the processor"
                )
            return torch.ones_like(input_ids)
        if not bool(mask[:, -1].all()):
            raise ValueError(
                "attention_mask must be 1 in the last column, got 0: text continues where a row ends; pad prompts left "
                "(padding_side='left')"
            )
        return mask

    def _positions_of_prompts(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """As the model lays them out: transformers would count every image token."""
        if mask.shape != input_ids.shape:
            raise ValueError(
                f"position_ids must be given where attention_mask {tuple(mask.shape)} covers a cache beyond input_ids "
                f"{tuple(input_ids.shape)}, got None; continue from the last position of what is cached, where a whole image "
                "takes one"
            )
        return self.layout(input_ids, mask).position_ids

    def _by_row(self, input_ids: Tensor, image_tokens: Tensor) -> Tensor:
        """``(n, N, ...)`` to ``(B, I, N, ...)``, so that transformers repeats images with their rows."""
        if image_tokens.ndim != (2 if self.config.has_codes else 3):
            return image_tokens  # grouped already, or refused by forward
        per_row = (input_ids == self.image_ids.boi).sum(-1)  # (B,)
        if len(image_tokens) != int(per_row.sum()):
            raise ValueError(
                f"image_tokens must hold the {int(per_row.sum())} images of input_ids, got {len(image_tokens)}; "
                "one per image block"
            )
        filled = torch.arange(int(per_row.max()), device=per_row.device) < per_row[:, None]  # (B, I)
        grouped = image_tokens.new_zeros(*filled.shape, *image_tokens.shape[1:])
        grouped[filled.to(grouped.device)] = image_tokens
        return grouped

    def _check_options(
        self, image_timesteps: Tensor | None, generation_config: GenerationConfig | None, options: Mapping[str, Any]
    ) -> None:
        """What images do not go with. An image that is read through noise is read once: beams must see the same noise."""
        cache = generation_option(self, "cache_implementation", generation_config, options)
        if cache is not None and "static" in cache:
            raise ValueError(f"cache_implementation must be dynamic (the default) for rows with images, got {cache!r}")
        chunk = generation_option(self, "prefill_chunk_size", generation_config, options)
        if chunk is not None:
            raise ValueError(f"prefill_chunk_size must be None for rows with images, got {chunk}; an image is read as a whole")
        copies, cached = copies_per_row(self, generation_config, options), options.get("use_cache", True)
        if image_timesteps is not None and (copies > 1 or not cached):
            raise ValueError(
                "image_timesteps must come with a cache and one sequence per row, got num_beams or num_return_sequences = "
                f"{copies} and use_cache = {cached}; use answer_questions"
            )


def copies_per_row(model: GenerationMixin, generation_config: GenerationConfig | None, options: Mapping[str, Any]) -> int:
    """How many rows ``generate`` makes of one: the larger of beams and returned sequences."""
    names = ("num_beams", "num_return_sequences")
    return max(int(generation_option(model, name, generation_config, options) or 1) for name in names)


def generation_option(
    model: GenerationMixin, name: str, generation_config: GenerationConfig | None, options: Mapping[str, Any]
) -> Any:
    """An option as ``generate`` finds it: in its keywords, its configuration, the model's configuration."""
    if options.get(name) is not None:
        return options[name]
    given = None if generation_config is None else getattr(generation_config, name)
    return getattr(model.generation_config, name) if given is None else given


@torch.no_grad()
def answer_questions(
    model: MMARForConditionalGeneration,
    input_ids: Tensor,
    questions: Sequence[Sequence[Tensor]],
    attention_mask: Tensor | None = None,
    *,
    image_tokens: Tensor | None = None,
    image_timesteps: Tensor | None = None,
    generator: torch.Generator | None = None,
    generation_config: GenerationConfig | None = None,
    **options: Any,
) -> list[list[Tensor]]:
    """Answer several questions about images that are read once.

    The prefix of each row (instructions, images) fills a cache; its keys and values are copied for each question. The answers
    are those of :meth:`TextGenerationMixin.generate` on each whole prompt.

    Args:
        model: Of which the text model is run twice: on the prefixes, then on all questions as one batch.
        input_ids: ``(B, P)`` prefixes, padded left.
        questions: For each prefix the rest of its prompts, ``(length,)`` long each; without images.
        attention_mask: ``(B, P)``, 0 on padding; None: no padding.
        image_tokens: Images of the prefixes, as in ``forward``.
        image_timesteps: ``(n,)``, as in ``forward``. All questions about an image see it through the same noise.
        generator: Source of that noise.
        generation_config: As in ``generate``.
        **options: As in ``generate``; one sequence is returned per question.

    Returns:
        For each prefix and question the new ids, up to the first end token, which is included.

    Raises:
        ValueError: If questions do not fit the prefixes, or several sequences per question are asked for.
    """
    _check_questions(model, input_ids, questions, generation_config, options)
    asked = [question.to(input_ids.device) for group in questions for question in group]
    if not asked:
        return [[] for _ in questions]
    mask = model._mask_of_prompts(input_ids, attention_mask)
    position_ids = model.layout(input_ids, mask).position_ids  # (B, P)
    cache = DynamicCache(config=model.config.text_config)
    model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=cache,
        image_tokens=image_tokens,
        image_timesteps=image_timesteps,
        generator=generator,
        use_cache=True,
        logits_to_keep=1,
    )
    row = torch.repeat_interleave(torch.tensor([len(group) for group in questions])).to(input_ids.device)  # (R,)
    cache.batch_select_indices(row.repeat_interleave(copies_per_row(model, generation_config, options)))
    ids, asked_mask = padded_left(asked, model.generation_config.pad_token_id or 0)  # (R, S)
    after = position_ids[row, -1:] + asked_mask.cumsum(-1).clamp_min(1)  # (R, S)
    output = model.generate(
        torch.cat([input_ids[row], ids], -1),  # (R, P + S): penalties of repetition see the whole prompt
        torch.cat([mask[row], asked_mask], -1),
        position_ids=torch.cat([position_ids[row], after], -1),
        past_key_values=cache,
        generation_config=generation_config,
        **options,
    )
    sequences = output if isinstance(output, Tensor) else output.sequences
    ends = generation_option(model, "eos_token_id", generation_config, options)
    answers = iter([_up_to_end(new, ends) for new in sequences[:, input_ids.shape[1] + ids.shape[1] :]])
    return [[next(answers) for _ in group] for group in questions]


def shared_prefix(prompts: Sequence[Tensor]) -> int:
    """How many ids all prompts ``(length,)`` have in common at the start, so that at least one is left of each."""
    limit = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0][:limit]
    same = torch.stack([prompt[:limit] == first for prompt in prompts]).all(0)  # (limit,)
    return limit if bool(same.all()) else int(same.int().argmin())


def padded_left(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows ``(length,)`` of ids as ``(R, S)`` ids and mask, padded left as ``generate`` needs it."""
    ids = pad_sequence(list(rows), batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids, mask


def _check_questions(
    model: MMARForConditionalGeneration,
    input_ids: Tensor,
    questions: Sequence[Sequence[Tensor]],
    generation_config: GenerationConfig | None,
    options: Mapping[str, Any],
) -> None:
    if len(questions) != len(input_ids):
        raise ValueError(f"questions must be a list for each of {len(input_ids)} prefixes, got {len(questions)} lists")
    for question in (question for group in questions for question in group):
        if question.ndim != 1 or not len(question):
            raise ValueError(f"a question must hold ids (length,), at least one, got shape {tuple(question.shape)}")
        if bool((question == model.image_ids.boi).any()):
            raise ValueError(f"a question must be text, got an image ({model.image_ids.boi}); put images into the prefix")
    sequences = generation_option(model, "num_return_sequences", generation_config, options) or 1
    if sequences > 1:
        raise ValueError(f"num_return_sequences must be 1, got {sequences}; repeat the question")


def _up_to_end(new: Tensor, ends: int | list[int] | None) -> Tensor:
    """Ids up to the first end, which is included; behind it ``generate`` pads to the longest answer."""
    is_end = torch.isin(new, torch.tensor([] if ends is None else ends, device=new.device, dtype=new.dtype))
    return new[: int(is_end.int().argmax()) + 1] if bool(is_end.any()) else new
