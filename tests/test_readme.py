"""The README as people use it: its code runs, its numbers are those of the records, its files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffparam.report import cli
from experiments import readme

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_code_blocks_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {})
    assert "nan" not in capsys.readouterr().out


def test_numbers_are_those_of_the_records() -> None:
    pages = [page.read_text() for page in readme.PAGES]
    for page in pages:
        assert readme.rewritten(page) == page, "run: python experiments/readme.py"
    assert set(re.findall(r"<!-- numbers: (\w+) -->", "".join(pages))) == set(readme.BLOCKS)


def test_a_changed_number_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above."""
    (number, *_) = re.findall(r"\| 0\.\d+ \|", TEXT)
    wrong = tmp_path / "README.md"
    wrong.write_text(TEXT.replace(number, "| 0.123456 |", 1))
    monkeypatch.setattr(readme, "README", wrong)
    monkeypatch.setattr(readme, "PAGES", (wrong,))
    with pytest.raises(SystemExit, match=r"python experiments/readme\.py"):
        readme.main(["--check"])
    readme.main([])
    assert wrong.read_text() == TEXT


def commands() -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


def test_both_commands_make_their_own_environment() -> None:
    setup = [command for command in commands() if command.startswith("python3 ")]
    assert len(setup) == 2
    for command in setup:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ")


def test_the_report_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [c for c in commands() if c.startswith(".venv/bin/diffparam ")]
    assert cli.main(command.split()[1:]) == 1  # unsafe
    assert capsys.readouterr().out.strip() in TEXT


def test_files_that_are_named_exist() -> None:
    linked = re.findall(r"\]\((?!http)([^)]+)\)", TEXT)
    scripts = re.findall(r"python ((?:experiments|paper_figures)/\w+\.py)", TEXT + readme.PAGES[1].read_text())
    assert linked
    assert scripts
    for path in (*linked, *scripts):
        assert (ROOT / path).exists(), path


def test_every_file_of_the_library_is_in_the_tree() -> None:
    tree = TEXT.partition("## Files")[2]
    for path in sorted((ROOT / "diffparam").rglob("*.py")):
        if path.name != "__init__.py":
            assert path.name in tree or path.parent.name + "/ " in tree, path
