"""The report of many images: written whole, read strictly, and never taken for something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eroseal.build.many import ManyEntry, ManyReport
from eroseal.errors import FormatError, NotFoundError, OutputError
from eroseal.limits import MAX_LISTED_IMAGES
from eroseal.report.many import parse_report, read_report, write_report

DONE = ManyEntry(
    source="tree\udcff",
    target="dir:store:a",
    state="done",
    bases=("dir:store:b",),
    image="fsverity-sha256-12:" + "0" * 64,
    seconds=1.5,
    bytes_in=3,
    bytes_new=2,
    bytes_shared=1,
    attempts=2,
)
REPORT = ManyReport((DONE, ManyEntry(source="x", target="y", state="failed", error='no "x"\n', exit_code=3)))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "report"
    assert read_report(path) is None
    write_report(path, ManyReport(()), durable=False)
    assert read_report(path) == ManyReport(())
    write_report(path, REPORT)
    assert read_report(path) == REPORT
    assert json.loads(path.read_text())["schema"] == "eroseal.build-many/1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def test_counts_and_exit_code() -> None:
    assert REPORT.exit_code == 3
    assert (REPORT.count("done"), REPORT.count("failed"), REPORT.count("pending")) == (1, 1, 0)
    assert ManyReport(()).exit_code == ManyReport((DONE,)).exit_code == 0


def document(**changes: Any) -> bytes:
    """A report of one image with changes, which may be of the document (`doc_…`)."""
    image = {
        "source": "s",
        "target": "t",
        "state": "pending",
        "bases": [],
        "image": None,
        "error": None,
        "exit_code": 0,
        "seconds": 0.0,
        "bytes_in": 0,
        "bytes_new": 0,
        "bytes_shared": 0,
        "attempts": 0,
    }
    image |= {name: value for name, value in changes.items() if not name.startswith("doc_")}
    whole = {"schema": "eroseal.build-many/1", "images": [image]}
    whole |= {name.removeprefix("doc_"): value for name, value in changes.items() if name.startswith("doc_")}
    return json.dumps(whole).encode()


def test_the_sample_is_a_report() -> None:
    assert parse_report(document()) == ManyReport((ManyEntry(source="s", target="t"),))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"tree dir:store:app\n",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        document()[:-1],
        document() + b"x",
        document(doc_schema="eroseal.build-many/2"),
        document(doc_schema="eroseal.build/1"),
        document(doc_more=1),
        document(more=1),
        document(state="ready"),
        document(source=1),
        document(attempts=-1),
        document(attempts="1"),
        document(seconds=float("nan")),
        document(seconds=float("inf")),
        document(exit_code=256),
        document(bases="dir:store:b"),
        document(state="done"),
        document(image="fsverity-sha256-12:00"),
        document(doc_images=[json.loads(document())["images"][0]] * 2),
        document(doc_images=[{}]),
        document(doc_images=[json.loads(document())["images"][0]] * (MAX_LISTED_IMAGES + 1)),
        document().replace(b'"attempts": 0', b'"attempts": ' + b"9" * 5000),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_report(path)
    assert caught.value.where == str(path)
    assert path.read_bytes() == data


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_report(tmp_path)
    with pytest.raises(OutputError, match="no such directory"):
        write_report(tmp_path / "none/report", REPORT)
    write_report(tmp_path / "long", ManyReport((replace(DONE, error="x" * 1000),)))
    assert read_report(tmp_path / "long") is not None
