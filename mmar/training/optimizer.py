"""AdamW as in the paper: (0.9, 0.95), linear warm-up, then constant; its state by parameter name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmar.training.config import Optimizer
from mmar.training.sharding import like


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """Weight decay on matrices outside the diffusion head (MAR's rule), none on biases, norms and tables."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and ".head." not in name and not name.endswith(("position.weight", "time.weight"))
            (decayed if is_matrix and "mask_token" not in name and "boundary" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=1e-8)


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Rate of a step, counted from 0: rising in a line, constant, and falling in a line where that is asked for."""
    up = min(1.0, (step + 1) / max(1, config.warmup))
    down = min(1.0, (steps - step) / config.decay) if config.decay else 1.0
    return config.lr * min(up, down)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """State of each trained parameter: ``NAME/exp_avg`` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take up what :func:`optimizer_tensors` gave.

    Raises:
        ValueError: If it is of other parameters.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {key.rpartition("/")[0] for key in tensors}
    if found - set(parameters):
        raise ValueError(f"optimizer state must be of the trained parameters, got {sorted(found - set(parameters))[:3]}")
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][entry] = (
            value.clone() if entry == "step" else like(parameter, value).to(parameter.device, copy=True)
        )
