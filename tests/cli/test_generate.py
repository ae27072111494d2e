"""What is generated from the commands is committed, complete and up to date."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eroseal.cli.generate import generate
from eroseal.cli.main import VERBS

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDERS = ("man", "completion", "schemas")


def test_committed_files_are_what_is_generated() -> None:
    generated = dict(generate())
    committed = {
        str(path.relative_to(DOCS)): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in (DOCS / folder).iterdir()
    }
    assert sorted(committed) == sorted(generated)
    stale = [name for name, text in generated.items() if committed[name] != text]
    assert not stale, "run: python -m eroseal.cli.generate docs/"


def test_generating_writes_the_same_files_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eroseal.cli.generate", tmp_path / "docs"]
    environment = {"LC_ALL": "C", "TZ": "Asia/Tokyo", "COLUMNS": "40", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name, text in generate():
        assert (tmp_path / "docs" / name).read_text(encoding="utf-8") == text


def test_wrong_usage_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eroseal.cli.generate"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: python -m eroseal.cli.generate DIRECTORY\n")


def test_every_verb_has_a_page() -> None:
    assert {path.stem for path in (DOCS / "man").iterdir()} == {"eroseal", *(f"eroseal-{verb}" for verb in VERBS)}


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_pages_are_good_roff() -> None:
    for page in sorted((DOCS / "man").iterdir()):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True, check=True
        )
        assert done.stderr == "", page.name


def test_completion_script_for_bash_parses() -> None:
    script = DOCS / "completion/eroseal.bash"
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=True).stderr == ""
