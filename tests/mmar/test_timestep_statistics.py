"""Loss per timestep against plain averages, in both spaces of figure 3A, and over a checkpoint."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from tiny_model import BLOCK, some_known, some_tokens, tiny_model
from torch import Tensor

from diffparam import EPSILON, X0, Schedule, V
from mmar.timestep_statistics import TimestepStatistics

SCHEDULE = Schedule.cosine(10)


def draws(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Losses of order 1 at the timesteps 0, 1 and 4 .. 9: of 2 there is one row, of 3 none."""
    g = torch.Generator().manual_seed(seed)
    timesteps = torch.tensor([0, 1, 4, 5, 6, 7, 8, 9])[torch.randint(8, (rows,), generator=g)]
    timesteps[0] = 2
    return torch.rand(rows, generator=g), timesteps


def collected(rows: Tensor, timesteps: Tensor, parts: int = 1) -> TimestepStatistics:
    statistics = TimestepStatistics(SCHEDULE)
    for some_rows, some_timesteps in zip(rows.chunk(parts), timesteps.chunk(parts), strict=True):
        statistics.update(some_rows, some_timesteps)
    return statistics


@pytest.mark.parametrize("parts", [1, 7])
def test_means_and_errors_are_those_of_the_rows(parts: int) -> None:
    rows, timesteps = draws(400)
    statistics = collected(rows, timesteps, parts)
    by_timestep: dict[int, list[float]] = defaultdict(list)
    for row, timestep in zip(rows.tolist(), timesteps.tolist(), strict=True):
        by_timestep[timestep].append(row)
    mean, error = statistics.mean(), statistics.standard_error()
    for timestep in range(len(SCHEDULE)):
        seen = torch.tensor(by_timestep[timestep], dtype=torch.float64)
        assert int(statistics.count[timestep]) == len(seen)
        if len(seen) > 1:
            # Sums of 400 float64 numbers of order 1; the variance is a difference of two of them.
            assert float(mean[timestep]) == pytest.approx(float(seen.mean()), rel=1e-12)
            assert float(error[timestep]) == pytest.approx(float(seen.std(correction=1)) / len(seen) ** 0.5, rel=1e-10)
    assert mean[3].isnan()
    assert error[[2, 3]].isnan().all()
    assert float(mean[2]) == float(rows[0])


def test_each_timestep_has_its_own_bin_in_schedules_that_do_not_count_from_zero() -> None:
    for schedule in (Schedule.rectified_flow(10), Schedule.cosine(1000).respace(10)):
        statistics = TimestepStatistics(schedule)
        statistics.update(torch.arange(10.0), schedule.timesteps)
        assert statistics.mean().tolist() == list(range(10))


def test_a_batch_without_images_adds_nothing() -> None:
    statistics = TimestepStatistics(SCHEDULE)
    statistics.update(None, None)
    statistics.update(torch.ones(3), None)  # codes
    assert not statistics.count.any()
    assert statistics.mean().isnan().all()


def test_losses_of_epsilon_are_shown_in_the_space_of_v() -> None:
    """Of the same error, epsilon's square is alpha_bar times v's; x0's is 1 - alpha_bar times v's."""
    v_rows = torch.ones(10, dtype=torch.float64)
    for source, of_v in ((EPSILON, SCHEDULE.alpha_bar), (X0, 1 - SCHEDULE.alpha_bar), (V, v_rows)):
        statistics = collected(v_rows * of_v, SCHEDULE.timesteps)
        # alpha_bar from cos^2 of a float64 angle: the last one, 6e-4, is good to 1e-13 / sqrt(6e-4)
        assert (statistics.mean(source=source) - 1).abs().max() < 1e-10
        assert torch.equal(statistics.mean(), v_rows * of_v)
        assert (statistics.mean(source=source, target=source) - v_rows * of_v).abs().max() < 1e-15


def test_a_checkpoint_takes_them_up_where_they_were() -> None:
    rows, timesteps = draws(60)
    whole, half = collected(rows, timesteps), collected(rows[:30], timesteps[:30])
    taken_up = TimestepStatistics(SCHEDULE)
    state = half.state_dict()
    taken_up.load_state_dict(state)
    taken_up.update(rows[30:], timesteps[30:])
    assert torch.equal(taken_up.count, whole.count)
    assert torch.allclose(taken_up.mean(), whole.mean(), rtol=1e-14, atol=0, equal_nan=True)
    assert torch.allclose(taken_up.standard_error(), whole.standard_error(), rtol=1e-10, atol=0, equal_nan=True)
    assert int(state["count"].sum()) == 30  # what was saved is not written to
    with pytest.raises(ValueError, match="must have 5 timesteps, got 10"):
        TimestepStatistics(Schedule.cosine(5)).load_state_dict(state)


@pytest.mark.parametrize("name", ["mmar", "transfusion"])
def test_outputs_of_a_model_fit(name: str) -> None:
    model = tiny_model(name)
    known, generator = some_known(2) if model.config.is_masked else None, torch.Generator().manual_seed(0)
    targets, ids = torch.ones(2, dtype=torch.bool), torch.tensor([BLOCK] * 2)
    out = model(ids, image_tokens=some_tokens(model, 2), known=known, image_targets=targets, generator=generator)
    statistics = TimestepStatistics(model.config.schedule_config.build())
    statistics.update(out.image_rows, out.image_timesteps)
    assert int(statistics.count.sum()) == len(out.image_rows)
    assert float(statistics.sum.sum() / len(out.image_rows)) == pytest.approx(float(out.image_loss.detach()), rel=1e-6)


def test_losses_and_timesteps_that_do_not_belong_are_refused() -> None:
    statistics = TimestepStatistics(SCHEDULE)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="rows must be finite"):
            statistics.update(torch.tensor([1.0, bad]), torch.tensor([0, 1]))
    for timestep in (10, -1, 2.5):
        with pytest.raises(ValueError, match="must be those of the schedule"):
            statistics.update(torch.ones(1), torch.tensor([timestep]))
    with pytest.raises(ValueError, match="must be those of the schedule"):  # no bin lies between those of a coarser one
        TimestepStatistics(Schedule.cosine(1000).respace(10)).update(torch.ones(1), torch.tensor([100]))
    assert not statistics.count.any()
