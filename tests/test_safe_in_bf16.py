"""The report beside a trained head, in the smallest preset."""

from __future__ import annotations

import json

import pytest
import torch

from diffparam import RoundingError, plan_ddim, sample, trace_sensitivity
from experiments import command, safe_in_bf16
from experiments.head_study.arms import ARMS, Recipe, train
from experiments.safe_in_bf16 import SCHEDULE, STARTS
from experiments.tokens import digits


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("safe")
    patch = pytest.MonkeyPatch()
    patch.setattr(command, "RUNS", folder / "runs")
    patch.setattr("builtins.print", lambda *_, **__: None)
    safe_in_bf16.main(["--preset", "smoke", "--out", str(folder / "record.json")])
    patch.undo()
    return json.loads((folder / "record.json").read_text())


def test_the_report_calls_v_safe_and_eps_from_the_end_unsafe(record: dict) -> None:
    verdict = {(row["head"], row["start"]): row["report"]["safe"] for row in record["results"]["rows"]}
    assert verdict == {("v", 999): True, ("v", 948): True, ("eps", 999): False, ("eps", 948): True}


def test_a_rounded_output_moves_samples_as_predicted(record: dict) -> None:
    """One rounding of each output, from where both heads are safe; 600 samples of 64 channels, first order."""
    for row in record["results"]["rows"]:
        if row["start"] == STARTS[1]:
            assert row["output"]["ratio"]["mean"] == pytest.approx(1, abs=0.1)
        assert row["network"]["predicted"] > row["output"]["predicted"]  # a network rounds at every layer
        for kind in ("network", "everything"):
            assert row[kind]["predicted"] <= row[kind]["correlated"]
        assert row["everything"]["predicted"] > row["network"]["predicted"]


def test_a_network_and_a_sampler_in_bf16_move_samples_as_predicted(record: dict) -> None:
    """Roundings of weights add up over the calls, those of coefficients too; an untrained head, first order."""
    for row in record["results"]["rows"]:
        if row["start"] == STARTS[1]:
            assert row["network"]["ratio"]["mean"] == pytest.approx(1, abs=0.1)
            assert row["everything"]["ratio"]["mean"] == pytest.approx(1, abs=0.15)


def test_the_trace_of_a_trained_head_meets_single_roundings() -> None:
    """One call rounded at a time; the gain of each is what the reverse pass says, to the error of 600 samples' rms."""
    train_set, held_out = digits()
    head = train(
        ARMS["v_float32"], Recipe(16, 1, 30, warmup=5), train_set, SCHEDULE, seed=0, device="cpu", tick=lambda _: None
    ).double()
    z, draws = held_out.z.double(), torch.Generator().manual_seed(0)
    plan = plan_ddim(SCHEDULE.respace(5), param=ARMS["v_float32"].param)
    noise = torch.randn(held_out.tokens.shape, generator=draws, dtype=torch.float64)
    rounding = RoundingError("bfloat16")
    sizes = trace_sensitivity(lambda x, t: head(x, t, z), plan, noise, generator=draws, emulate=rounding)
    exact = sample(lambda x, t: head(x, t, z), noise, plan)
    for call in range(len(plan)):
        moved = sample(OneRounded(head, z, call), noise, plan)
        rms = (moved - exact).square().mean().sqrt().item()
        assert rms == pytest.approx(sizes.emulated["output"].final[call], rel=0.1)


class OneRounded:
    """A head whose output is rounded at one call of a run only."""

    def __init__(self, head: torch.nn.Module, z: torch.Tensor, call: int) -> None:
        self.head, self.z, self.left = head, z, call

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        u = self.head(x, t, self.z)
        self.left -= 1
        return RoundingError("bfloat16").apply(u) if self.left == -1 else u
