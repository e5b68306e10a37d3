"""Moments of latents: against numpy, against repeated draws, over a folder."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_tokenizers import digits, kl, photographs
from torch import Tensor

from mmar.commands.latent_statistics import main
from mmar.tokenizers import LatentScale, LatentStatistics, NonFiniteImages, PatchTokenizer, measure_latents
from mmar.tokenizers.measure import RunningMoments
from mmar.tokenizers.registry import load_image_tokenizer

DIGITS = PatchTokenizer(8, 2, image_channels=1)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- against numpy ----------------------------------------------------------------------------------------------------


def test_moments_of_digits_are_numpys() -> None:
    images = digits()
    measured = measure_latents(DIGITS, images.split(100))
    pixels = images.double().numpy()
    patches = pixels.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
    assert measured.count == 1797
    # float64 throughout, 115 thousand numbers of order 1.
    assert measured.mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert measured.std == pytest.approx(pixels.std(), abs=1e-12)
    assert measured.channel_mean == pytest.approx(patches.mean(0), abs=1e-12)
    assert measured.channel_std == pytest.approx(patches.std(0), abs=1e-12)
    assert measured.skipped == {}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 2**31))
def test_the_batches_do_not_matter(sizes: list[int], seed: int) -> None:
    rows = torch.randn(sum(sizes), 3, generator=draws(seed), dtype=torch.float64)
    moments = RunningMoments(3)
    for part in rows.split(sizes):
        moments.update(part)
    assert moments.count == len(rows)
    assert torch.allclose(moments.mean, rows.mean(0), rtol=0, atol=1e-14)
    covariance = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)
    assert torch.allclose(moments.covariance, covariance, rtol=0, atol=1e-13)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    rows = 1e6 + 1e-3 * torch.randn(1000, 1, generator=draws(0), dtype=torch.float64)
    moments = RunningMoments(1)
    for part in rows.split(7):
        moments.update(part)
    # The numbers themselves are known to 1e6 * 2^-53 = 1e-10, 1e-7 of their deviations.
    wanted = np.var(rows.numpy())
    assert float(moments.covariance) == pytest.approx(wanted, rel=1e-6)
    naive = float(rows.square().mean() - rows.mean() ** 2)
    assert abs(naive - wanted) > 0.1 * wanted  # the control: E x^2 - (E x)^2


def test_images_nearly_all_alike_are_measured(generator: torch.Generator) -> None:
    """Pixels at 0.9 that differ by 1e-5: 150 units of roundoff of float32."""
    images = 0.9 + 1e-5 * torch.randn(200, 1, 8, 8, generator=generator)
    measured = measure_latents(DIGITS, images.split(32))
    assert measured.std == pytest.approx(images.double().std(correction=0).item(), rel=1e-9)
    # 12800 independent numbers: 1 / sqrt(2 n) of the std, known from 200 images to 5 / sqrt(400).
    assert measured.std_standard_error == pytest.approx(measured.std / math.sqrt(2 * 12800), rel=0.25)


# -- the standard error -----------------------------------------------------------------------------------------------


def correlated(generator: torch.Generator, images: int) -> Tensor:
    """Images whose brightness differs more than their pixels do among themselves."""
    brightness = 0.2 * torch.randn(images, 1, 1, 1, generator=generator)
    return (0.1 + brightness + 0.05 * torch.randn(images, 1, 8, 8, generator=generator)).clamp(-1, 1)


def test_standard_errors_are_those_of_repeated_measurements() -> None:
    g, repeats, images = draws(1), 300, 64
    measured = [measure_latents(DIGITS, [correlated(g, images)]) for _ in range(repeats)]
    # A spread of 300 is known to 1 / sqrt(600); each standard error to about 1 / sqrt(2 * 64), their mean far better: 5 sigma.
    for value, error in (("std", "std_standard_error"), ("mean", "mean_standard_error")):
        spread = np.std([getattr(m, value) for m in measured], ddof=1)
        claimed = np.sqrt(np.mean([getattr(m, error) ** 2 for m in measured]))
        assert claimed == pytest.approx(spread, rel=5 / math.sqrt(600) + 0.05)
    naive = measured[0].std / math.sqrt(2 * images * 64)  # the control: tokens as independent draws
    assert naive < 0.3 * measured[0].std_standard_error


def test_one_image_has_no_standard_error() -> None:
    measured = measure_latents(DIGITS, [digits()[:1]])
    assert measured.mean_standard_error is None
    assert measured.std_standard_error is None
    assert measured.std > 0


# -- latents ----------------------------------------------------------------------------------------------------------


def test_draws_add_the_variance_of_the_posterior() -> None:
    tokenizer, photos = kl(), photographs(32)
    modes, samples = (measure_latents(tokenizer, [photos] * 8, sample=sample, generator=draws(2)) for sample in (False, True))
    posterior = tokenizer.network.encode(photos).latent_dist.var.double().mean().item()
    # 8 * 4 * 256 draws of variance about 1: their variance is known to sqrt(2 / 8192), the cross term to 2 / sqrt(8192).
    assert samples.std**2 - modes.std**2 == pytest.approx(posterior, abs=5 * 3 / math.sqrt(8192) * max(posterior, modes.std**2))
    assert (modes.sampled, samples.sampled) == (False, True)


def test_the_present_scale_plays_no_part() -> None:
    photos = photographs(32)
    plain, scaled = (measure_latents(t, [photos], sample=False) for t in (kl(), kl(scale=LatentScale(7.0, 3.0))))
    assert plain == scaled


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_with_its_statistics_a_tokenizer_has_unit_variance(per_channel: bool, center: bool) -> None:
    tokenizer, photos = kl(), photographs(32)
    measured = measure_latents(tokenizer, [photos], sample=False)
    tokens = tokenizer.with_statistics(measured, per_channel=per_channel, center=center).encode(photos).double()
    dims = (0, 1) if per_channel else (0, 1, 2)
    # float32 tokens: each known to 2^-23 or so.
    assert torch.allclose(tokens.std(dims, correction=0), torch.ones(()).double(), rtol=0, atol=1e-6)
    mean = tokens.mean(dims).abs().max().item()
    assert mean < 1e-6 if center else mean > 1e-2


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    for images in (digits()[:50], digits()[:1]):
        measured = measure_latents(DIGITS, [images])
        measured.save(tmp_path / "s.json")
        assert LatentStatistics.load(tmp_path / "s.json") == measured
    for broken in ("{", "[]", "{}", '{"channel_mean": [], "channel_std": [], "x": 1}'):
        (tmp_path / "s.json").write_text(broken)
        with pytest.raises(ValueError, match=r"s.json must be latent statistics as LatentStatistics.save writes them"):
            LatentStatistics.load(tmp_path / "s.json")


# -- what is not finite -----------------------------------------------------------------------------------------------


def test_images_that_are_not_finite_are_refused_or_counted() -> None:
    images = digits()[:30].clone()
    images[3, 0, 2, 2], images[17, 0, 0, 0] = math.nan, math.inf
    with pytest.raises(NonFiniteImages, match=r"^pixels must be finite"):
        measure_latents(DIGITS, images.split(10))
    measured = measure_latents(DIGITS, images.split(10), non_finite="skip")
    good = images[[i for i in range(30) if i not in (3, 17)]]
    assert measured.skipped == {"not finite": 2}
    assert dataclasses.replace(measured, skipped={}).std == pytest.approx(measure_latents(DIGITS, [good]).std, rel=1e-12)


def test_a_network_that_overflows_on_one_image_is_refused_or_counted() -> None:
    class Bright(torch.nn.Module):
        """Overflows where the image is bright."""

        def forward(self, network: object, args: tuple, output: Tensor) -> Tensor:
            return torch.where(args[0].amax((1, 2, 3), keepdim=True) > 0.99, math.inf, output)

    tokenizer, photos = kl(), photographs(32).clamp(-0.9, 0.9)
    tokenizer.network.encoder.register_forward_hook(Bright())
    photos[2, 0, 0, 0] = 1.0
    with pytest.raises(NonFiniteImages, match=r"^tokens must be finite, .* \(index 2\)"):
        measure_latents(tokenizer, [photos])
    assert measure_latents(tokenizer, [photos], sample=False, non_finite="skip").skipped == {"not finite": 1}


def test_nothing_to_measure_is_an_error() -> None:
    for images in ([], [digits()[:0]], [torch.full((2, 1, 8, 8), math.nan)]):
        with pytest.raises(ValueError, match=r"^images must hold at least one finite image, got none and skipped"):
            measure_latents(DIGITS, images, non_finite="skip")
    with pytest.raises(ValueError, match=r"^latents must differ from each other, but all are equal"):
        measure_latents(DIGITS, [torch.ones(3, 1, 8, 8)])


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty digits in two classes, and files that are no images."""
    for i, digit in enumerate(digits()[:40, 0]):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((digit + 1) * 127.5).round().byte().numpy()).save(path)
    (tmp_path / "images" / "notes.txt").write_text("not read")
    DIGITS.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def run(folder: Path, *options: str) -> int:
    out = str(folder / "out.json")
    return main([str(folder / "images"), "--tokenizer", str(folder / "tokenizer"), "--output", out, *options])


def test_the_command_measures_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--batch-size", "7") == 0
    measured = LatentStatistics.load(folder / "out.json")
    rounded = ((digits()[:40] + 1) * 127.5).round() / 127.5 - 1
    assert measured.std == pytest.approx(rounded.double().std(correction=0).item(), rel=1e-6)
    assert measured.count == 40
    output = capsys.readouterr()
    assert f"std                 {measured.std:.6g} ± " in output.out
    assert "40/40" in output.err  # the progress bar
    assert DIGITS.with_statistics(measured).latent_std == measured.std


def test_the_command_counts_what_it_cannot_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder / "images"
    (images / "text.png").write_text("not an image")
    (images / "empty.jpg").write_bytes(b"")
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=draws(0)).numpy()
    Image.fromarray(noise).save(images / "half.jpg")
    whole = (images / "half.jpg").read_bytes()
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(images / "deep.png")
    assert run(folder) == 0
    measured = LatentStatistics.load(folder / "out.json")
    assert measured.count == 40
    assert sum(measured.skipped.values()) == 4
    assert measured.skipped["a path must lead to an image that Pillow reads"] == 2
    assert any("truncated" in reason for reason in measured.skipped)
    assert not any(str(folder) in reason for reason in measured.skipped)  # rules, not files
    assert "skipped             2: a path must lead to an image" in capsys.readouterr().out


def test_a_limit_draws_from_all_classes_and_repeats(folder: Path) -> None:
    found = []
    for seed in ("0", "0", "1"):
        assert run(folder, "--limit", "12", "--seed", seed, "--mode") == 0
        found.append(LatentStatistics.load(folder / "out.json"))
    assert found[0] == found[1] != found[2]
    assert found[0].count == 12
    assert not found[0].sampled


def test_the_commands_errors_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cases() -> Iterator[tuple[int, str]]:
        yield run(folder, "--batch-size", "0"), "argument --batch-size: must be a whole number of at least 1, got '0'"
        yield run(folder, "--limit", "0"), "argument --limit: must be a whole number of at least 1, got '0'"
        yield run(folder, "--center"), "--per-channel and --center must come with --save"
        yield main([str(folder / "nowhere"), "--tokenizer", "x"]), "FOLDER must be an existing folder"
        yield main([str(folder / "tokenizer"), "--tokenizer", "x"]), "FOLDER must hold image files"
        yield main([str(folder / "images"), "--tokenizer", "x"]), "folder must be an existing folder, got 'x'"

    for code, message in cases():
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith(f"mmar latent-statistics: {message}")
        assert error.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--per-channel", "--center"]])
def test_it_saves_a_tokenizer_with_the_scale(folder: Path, options: list[str]) -> None:
    assert run(folder, "--save", str(folder / "scaled"), *options) == 0
    measured = LatentStatistics.load(folder / "out.json")
    scaled, before = load_image_tokenizer(folder / "scaled"), load_image_tokenizer(folder / "tokenizer")
    assert scaled.scale == measured.scale(per_channel=bool(options), center=bool(options)) != before.scale
    assert scaled.identity != before.identity
    assert scaled.with_scale(before.scale).identity == before.identity  # nothing else has changed


MODULE = """
import runpy, sys
try:
    runpy.run_module("mmar.commands.latent_statistics", run_name="__main__", alter_sys=True)
except SystemExit as end:
    sys.exit(end.code or 3 * ("diffusers" in sys.modules))
"""


def test_it_runs_as_a_module_and_patches_do_not_need_diffusers(folder: Path) -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", MODULE, str(folder / "images")]
    command += ["--tokenizer", str(folder / "tokenizer"), "--output", str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 / std" in done.stdout
