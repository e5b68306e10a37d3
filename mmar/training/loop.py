"""The training loop: one process or many, resumable to the last digit."""

from __future__ import annotations

import gc
import json
import math
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmar.data.loader import StreamLoader
from mmar.data.order import StreamSettings
from mmar.masking import MaskRatio
from mmar.pipeline import MMARPipeline
from mmar.timestep_statistics import TimestepStatistics
from mmar.training.attention import attention_kernel
from mmar.training.batches import Batch, BatchMaker, Item
from mmar.training.build import Parts, build_parts
from mmar.training.checkpoint_folder import Checkpoint, check_writable, list_checkpoints, load_latest, save_checkpoint
from mmar.training.config import TrainingConfig, save_config
from mmar.training.ema import ExponentialMovingAverage
from mmar.training.log import RunLog, Throughput
from mmar.training.mixture import TEXT, Mixture
from mmar.training.optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from mmar.training.pictures import draw_grid
from mmar.training.sources import make_stream
from mmar.training.stop import StopRequest
from mmar.training.tasks import TaskPlan, places

FINAL = "final"
"""Folder of the finished pipeline, with averaged weights."""


class NonFiniteLoss(RuntimeError):
    """Too many steps had a loss that is not finite."""


def as_list(items: list[Item]) -> list[Item]:
    """Batches are made in the main process, where the image tokenizer is."""
    return items


class Trainer:
    """One run.

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
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        if self.accelerator.is_main_process:
            check_writable(self.folder)
            if list_checkpoints(self.folder) and not resume:
                raise ValueError(
                    f"output must be a new folder, got {self.folder} with checkpoints; add --resume, or choose another"
                )
        parts = build_parts(config)
        self.parts, self.model = parts, parts.model.to(self.device).train()
        parts.image_tokenizer.to(self.device)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.ema = ExponentialMovingAverage(self.model, config.ema) if config.ema else None
        self.statistics = self._make_statistics()
        self.maker = self._make_maker()
        self.plan = TaskPlan(Mixture({TEXT: 1.0} if config.stage == "text" else config.tasks), self.global_batch, config.seed)
        self.loader = self._make_loader(parts)
        self.step, self.nan_steps = 0, 0
        self.flops: float | None = None
        if resume:
            self._resume()
        self.wrapped = self.accelerator.prepare_model(self.model) if self.world_size > 1 else self.model

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self.config.batch_size * self.config.accumulation * self.world_size

    # -- the loop -------------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the end, or until a signal, and save.

        Returns:
            The folder of the finished pipeline, or of the last checkpoint if a signal came.

        Raises:
            NonFiniteLoss: After ``max_nan`` steps whose loss is not finite; the last batch is saved.
            OSError: If a checkpoint cannot be written.
        """
        config, saving = self.config, self.config.saving
        if self.accelerator.is_main_process:
            save_config(config, self.folder / "config.yaml")
        log = RunLog(self.folder, steps=config.steps, first=self.step, tensorboard=saving.tensorboard) if self._writes else None
        meter, items = Throughput(), iter(self.loader)
        try:
            with StopRequest() as stop:
                while self.step < config.steps:
                    values = self._step(items, meter)
                    if log is not None:
                        log.tick(loss=values["loss"], text=values["text_loss"], image=values["image_loss"])
                        if self.step % saving.log_every == 0 or self.step == config.steps:
                            log.line(self.step, **values, **meter.read(self.flops))
                    if saving.samples_every and self.step % saving.samples_every == 0:
                        self._draw(log)
                    asked = self._anyone(stop.asked is not None)
                    if asked or self.step % saving.every == 0 or self.step == config.steps:
                        path = self._save()
                    if asked:
                        if log is not None:
                            log.say(f"{stop.asked or 'a signal'}: saved {path}; go on with --resume")
                        return path
            return self._finish(log)
        finally:
            if log is not None:
                log.close()

    def close(self) -> None:
        """Leave the process group; without this, gloo's threads may abort the interpreter at its exit."""
        self.model, self.optimizer, self.wrapped = None, None, None  # type: ignore[assignment]
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _step(self, items: Any, meter: Throughput) -> dict[str, float]:
        """One optimizer step."""
        start = time.perf_counter()
        batches = self._batches(items)
        read = time.perf_counter() - start
        if self.flops is None:
            self.flops = self._count_flops(batches[0])
        totals = self._sum([sum(b.text_count for b in batches), sum(b.image_count for b in batches)])
        losses = torch.zeros(2, dtype=torch.float64)
        finite = True
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with self.accelerator.no_sync(self.wrapped) if not last else _nothing():
                parts, good = self._backward(batch, totals)
            losses += parts
            finite = finite and good
        text, image = self._sum(losses.tolist())
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained(), self.config.optimizer.clip))
        lr = learning_rate(self.config.optimizer, self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        finite = not self._anyone(not (finite and math.isfinite(norm)))
        if finite:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.model)
        else:
            self._complain(batches)
        self.optimizer.zero_grad()
        self.step += 1
        tokens = sum(batch.tokens for batch in batches)
        meter.add(self.global_batch, tokens * self.world_size, read)
        weight = float(self.model.config.image_loss_weight)
        return {
            "loss": text + weight * image,
            "text_loss": text,
            "image_loss": image,
            "grad_norm": norm if math.isfinite(norm) else -1.0,
            "lr": lr,
            "text_tokens": totals[0],
            "image_tokens": totals[1],
        }

    def _backward(self, batch: Batch, totals: list[float]) -> tuple[Tensor, bool]:
        """Gradients of a micro-batch; its part of the two means over the whole step, and whether they are finite."""
        shares = [c / max(1.0, t) for c, t in zip((batch.text_count, batch.image_count), totals, strict=True)]
        weights = (shares[0] * self.world_size, shares[1] * self.world_size)  # DDP divides by the number of ranks
        arguments = {"timesteps_per_token": self.config.timesteps_per_token, "generator": batch.generators or None}
        with self._autocast(), self._attention():
            output = self.wrapped(**batch.inputs, **arguments, loss_weights=weights)
        output.loss.backward()
        found = (output.text_loss, output.image_loss)
        parts = [0.0 if v is None else float(v.detach()) * share for v, share in zip(found, shares, strict=True)]
        good = all(math.isfinite(v) for v in parts)
        if good and self.statistics is not None:
            self.statistics.update(output.image_rows, output.image_timesteps)
        return torch.tensor(parts, dtype=torch.float64).nan_to_num(0.0, 0.0, 0.0), good

    def _count_flops(self, batch: Batch) -> float:
        """Floating-point operations of a step, from a forward and backward pass that leaves nothing behind.

        Not counted while training: under the counter torch takes other kernels, and a resumed run would differ in last digits.
        """
        sources = [torch.Generator().set_state(source.get_state()) for source in batch.generators] or None
        with FlopCounterMode(display=False) as counter:
            with self._autocast():
                loss = self.model(**batch.inputs, generator=sources, timesteps_per_token=self.config.timesteps_per_token).loss
            torch.autograd.grad(loss, self._trained())
        return float(counter.get_total_flops()) * self.config.accumulation * self.world_size

    def _attention(self) -> AbstractContextManager[Any]:
        dtype = torch.float32 if self.config.precision == "float32" else torch.bfloat16
        return attention_kernel(self.device, dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _batches(self, items: Any) -> list[Batch]:
        config = self.config
        count = config.batch_size * config.accumulation
        tasks = self.plan.step(self.step)
        here = places(config.seed, self.step, rank=self.rank, world_size=self.world_size, count=count)
        batches = []
        for number in range(config.accumulation):
            mine = here[number * config.batch_size : (number + 1) * config.batch_size]
            read = next(items)[: len(mine)]
            mine = mine[: len(read)]
            batches.append(self.maker.make(read, [tasks[place.index] for place in mine], mine, number))
        return batches

    # -- between steps --------------------------------------------------------------------------------------------------------

    def _complain(self, batches: list[Batch]) -> None:
        """Count a step without a finite loss; at last, save what caused it and stop."""
        self.nan_steps += 1
        if self.nan_steps < self.config.max_nan:
            return
        path = self.folder / f"not-finite-step-{self.step:09d}-rank-{self.rank}"
        path.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            save_file({k: v.detach().cpu().contiguous() for k, v in batch.inputs.items()}, path / f"batch-{number}.safetensors")
            (path / f"batch-{number}.json").write_text(json.dumps({"step": self.step, "keys": batch.keys}))
        raise NonFiniteLoss(
            f"the loss must be finite, got {self.nan_steps} steps that were not; the last batch is in {path}. Lower the "
            "learning rate, look at the images, or go on from the last checkpoint with another seed"
        )

    def _draw(self, log: RunLog | None) -> None:
        if self._writes and self.config.stage == "joint" and self.model.config.image_objective != "understanding_only":
            with self.ema.applied(self.model) if self.ema is not None else _nothing():
                path = draw_grid(self._pipeline(), self.config, self.folder, self.step)
            self.model.train()
            if log is not None:
                log.say(f"step {self.step}: {path}")

    def _save(self) -> Path:
        loaders = gather_object([self.loader.state_dict()])
        left_out = gather_object([dict(self.maker.left_out)])
        statistics = self._gathered_statistics()
        path = self.folder / f"checkpoint-{self.step:09d}"
        if self._writes:
            tensors = {
                "model": {n: p for n, p in self.model.named_parameters() if p.requires_grad},
                "optimizer": optimizer_tensors(self.optimizer, self.model),
            }
            if self.ema is not None:
                tensors["ema"] = self.ema.shadow
            if statistics:
                tensors["statistics"] = statistics
            state = {
                "ema_updates": 0 if self.ema is None else self.ema.updates,
                "nan_steps": self.nan_steps,
                "world_size": self.world_size,
                "loaders": loaders,
                "left_out": left_out,
                "config": asdict(self.config),
            }
            path = save_checkpoint(self.folder, self.step, tensors, state, keep=self.config.saving.keep)
        self.accelerator.wait_for_everyone()
        return path

    def _resume(self) -> None:
        checkpoint, complaints = load_latest(self.folder)
        for complaint in complaints:
            self.accelerator.print(f"skipped a broken checkpoint: {complaint}")
        if checkpoint is None:
            self.accelerator.print(f"{self.folder} holds no whole checkpoint: starting anew")
            return
        self._load(checkpoint)
        self.accelerator.print(f"resumed {checkpoint.path} at step {self.step}")

    def _load(self, checkpoint: Checkpoint) -> None:
        state, tensors = checkpoint.state, checkpoint.tensors
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if set(parameters) != set(tensors["model"]):
            different = sorted(set(parameters) ^ set(tensors["model"]))
            raise ValueError(f"{checkpoint.path} must be of this model, got differences: {', '.join(different[:4])}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors["model"][name])
        load_optimizer_tensors(self.optimizer, self.model, tensors["optimizer"])
        if self.ema is not None:
            self.ema.load(tensors["ema"], state["ema_updates"])
        if self.statistics is not None and "statistics" in tensors and self._writes:
            self.statistics.load_state_dict(tensors["statistics"])
        self.step, self.nan_steps = checkpoint.step, state["nan_steps"]
        self.maker.left_out.update(state["left_out"][0] if self._writes else {})
        if state["world_size"] == self.world_size:
            self.loader.load_state_dict(state["loaders"][self.rank])
        else:
            self.accelerator.print(
                f"{state['world_size']} ranks before, {self.world_size} now: the data go on in an order of their own"
            )
            self.loader = self._make_loader(self.parts, first_epoch=1 + checkpoint.step)

    def _finish(self, log: RunLog | None) -> Path:
        """Save the pipeline with averaged weights, and say what was left out."""
        path = self.folder / FINAL
        if self._writes:
            with self.ema.applied(self.model) if self.ema is not None else _nothing():
                self._pipeline().save_pretrained(path)
            if log is not None:
                log.say(f"data: {self.loader.skipped}")
                if self.maker.left_out:
                    log.say(f"rows left out: {dict(self.maker.left_out)}")
        self.accelerator.wait_for_everyone()
        return path

    # -- parts ----------------------------------------------------------------------------------------------------------------

    @property
    def _writes(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _pipeline(self) -> MMARPipeline:
        dtype = torch.float32 if self.config.precision == "float32" else torch.bfloat16
        return MMARPipeline(self.model.eval(), self.parts.processor, self.parts.image_tokenizer, compute_dtype=dtype)

    def _make_statistics(self) -> TimestepStatistics | None:
        has_timesteps = self.model.config.image_objective.endswith("_diffusion") and self.config.stage == "joint"
        return TimestepStatistics(self.model.config.schedule_config.build()) if has_timesteps else None

    def _make_maker(self) -> BatchMaker:
        config, masking = self.config, self.config.masking
        ratio = MaskRatio(masking.shape, masking.low, masking.high, masking.width)  # type: ignore[arg-type]
        dtype = None if config.precision == "float32" else torch.bfloat16
        parts = self.parts
        return BatchMaker(
            parts.model.config,
            parts.processor,
            parts.image_tokenizer,
            ratio,
            config.questions,
            config.max_length,
            self.device,
            dtype,
        )

    def _make_loader(self, parts: Parts, first_epoch: int = 0) -> StreamLoader[Item, list[Item]]:
        config = self.config
        settings = StreamSettings(
            config.seed, rank=self.rank, world_size=self.world_size, strict=config.strict, first_epoch=first_epoch
        )
        stream = make_stream(config.data, settings, parts.image_tokenizer)
        return StreamLoader(stream, config.batch_size, as_list, num_workers=config.workers)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _sum(self, values: list[float]) -> list[float]:
        """Over all ranks."""
        if self.world_size == 1:
            return [float(value) for value in values]
        total: Tensor = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.device), "sum")
        return total.tolist()

    def _anyone(self, flag: bool) -> bool:
        return self._sum([float(flag)])[0] > 0

    def _gathered_statistics(self) -> dict[str, Tensor]:
        """Sums over all ranks, without counting again what a rank took up from a checkpoint."""
        if self.statistics is None:
            return {}
        own = self.statistics.state_dict()
        if self.world_size == 1:
            return own
        return {name: self.accelerator.reduce(value.to(self.device), "sum").cpu() for name, value in own.items()}


class _nothing:  # noqa: N801 - reads like contextlib.nullcontext
    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...


def train(config: TrainingConfig, *, resume: bool = False) -> Path:
    """Run a configuration; see :class:`Trainer`."""
    trainer = Trainer(config, resume=resume)
    try:
        return trainer.run()
    finally:
        trainer.close()
