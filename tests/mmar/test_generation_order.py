"""How many tokens each step draws, in which order, and whose random numbers decide it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmar.generation.order import draw_order, tokens_per_step
from mmar.generation.randomness import draw_normal, draw_uniform, row_generators

SCHEDULES = ["cosine", "linear", "constant"]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# -- tokens per step ------------------------------------------------------------------------------------------------------


@given(total=st.integers(1, 1100), data=st.data(), schedule=st.sampled_from(SCHEDULES))
def test_every_step_draws_and_all_tokens_are_drawn(total: int, data: st.DataObject, schedule: str) -> None:
    steps = data.draw(st.integers(1, total))
    counts = tokens_per_step(total, steps, schedule)
    assert (len(counts), sum(counts), min(counts) >= 1) == (steps, total, True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_as_many_steps_as_tokens_are_one_token_each(schedule: str) -> None:
    for total in (1, 2, 16, 256, 1024):
        assert tokens_per_step(total, total, schedule) == [1] * total
        assert tokens_per_step(total, 1, schedule) == [total]


@pytest.mark.parametrize(("steps", "few", "many"), [(128, 1, 4), (64, 1, 7), (32, 1, 13), (16, 2, 25), (8, 5, 49)])
def test_cosine_decodes_256_tokens_as_mar_does(steps: int, few: int, many: int) -> None:
    """MAR: floor(256 cos(pi/2 (i+1)/n)) tokens are left after step i, and at least one is drawn."""
    wanted, left = [], 256
    for i in range(steps):
        after = 0 if i == steps - 1 else max(1, min(left - 1, math.floor(256 * math.cos(math.pi / 2 * (i + 1) / steps))))
        wanted.append(left - after)
        left = after
    counts = tokens_per_step(256, steps, "cosine")
    assert counts == wanted
    assert (min(counts), max(counts)) == (few, many)


def test_the_schedules_are_what_their_names_say() -> None:
    assert set(tokens_per_step(100, 8, "constant")) == {12, 13}
    # k of 1 + 2 + ... + 8 = 36 tokens in step k would be a triangle; 1 - x^2 gives odd numbers: (2 k - 1) of 64.
    assert tokens_per_step(64, 8, "linear") == [1, 3, 5, 7, 9, 11, 13, 15]
    cosine = tokens_per_step(256, 8, "cosine")
    assert cosine == sorted(cosine)


@pytest.mark.parametrize(("total", "steps"), [(16, 17), (16, 0), (0, 0), (0, 1)])
def test_more_steps_than_tokens_are_refused(total: int, steps: int) -> None:
    with pytest.raises(ValueError, match=rf"steps must lie in 1\.\.{total}.*got {steps}; take fewer steps"):
        tokens_per_step(total, steps)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="cosine, linear or constant, got 'sigmoid'"):
        tokens_per_step(16, 4, "sigmoid")


# -- order ------------------------------------------------------------------------------------------------------------


def some_known(rows: int, count: int, unknown: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, count, generator=g).argsort(-1).argsort(-1) >= unknown


@given(count=st.integers(1, 40), data=st.data(), order=st.sampled_from(["random", "raster"]))
def test_an_order_visits_each_unknown_token_once(count: int, data: st.DataObject, order: str) -> None:
    known = some_known(3, count, data.draw(st.integers(0, count)))
    got = draw_order(known, order, seeded(1, 2, 3))
    for row, visited in zip(known, got.tolist(), strict=True):
        assert sorted(visited) == (~row).nonzero()[:, 0].tolist()
        if order == "raster":
            assert visited == sorted(visited)


def test_each_image_has_an_order_of_its_own_that_does_not_know_the_others() -> None:
    nothing = torch.zeros(3, 16, dtype=torch.bool)
    together = draw_order(nothing, "random", seeded(1, 2, 3))
    assert torch.equal(together[1:2], draw_order(nothing[:1], "random", seeded(2)))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], torch.arange(16))
    assert torch.equal(draw_order(nothing[:1], "raster", seeded(1)), torch.arange(16)[None])


def test_what_is_known_does_not_change_the_order_of_the_rest() -> None:
    known = some_known(1, 16, 9)
    everything = draw_order(torch.zeros_like(known), "random", seeded(5))[0].tolist()
    rest = draw_order(known, "random", seeded(5))[0].tolist()
    assert rest == [place for place in everything if not known[0, place]]


def test_all_orders_are_equally_likely() -> None:
    """24 orders of 4 tokens, 2400 draws: 100 +- 5 sqrt(100 (1 - 1/24)) = 100 +- 49 each."""
    drawn = draw_order(torch.zeros(2400, 4, dtype=torch.bool), "random", seeded(*range(2400)))
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert (counts - 100).abs().max() < 49


# -- random numbers ---------------------------------------------------------------------------------------------------


def test_one_generator_seeds_one_for_each_row_in_turn() -> None:
    few, many = (draw_normal(row_generators(*seeded(3), rows), (2, 5), torch.device("cpu")) for rows in (2, 6))
    assert torch.equal(few, many[:2])
    assert not torch.equal(few[0], few[1])
    again = draw_normal(row_generators(*seeded(4), 2), (2, 5), torch.device("cpu"))
    assert not torch.equal(few, again)


def test_without_a_generator_torch_s_default_decides() -> None:
    def draw() -> Tensor:
        torch.manual_seed(11)
        return draw_normal(row_generators(None, 2), (3,), torch.device("cpu"))

    first = draw()
    assert torch.equal(first, draw())
    assert not torch.equal(first, draw_normal(row_generators(None, 2), (3,), torch.device("cpu")))  # it went on


def test_own_generators_are_used_as_they_are() -> None:
    got = draw_uniform(row_generators(seeded(1, 2), 2), (4,), torch.device("cpu"))
    assert torch.equal(got[1], torch.rand(4, generator=seeded(2)[0], dtype=torch.float64))


def test_generators_must_be_as_many_as_rows_and_different() -> None:
    with pytest.raises(ValueError, match="one for each of the 3 rows, got 2"):
        row_generators(seeded(1, 2), 3)
    with pytest.raises(ValueError, match="a different one for each row"):
        row_generators(seeded(1) * 2, 2)
