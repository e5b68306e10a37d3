"""Training on four pairs: the language model on text alone, then frozen; then everything else on images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.overfit.pairs import Pairs
from mmar.config import MMARConfig
from mmar.masking import MaskRatio, draw_known
from mmar.model import MMARForConditionalGeneration
from mmar.precision import autocast

Tick = Callable[[int], None]


def teach_text(model: MMARForConditionalGeneration, pairs: Pairs, steps: int, tick: Tick) -> float:
    """Train the language model on questions and answers without images, as its own pretraining would; last loss, nats.

    Every answer is right for some image, so what it learns is which answers a question may have, not which one is due.
    """
    backbone = [p for n, p in model.named_parameters() if n.startswith("language_model.") and "lora_" not in n]
    batch = pairs.processor.training_batch([_as_text(turns) for turns in pairs.questions])
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = input_ids.masked_fill(mask == 0, -100)
    optimizer = torch.optim.AdamW((p.requires_grad_() for p in backbone), lr=2e-3)
    loss = torch.tensor(torch.nan)
    for _ in range(steps):
        with autocast("cpu", torch.bfloat16):
            loss = model(input_ids, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        model.zero_grad()
        tick(1)
    model.freeze()
    return float(loss.detach())


def teach_images(
    model: MMARForConditionalGeneration, pairs: Pairs, *, steps: int, copies: int, lr: float, seed: int, tick: Tick
) -> dict[str, list[float]]:
    """Draw and read the four images until they are known by heart, with the paper's two stages; losses every step."""
    batch = pairs.processor.training_batch(pairs.drawing() * copies + pairs.reading())
    tokens = torch.cat([pairs.tokens] * copies + [pairs.tokens.repeat_interleave(len(pairs.questions[0]), 0)])
    targets: Tensor = batch["image_targets"]
    rows = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    g = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    losses: dict[str, list[float]] = {"text": [], "image": []}
    for step in range(steps):
        ratio = MaskRatio.stage1() if step < steps // 2 else MaskRatio.stage2()  # both draw all 16 tokens masked in a quarter
        known = draw_known(len(tokens), tokens.shape[1], ratio.sample(g), g) | ~targets[:, None]
        with autocast("cpu", torch.bfloat16):
            output = model(**rows, image_tokens=tokens, known=known, generator=g)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        losses["text"].append(float(output.text_loss.detach()))
        losses["image"].append(float(output.image_loss.detach()))
        tick(1)
    return losses


def _as_text(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [message for q, a in turns for message in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


def build(prediction_type: str, *, timesteps_per_token: int, seed: int) -> MMARForConditionalGeneration:
    """A model of the digits' size."""
    torch.manual_seed(seed)
    head = {"prediction_type": prediction_type, "timesteps_per_token": timesteps_per_token}
    start = {"initializer_range": 0.02, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}  # Qwen2's own
    config = MMARConfig.preset("mmar-digits", diffusion_head_config=head, text_config=start)
    return MMARForConditionalGeneration(config).train()
