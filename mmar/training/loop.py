"""The training loop: one process or many, resumable to the last digit."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmar.data.loader import StreamLoader
from mmar.model import MMARForConditionalGeneration
from mmar.pipeline import MMARPipeline
from mmar.timestep_statistics import TimestepStatistics
from mmar.training import snapshot
from mmar.training.batches import Batch, Item
from mmar.training.build import build_parts
from mmar.training.checkpoint_folder import Checkpoint, check_writable, list_checkpoints, remove_unfinished, write_whole
from mmar.training.config import TrainingConfig, save_config
from mmar.training.ema import ExponentialMovingAverage
from mmar.training.feed import Feed
from mmar.training.log import RunLog, Throughput
from mmar.training.optimizer import learning_rate, make_optimizer
from mmar.training.parallel import Processes
from mmar.training.pictures import draw_grid
from mmar.training.sharding import Distributed
from mmar.training.sources import left_out_of
from mmar.training.step import GradientStep
from mmar.training.stop import StopRequest

FINAL = "final"
"""Folder of the finished pipeline, with averaged weights."""


class NonFiniteLoss(RuntimeError):
    """Too many steps had a loss that is not finite."""


class Trainer:
    """One run; under ``torchrun`` every rank makes one.

    Args:
        config: Of the run.
        resume: Go on from the newest whole checkpoint of ``config.output``, if there is one.

    Raises:
        OSError: If nothing can be written to ``config.output``.
        ValueError: If the folder holds checkpoints and ``resume`` is not asked for, or the parts do not fit.
    """

    def __init__(self, config: TrainingConfig, *, resume: bool = False) -> None:
        self.config, self.folder = config, Path(config.output)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.processes = Processes()
        self.processes.on_main(lambda: _check_folder(self.folder, resume))
        self.parts = build_parts(config)
        self.model: MMARForConditionalGeneration = self.parts.model.train()
        self.frozen = snapshot.frozen_digest(self.model)
        self.parts.image_tokenizer.to(self.processes.device)
        is_bf16 = config.precision == "bf16" and config.stage != "text"  # which trains norms too; they stay float32
        self.distributed = Distributed(
            self.model, self.processes, config.sharding, gather_dtype=torch.bfloat16 if is_bf16 else None
        )
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.ema = ExponentialMovingAverage(self.model, config.ema) if config.ema else None
        self.statistics = self._make_statistics()
        self.feed = Feed(config, self.parts, self.processes)
        self.step, self.nan_steps = 0, 0
        self.flops: float | None = None
        if resume:
            self._resume()
        self.distributed.ready()
        self.gradients = GradientStep(config, self.distributed, self.processes, self.statistics)

    @property
    def loader(self) -> StreamLoader[Item, list[Item]]:
        """Reads examples."""
        return self.feed.loader

    # -- the loop -------------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the end, or until a signal to any rank, and save.

        Returns:
            The folder of the finished pipeline, or of the last checkpoint if a signal came.

        Raises:
            NonFiniteLoss: After ``max_nan`` steps whose loss is not finite; the last batch is saved.
            OSError: If a checkpoint cannot be written.
        """
        config, saving, is_main = self.config, self.config.saving, self.processes.is_main
        if is_main:
            save_config(config, self.folder / "config.yaml")
        log = RunLog(self.folder, steps=config.steps, first=self.step, tensorboard=saving.tensorboard) if is_main else None
        meter, items = Throughput(), iter(self.loader)
        try:
            with StopRequest() as stop:
                while self.step < config.steps:
                    values = self._step(items, meter)
                    if log is not None:
                        log.tick(loss=values["loss"], text=values["text_loss"], image=values["image_loss"])
                        if self.step % saving.log_every == 0 or self.step == config.steps:
                            log.line(self.step, **values, **meter.read(self.flops))
                    asked = self.processes.anyone(stop.asked is not None)
                    if asked or self.step % saving.every == 0 or self.step == config.steps:
                        path = self._save()
                    if asked:
                        if log is not None:
                            log.say(f"{stop.asked or 'a signal'}: saved {path}; go on with --resume")
                        return path
                    if saving.samples_every and self.step % saving.samples_every == 0:
                        self._draw(log)  # after the checkpoint: a drawing that fails costs no step
            return self._finish(log)
        finally:
            if log is not None:
                log.close()

    def close(self) -> None:
        """Let go of the model. The process group stays, for another run; see :func:`mmar.training.parallel.leave`."""
        self.distributed.release()
        self.model, self.optimizer, self.ema, self.gradients = None, None, None, None  # type: ignore[assignment]
        self.parts = None  # type: ignore[assignment]
        self.feed.parts = None  # type: ignore[assignment]
        gc.collect()

    def _step(self, items: Iterator[list[Item]], meter: Throughput) -> dict[str, float]:
        """One optimizer step."""
        start = time.perf_counter()
        batches = self.feed.batches(items, self.step)
        read = time.perf_counter() - start
        if self.flops is None:
            self.flops = self._count_flops(batches[0])
        found = self.gradients.run(batches)
        lr = learning_rate(self.config.optimizer, self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.processes.anyone(not found.is_finite):
            self._complain(batches)
        else:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.model)
        self.optimizer.zero_grad()
        self.step += 1
        meter.add(self.feed.plan.size, sum(batch.tokens for batch in batches) * self.processes.size, read)
        return {
            "loss": found.text_loss + float(self.model.config.image_loss_weight) * found.image_loss,
            "text_loss": found.text_loss,
            "image_loss": found.image_loss,
            "grad_norm": found.norm,
            "lr": lr,
            "text_tokens": found.text_tokens,
            "image_tokens": found.image_tokens,
        }

    def _count_flops(self, batch: Batch) -> float:
        return self.gradients.count_flops(batch)

    def _trained(self) -> list[torch.nn.Parameter]:
        return self.gradients.trained()

    # -- between steps --------------------------------------------------------------------------------------------------------

    def _complain(self, batches: list[Batch]) -> None:
        """Count a step without a finite loss; at last, save what caused it and stop."""
        self.nan_steps += 1
        if self.nan_steps < self.config.max_nan:
            return
        path = self.folder / f"not-finite-step-{self.step:09d}-rank-{self.processes.rank}"
        path.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            save_file({k: v.detach().cpu().contiguous() for k, v in batch.inputs.items()}, path / f"batch-{number}.safetensors")
            (path / f"batch-{number}.json").write_text(json.dumps({"step": self.step, "keys": batch.keys}))
        raise NonFiniteLoss(
            f"the loss must be finite, got {self.nan_steps} steps that were not; the last batch is in {path}. Lower the "
            "learning rate, or take the images out that it names, then go on from the last checkpoint with --resume"
        )

    def _draw(self, log: RunLog | None) -> None:
        """A sample grid with averaged weights; rank 0 draws, on its device."""
        if self.config.stage != "joint" or self.model.config.image_objective == "understanding_only":
            return
        with self._averaged():
            whole = self.distributed.whole()
            path = self.processes.on_main(
                lambda: draw_grid(self._pipeline(whole), self.config, self.folder, self.step)  # type: ignore[arg-type]
            )
        self.model.train()
        if log is not None:
            log.say(f"step {self.step}: {path}")

    def _save(self) -> Path:
        statistics = self._gathered_statistics()
        state = {
            "ema_updates": 0 if self.ema is None else self.ema.updates,
            "nan_steps": self.nan_steps,
            "frozen": self.frozen,
            **self.feed.state_dict(),
            "config": asdict(self.config),
        }
        return snapshot.save(
            self.folder,
            self.step,
            snapshot.trained_tensors(self.model, self.optimizer, self.ema),
            {"statistics": statistics} if statistics else {},
            state,
            keep=self.config.saving.keep,
            processes=self.processes,
            is_sharded=self.distributed.is_sharded,
        )

    def _resume(self) -> None:
        checkpoint = snapshot.newest(self.folder, self.processes)
        if checkpoint is None:
            self.processes.say(f"{self.folder} holds no whole checkpoint: starting anew")
            return
        self._load(checkpoint)
        self.processes.say(f"resumed {checkpoint.path} at step {self.step}")

    def _load(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state.get("frozen", self.frozen) != self.frozen:  # older checkpoints do not say
            raise ValueError(
                f"{checkpoint.path} must be of this model, but was trained beside other frozen weights; give the qwen2, "
                "language_model or checkpoint of the run, unchanged, or choose another output folder"
            )
        snapshot.restore(checkpoint, self.model, self.optimizer, self.ema)
        if self.statistics is not None and "statistics" in checkpoint.tensors and self.processes.is_main:
            self.statistics.load_state_dict(checkpoint.tensors["statistics"])
        self.step, self.nan_steps = checkpoint.step, checkpoint.state["nan_steps"]
        self.feed.load_state_dict(checkpoint.state, checkpoint.step)

    def _finish(self, log: RunLog | None) -> Path:
        """Save the pipeline with averaged weights, and say what was left out."""
        path = self.folder / FINAL
        with self._averaged():
            whole = self.distributed.whole()
            self.processes.on_main(lambda: write_whole(path, self._pipeline(whole).save_pretrained))  # type: ignore[arg-type]
        if log is not None:
            log.say(f"data: {self.loader.skipped}")
            for skipped in left_out_of(self.loader.stream):
                log.say(f"data, before the first epoch: {skipped}")
            if self.feed.maker.left_out:
                log.say(f"rows left out: {dict(self.feed.maker.left_out)}")
        return path

    # -- parts ----------------------------------------------------------------------------------------------------------------

    def _averaged(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.ema is None else self.ema.applied(self.model)

    def _pipeline(self, model: MMARForConditionalGeneration) -> MMARPipeline:
        dtype = torch.float32 if self.config.precision == "float32" else torch.bfloat16
        return MMARPipeline(model.eval(), self.parts.processor, self.parts.image_tokenizer, compute_dtype=dtype)

    def _make_statistics(self) -> TimestepStatistics | None:
        has_timesteps = self.model.config.image_objective.endswith("_diffusion") and self.config.stage == "joint"
        return TimestepStatistics(self.model.config.schedule_config.build()) if has_timesteps else None

    def _gathered_statistics(self) -> dict[str, Tensor]:
        """Sums over all ranks; what was taken up from a checkpoint is with rank 0 alone, and counted once."""
        own = {} if self.statistics is None else self.statistics.state_dict()
        return {name: self.processes.sum_tensor(value) for name, value in own.items()}


def _check_folder(folder: Path, resume: bool) -> None:
    check_writable(folder)
    remove_unfinished(folder)
    if list_checkpoints(folder) and not resume:
        raise ValueError(f"output must be a new folder, got {folder} with checkpoints; add --resume, or choose another")


def train(config: TrainingConfig, *, resume: bool = False) -> Path:
    """Run a configuration; see :class:`Trainer`.

    Under ``torchrun`` a program ends with :func:`mmar.training.parallel.leave`.
    """
    trainer = Trainer(config, resume=resume)
    try:
        return trainer.run()
    finally:
        trainer.close()
