"""`eroseal demo`: it runs, for root and for ordinary users, leaves nothing, and fails when a step does."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Samples
from tests.support.program import ORDINARY_USER, eroseal


def demo(samples: Samples, place: Path, **options: object) -> str:
    outcome = eroseal("demo", "--source", samples.tree, cwd=place, environment={"TMPDIR": str(place)}, **options)
    assert list(place.iterdir()) == []
    return outcome.text


def test_it_tells_the_whole_story(need_kernel_erofs: None, samples: Samples, tmp_path: Path) -> None:
    text = demo(samples, tmp_path)
    for verb in ("build", "sign", "verify", "ls", "unpack"):
        assert f"\n$ eroseal {verb} " in text
    assert "mounted with 1 data blob as device" in text
    assert text.count("files are the same") == 2
    assert "data block does not match the hash in its parent" in text
    assert "is pinned" in text
    assert text.count("(exit code 3)") == 2
    assert text.endswith("the demo went as it should\n")


def test_it_needs_no_root(samples: Samples, tmp_path: Path) -> None:
    text = demo(samples, tmp_path, wrapper=ORDINARY_USER)
    assert "skipped: only root may mount" in text
    assert text.endswith("the demo went as it should\n")


def test_it_has_a_source_of_its_own(tmp_path: Path) -> None:
    text = eroseal("demo", cwd=tmp_path).text
    assert text.endswith("the demo went as it should\n")


def test_a_step_that_fails_fails_the_demo(tmp_path: Path) -> None:
    assert "is not a directory" in eroseal("demo", "--source", "none", cwd=tmp_path, code=1).error
    (tmp_path / "empty").mkdir()
    # An image without a data blob has nothing that could be damaged as the demo means to.
    outcome = eroseal("demo", "--source", "empty", cwd=tmp_path, code=0)
    assert outcome.text.endswith("the demo went as it should\n")
