"""The console command: exit status, one line for each complaint, and nothing that a file or an option can do to it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffparam import Schedule
from diffparam.report import report
from diffparam.report.cli import main
from diffparam.report.config_file import MAX_BYTES, read_config
from diffparam.report.errors import BadInput
from diffparam.report.scheduler_options import DEFAULTS

V_CONFIG = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


def assert_refused(*arguments: object, words: str = "") -> None:
    status, out, err = run(*arguments)
    assert status == 2, (out, err)
    assert out == ""
    assert_one_line(err)
    assert words in err


def assert_one_line(err: str) -> None:
    assert err.startswith("diffparam: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert len(err) < 700
    assert "Traceback" not in err


def written(folder: Path, content: Any, name: str = "scheduler_config.json") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# -- what it says -----------------------------------------------------------------------------------------------------


def test_status_is_the_verdict() -> None:
    assert run("report", "--schedule", "scaled_linear", "--prediction", "v")[0] == 0
    status, out, err = run("report", "--schedule", "cosine")
    assert status == 1
    assert "UNSAFE" in out
    assert err == ""


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, ()),
        ({"param": "v_prediction", "steps": 20}, ("--prediction", "v_prediction", "--steps", 20)),
        ({"solver": "ddim", "eta": 0.5, "guidance": 7.5}, ("--solver", "ddim", "--eta", 0.5, "--guidance", 7.5)),
        ({"spacing": "trailing", "sigma_data": 0.5}, ("--spacing", "trailing", "--sigma-data", 0.5)),
        (
            {"output": "float16", "arithmetic": "bfloat16", "state": None, "timestep": "bfloat16"},
            ("--output", "fp16", "--arithmetic", "bf16", "--state", "none", "--timestep", "bf16"),
        ),
        ({"arithmetic": "bfloat16", "increments": True}, ("--arithmetic", "bf16", "--increments")),
        ({"tolerance": 2.0, "loss_tolerance": 5000.0}, ("--tolerance", 2, "--loss-tolerance", 5e3)),
    ],
)
def test_it_prints_what_the_function_returns(options: dict[str, Any], arguments: tuple[object, ...]) -> None:
    expected = report(Schedule.cosine(), **options)
    status, out, _ = run("report", "--schedule", "cosine", *arguments)
    assert out == f"{expected}\n"
    assert status == (0 if expected.safe else 1)
    _, out, _ = run("report", "--schedule", "cosine", *arguments, "--json")
    assert json.loads(out) == expected.to_dict()


def test_a_measured_error_is_a_number() -> None:
    _, out, _ = run("report", "--schedule", "cosine", "--prediction", "v", "--output", "0.02", "--json")
    told = json.loads(out)
    assert told["settings"]["output"] == "error of 0.02"
    assert told["rows"][2]["sources"]["output"] > 0.001


def test_file_folder_pipeline_and_class_are_the_same_report(tmp_path: Path) -> None:
    path = written(tmp_path, V_CONFIG)
    pipeline = tmp_path / "pipeline"
    (pipeline / "scheduler").mkdir(parents=True)
    written(pipeline / "scheduler", {**V_CONFIG, "_diffusers_version": "0.30.0", "unknown_to_us": [1, {"a": None}]})
    options = [text for key, value in V_CONFIG.items() if key != "_class_name" for text in ("--set", f"{key}={value}")]
    by_name = run("report", "DDIMScheduler", *options)
    assert by_name[0] == 0
    for target in (path, tmp_path, pipeline, pipeline / "scheduler"):
        assert run("report", target) == by_name
    assert f"{report(V_CONFIG)}\n" == by_name[1]


def test_set_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, V_CONFIG)
    zero_snr = ("--set", "rescale_betas_zero_snr=true", "--json")
    _, out, _ = run("report", path, "--set", "prediction_type=epsilon", *zero_snr)
    assert out == run("report", "DDIMScheduler", "--set", "beta_schedule=scaled_linear", *zero_snr)[1]
    betas = ("--set", "trained_betas=[0.1,0.2,0.3]", "--set", "num_train_timesteps=3", "--json")
    told = json.loads(run("report", path, *betas)[1])
    assert told["settings"]["training_steps"] == 3


def test_json_and_the_picture_go_to_files_and_the_table_to_the_terminal(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    status, out, _ = run("report", "--schedule", "cosine", "--json", tmp_path / "a.json", "--plot", tmp_path / "a.svg")
    assert status == 1
    assert out.startswith("cosine: 50 steps")
    assert json.loads((tmp_path / "a.json").read_text())["safe"] is False
    assert (tmp_path / "a.svg").read_text().rstrip().endswith("</svg>")


def test_what_diffusers_itself_saves_is_read(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    for name in ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DDPMScheduler", "EDMEulerScheduler"):
        folder = tmp_path / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_OFFLINE", "1")
            getattr(diffusers, name)().save_pretrained(folder)
        status, out, err = run("report", folder, "--steps", "10")
        assert (status in (0, 1), err) == (True, "")
        assert out.startswith(f"{name}: 10 steps")
    assert (
        "-Infinity" in (tmp_path / "DPMSolverMultistepScheduler" / "scheduler_config.json").read_text()
    )  # no JSON, but theirs


# -- bad command lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "required"),
        (("advise",), "invalid choice"),
        (("report",), "got neither"),
        (("report", "DDIMScheduler", "--schedule", "cosine"), "got both"),
        (("report", "DDIMSchedular"), "Did you mean 'DDIMScheduler'?"),
        (("report", "no/such/file.json"), "'no/such/file.json' is not: No such file"),
        (("report", ""), "config must be"),
        (("report", "a\0b.json"), "null"),
        (("report", "x" * 5000 + ".json"), "File name too long"),
        (("report", "--schedule", "cosin"), "Did you mean 'cosine'?"),
        (("report", "--schedule", "cosine", "--train-steps", "0"), "train-steps must lie in"),
        (("report", "--schedule", "cosine", "--train-steps", str(10**12)), "train-steps must lie in"),
        (("report", "--schedule", "cosine", "--steps", "many"), "'many' is no whole number"),
        (("report", "--schedule", "cosine", "--steps", "-3"), "steps must lie in"),
        (("report", "--schedule", "cosine", "--train-steps", "1000000", "--steps", "1000000"), "steps must lie in [1, 10000]"),
        (("report", "--schedule", "cosine", "--steps", "9" * 5000), "is no whole number"),
        (("report", "--schedule", "cosine", "--eta", "nan"), "eta must be finite"),
        (("report", "--schedule", "cosine", "--guidance", "inf"), "guidance must be finite"),
        (("report", "--schedule", "cosine", "--guidance", "1e300"), "guidance must lie in"),
        (("report", "--schedule", "cosine", "--sigma-data", "0"), "sigma_data must lie in"),
        (("report", "--schedule", "cosine", "--tolerance", "-1"), "tolerance must lie in"),
        (("report", "--schedule", "cosine", "--prediction", "velocity"), "ambiguous"),
        (("report", "--schedule", "cosine", "--solver", "euler"), "solver must be one of"),
        (("report", "--schedule", "rectified_flow", "--solver", "heun"), "pi/2"),
        (("report", "--schedule", "cosine", "--spacing", "even"), "spacing must be one of"),
        (("report", "--schedule", "cosine", "--output", "bf17"), "Did you mean 'bf16'?"),
        (("report", "--schedule", "cosine", "--output", "-0.1"), "--output: delta must lie in"),
        (("report", "--schedule", "cosine", "--output", "nan"), "delta must be finite"),
        (("report", "--schedule", "cosine", "--timestep", "0.1"), "format must be one of"),
        (("report", "--schedule", "cosine", "--plot", "x.exe"), "plot must end in"),
        (("report", "--schedule", "cosine", "--plot", "no/folder/x.png"), "No such file"),
        (("report", "--schedule", "cosine", "--json", "DDIMScheduler"), "--json FILE must end in .json"),
        (("report", "--schedule", "cosine", "--json", "no/folder/x.json"), "No such file"),
        (("report", "--schedule", "cosine", "--set", "beta_start=1"), "--set must go with a scheduler"),
        (("report", "DDIMScheduler", "--train-steps", "5"), "--train-steps must go with --schedule"),
        (("report", "DDIMScheduler", "--set", "beta_start"), "KEY=VALUE"),
        (("report", "DDIMScheduler", "--set", "beta_strat=1"), "Did you mean 'beta_start'?"),
        (("report", "DDIMScheduler", "--set", "beta_start=NaN"), "beta_start must be finite"),
        (("report", "DDIMScheduler", "--set", "shift=3"), "must be an option of DDIMScheduler, got 'shift', which it does not"),
        (("report", "FlowMatchEulerDiscreteScheduler", "--set", "flow_shift=3"), "Did you mean 'shift'?"),
        (("report", "UniPCMultistepScheduler", "--set", "shift=3"), "Did you mean 'flow_shift'?"),
        (("report", "DDIMScheduler", "--set", "trained_betas=[NaN]"), "trained_betas must be a list"),
        (("report", "DDIMScheduler", "--set", "trained_betas=[0.1]"), "trained_betas must hold num_train_timesteps"),
        (("report", "DDIMScheduler", "--set", "beta_start=[[[["), "beta_start must be a number"),
        (("report", "DDIMScheduler", "--unknown"), "unrecognized arguments"),
    ],
)
def test_a_bad_command_line_gets_one_line(arguments: tuple[str, ...], words: str) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    assert_refused(*arguments, words=words)


def test_json_does_not_overwrite_what_it_read(tmp_path: Path) -> None:
    path = written(tmp_path, V_CONFIG)
    assert_refused("report", path, "--json", path, words="must not overwrite")
    assert json.loads(path.read_text()) == V_CONFIG


@pytest.mark.parametrize("arguments", [("--help",), ("report", "--help"), ("convert", "--help")])
def test_help_says_what_the_status_means(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    if len(arguments) > 1:
        assert "0 safe (converted), 1 unsafe (no such conversion), 2 bad input" in text
        assert "no flag of kind unsafe, collision, stagnation, overflow or large" in text


# -- hostile files ----------------------------------------------------------------------------------------------------


DEEP = 200_000
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "must be JSON"),
    "truncated": (b'{"_class_name": "DDIMScheduler", "beta_', "must be JSON"),
    "a list": (b"[1, 2]", "must be a JSON object"),
    "a number": (b"3", "must be a JSON object"),
    "not UTF-8": (b'{"_class_name": "\xff\xfe"}', "UTF-8"),
    "UTF-16": ('{"_class_name": "DDIMScheduler"}'.encode("utf-16"), "UTF-8"),
    "binary": (bytes(range(256)) * 16, "config must be"),
    "nul bytes": (b"\0" * 100, "must be JSON"),
    "deep lists": (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested"),
    "NaN": (b'{"_class_name": "DDIMScheduler", "beta_start": NaN}', "holds NaN"),
    "infinity": (b'{"_class_name": "DDIMScheduler", "beta_start": Infinity}', "holds Infinity"),
    "hidden NaN": (b'{"_class_name": "DDIMScheduler", "x": [[{"y": [-Infinity]}]]}', "holds -Infinity"),
    "overflow": (b'{"_class_name": "DDIMScheduler", "beta_start": 1e999}', "beyond every double"),
    "digits": (b'{"_class_name": "DDIMScheduler", "steps_offset": ' + b"9" * 10_000 + b"}", "must be JSON"),
    "twice": (b'{"_class_name": "DDIMScheduler", "beta_end": 0.02, "beta_end": 0.5}', "is there twice"),
    "no class": (b'{"beta_start": 0.1}', "_class_name must be in the config"),
    "class of another kind": (b'{"_class_name": {"a": 1}}', "_class_name must be one of"),
    "escape sequences": (b'{"_class_name": "\\u001b[2J\\n\\ud800"}', "_class_name must be one of"),
    "long name": (b'{"_class_name": "' + b"x" * 100_000 + b'"}', "_class_name must be one of"),
    "huge step count": (
        b'{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000000000000}',
        "num_train_timesteps must be",
    ),
    "fraction": (b'{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000.5}', "num_train_timesteps must be"),
    "betas that grow": (b'{"_class_name": "DDIMScheduler", "beta_end": 3}', "betas must lie in"),
    "negative betas": (b'{"_class_name": "DDIMScheduler", "beta_start": -0.1}', "beta_start must lie in"),
    "no betas": (b'{"_class_name": "DDIMScheduler", "trained_betas": []}', "trained_betas must be a list"),
    "nested betas": (b'{"_class_name": "DDIMScheduler", "trained_betas": [[0.1]]}', "trained_betas must be a number"),
    "unknown type": (b'{"_class_name": "DDIMScheduler", "prediction_type": "noize"}', "noize"),
    "offset": (b'{"_class_name": "DDIMScheduler", "steps_offset": 999999}', "offset must"),
    "no shift": (b'{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}', "flow_shift must lie in"),
    "null": (b"null", "must be a JSON object"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_configs_get_one_line(tmp_path: Path, kind: str) -> None:
    content, words = HOSTILE[kind]
    assert_refused("report", written(tmp_path, content), words=words)


class Bomb:
    """A pickle that tells when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was read",))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    assert_refused("report", written(tmp_path, pickle.dumps(Bomb())))
    assert_refused("report", written(tmp_path, pickle.dumps(Bomb()), name="scheduler.pkl"))


def test_paths_that_lead_nowhere_get_one_line(tmp_path: Path) -> None:
    assert_refused("report", tmp_path, words="has neither")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    assert_refused("report", tmp_path / "loop.json", words="symbolic links")
    (tmp_path / "scheduler_config.json").symlink_to(tmp_path / "gone.json")
    assert_refused("report", tmp_path, words="No such file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        assert_refused("report", tmp_path / "pipe.json", words="regular file")
    assert_refused("report", "/dev/zero", words="regular file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "scheduler_config.json").mkdir()
    assert_refused("report", tmp_path / "folder", words="regular file")
    assert_refused("report", tmp_path / "a.json" / "b", words="config must be")


def test_a_gigantic_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(100 * 2**30)  # sparse: larger than the memory
    assert_refused("report", tmp_path / "big.json", words="at most 4 MiB")
    betas = ", ".join(["0.001"] * 20_000)
    assert len(betas) < MAX_BYTES
    config = f'{{"_class_name": "DDIMScheduler", "num_train_timesteps": 20000, "trained_betas": [{betas}]}}'
    assert read_config(written(tmp_path, config))["trained_betas"][-1] == 0.001


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, json.dumps(V_CONFIG).encode("utf-8-sig"))) == V_CONFIG


def test_names_of_files_do_not_break_the_line(tmp_path: Path) -> None:
    strange = os.fsdecode(b"a\nb\x1b[2J\xff.json")
    assert_refused("report", tmp_path / strange)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({key for options in DEFAULTS.values() for key in options})
NAMED = ["epsilon", "v_prediction", "sample", "flow_prediction", "linear", "scaled_linear", "squaredcos_cap_v2", "leading"]
NAMED += ["trailing", "linspace", "karras", "zero", "sigma_min", "fixed_large", "heun", "dpmsolver++", "edm", "ve", "flow"]
plausible = st.sampled_from(NAMED) | st.booleans() | st.integers(-2, 1200) | st.floats(0, 5) | st.none()


def assert_answered(status: int, out: str, err: str) -> None:
    """Either a verdict, or one line; never anything in between."""
    if status == 2:
        assert out == ""
        assert_one_line(err)
    else:
        assert status in (0, 1)
        assert err == ""
        assert "SAFE: " in out
        assert ("UNSAFE: " in out) == (status == 1)
        assert "nan" not in out


@given(
    st.sampled_from(list(DEFAULTS)),
    st.dictionaries(st.sampled_from(KEYS), plausible | json_values, max_size=4),
    st.integers(1, 12),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_config_is_answered(tmp_path: Path, name: str, options: dict[str, Any], steps: int) -> None:
    path = written(tmp_path, {"_class_name": name, **options})
    assert_answered(*run("report", path, "--steps", steps))


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered(tmp_path: Path, content: bytes) -> None:
    assert_answered(*run("report", written(tmp_path, content)))


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
FLAGS = ["--steps", "--spacing", "--prediction", "--solver", "--eta", "--guidance", "--sigma-data", "--output", "--arithmetic"]
FLAGS += ["--state", "--timestep", "--tolerance", "--loss-tolerance", "--train-steps", "--set"]
GOOD = ["v", "edm", "-flow", "bf16", "fp8_e4m3", "none", "0.01", "trailing", "heun", "dpm_solver", "7", "1e-3", "inf", "nan"]


@given(
    st.sampled_from(["cosine", "karras", "rectified_flow"]),
    st.lists(st.tuples(st.sampled_from(FLAGS), st.sampled_from(GOOD) | words), max_size=4),
)
@settings(max_examples=60)
def test_any_options_are_answered(schedule: str, options: list[tuple[str, str]]) -> None:
    texts = [f"{flag}={value}" for flag, value in options]
    assert_answered(*run("report", "--schedule", schedule, *texts))


@given(st.lists(words, max_size=4))
@settings(max_examples=40)
def test_any_words_are_answered(arguments: list[str]) -> None:
    assert_answered(*run("report", *(word for word in arguments if word not in ("-h", "--help"))))


# -- as a process -----------------------------------------------------------------------------------------------------


PROBE = """
import json, sys, time
begin = time.perf_counter()
from diffparam.report.cli import main
status = main(["report", "DDIMScheduler", "--set", "prediction_type=v_prediction", "--set", "beta_schedule=scaled_linear"])
families = sorted({name.partition(".")[0] for name in sys.modules} | {".".join(n.split(".")[:2]) for n in sys.modules})
print(json.dumps([status, families, time.perf_counter() - begin]), file=sys.stderr)
"""


def test_a_class_is_reported_without_diffusers_and_fast() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    status, families, seconds = json.loads(done.stderr)
    print(f"diffparam report with its imports: {seconds:.2f} s")
    assert status == 0
    assert done.stdout.startswith("DDIMScheduler: 50 steps")
    heavy = {"diffusers", "transformers", "matplotlib", "sklearn", "safetensors", "pandas", "scipy.stats", "mmar"}
    assert not heavy & set(families)


def test_a_reader_that_leaves_is_no_error() -> None:
    """The pipe is closed before the first line is written (| head -0)."""
    command = [sys.executable, "-W", "error", "-m", "diffparam.report.cli", "report", "--schedule", "cosine", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1  # the verdict
    assert err == ""


def test_a_terminal_without_greek_letters_is_no_error() -> None:
    command = [sys.executable, "-m", "diffparam.report.cli", "report", "--schedule", "cosine", "--steps", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert done.stderr == ""
    assert "\\u03ba max" in done.stdout


def test_bad_input_is_told_apart_from_a_bug() -> None:
    """What no input should cause is not dressed up as bad input."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffparam.report.cli.report", lambda *_, **__: {}["x"])
        with pytest.raises(KeyError):
            main(["report", "--schedule", "cosine"])


def test_reading_is_refused_by_the_same_error_as_a_function(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must be JSON"):
        read_config(written(tmp_path, b"{"))
