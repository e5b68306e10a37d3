"""The command ``mmar``: its table, its exit statuses, and the subcommands that other modules own."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmar import cli
from mmar.cli import SUBCOMMANDS, main
from mmar.commands.running import CommandParser, assignments, run_command, whole_number
from mmar.tokenizers import LatentStatistics, PatchTokenizer

TINY = """
model: {preset: mmar-tiny}
data: [{kind: digits}]
steps: 2
batch_size: 2
saving: {every: 1, log_every: 1}
"""


def test_help_lists_every_subcommand_without_heavy_imports() -> None:
    program = "import sys, mmar.cli; mmar.cli.main(['--help']); print('torch' in sys.modules, 'transformers' in sys.modules)"
    lines = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()
    assert lines[-1] == "False False"
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(SUBCOMMANDS)


def test_the_installed_entry_point() -> None:
    done = subprocess.run([sys.executable, "-m", "mmar", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: mmar SUBCOMMAND")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    program = f"{sys.executable} -m mmar --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 if it had written all before the reader was gone


@pytest.mark.parametrize("name", [name for name in SUBCOMMANDS if name != "demo"])
def test_every_subcommand_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(import_module(SUBCOMMANDS[name].module).main)
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "got"), [([], "none"), (["draw"], "'draw'"), (["--version"], "'--version'")])
def test_unknown_subcommands_are_bad_input(argv: list[str], got: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        f"mmar: the subcommand must be one of {', '.join(SUBCOMMANDS)}, got {got}; see mmar --help\n"
    )


def test_a_missing_extra_is_named_and_a_missing_module_of_ours_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(package: str) -> None:
        def fail(module: str) -> None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

        monkeypatch.setattr(cli, "import_module", fail)

    without("uvicorn")
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "mmar demo: uvicorn must be installed, got no such package; pip install 'diffparam[demo]'\n"
    )
    without("transformers.models")
    assert main(["chat"]) == 2
    assert "pip install 'diffparam[mmar]'" in capsys.readouterr().err
    without("mmar.commands.chat")
    with pytest.raises(ModuleNotFoundError):
        main(["chat"])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x must be 1, got 2"), 2),
        (FileNotFoundError("no file"), 2),
        (NotImplementedError("no decoder"), 2),
        (OSError("disk is full"), 1),
        (RuntimeError("out of memory"), 1),
        (FloatingPointError("NaN"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
    ],
)
def test_exit_statuses(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(options: object) -> None:
        raise error

    monkeypatch.setattr("mmar.commands.running._silence_stdout", lambda: None)
    assert run_command(CommandParser(prog="mmar test"), [], work) == status
    told = f"mmar test: {error}\n" if status in (1, 2) else ""
    assert capsys.readouterr().err == told


def test_words_of_the_command_line() -> None:
    assert assignments(["a=1", "b=raster", "c=null", "d=x=y"]) == {"a": 1, "b": "raster", "c": None, "d": "x=y"}
    with pytest.raises(ValueError, match="KEY=VALUE, got 'a'"):
        assignments(["a"])
    parser = CommandParser(prog="mmar test")
    parser.add_argument("--n", type=whole_number(1))
    assert parser.parse_args(["--n", "3"]).n == 3
    for text in ("0", "-1", "x", "1.5", ""):
        with pytest.raises(ValueError, match="--n: must be a whole number of at least 1"):
            parser.parse_args([f"--n={text}"])


# -- subcommands of other modules ------------------------------------------------------------------------------------------


def test_train_trains_and_info_knows_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "nowhere.yaml")]) == 2
    assert "mmar train: config must be a YAML file" in capsys.readouterr().err
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "tiny.yaml"), f"output={run}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "final")
    assert main(["train", str(tmp_path / "tiny.yaml"), f"output={run}", "--resume"]) == 0
    capsys.readouterr()
    assert main(["info", str(run / "final")]) == 0
    assert "masked_diffusion" in capsys.readouterr().out
    assert main(["info", str(run)]) == 2
    assert f"got that of a run, {str(run)!r}; take {str(run / 'final')!r}" in capsys.readouterr().err


def test_latent_statistics_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    PatchTokenizer(8, 2).save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "out.json"
    assert main(["latent-statistics", str(tmp_path), "--tokenizer", str(tmp_path / "tokenizer"), "--output", str(out)]) == 0
    assert LatentStatistics.load(out).count == 3
    assert "written to" in capsys.readouterr().out
