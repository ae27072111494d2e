"""The document of `build-many`, and the file that a later run continues from.

Fields are only ever added; anything else gets a new number in `schema`. The file is written whole or not at all, after
every image. What it says is not believed: a run looks at each target itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from eroseal.build.many import ManyEntry, ManyReport, State
from eroseal.errors import FormatError, NotFoundError
from eroseal.limits import MAX_LISTED_IMAGES, MAX_MANY_REPORT
from eroseal.report.document import Document, to_json
from eroseal.store.atomic import write_atomic

Count = Annotated[int, msgspec.Meta(ge=0)]


class ManyImage(Document, frozen=True, kw_only=True):
    """What became of one line of the list.

    Args:
        source, target: as they stand in the list.
        state: "pending" while nothing is known, "done" if it was built, "skipped" if it was there from an earlier run.
        bases: references that it was built on.
        image: the image digest, if it is done or skipped.
        error: why it failed.
        exit_code: that a `build` of its own would have ended with; 0 without an error.
        seconds: wall time of the build.
        bytes_in, bytes_new, bytes_shared: as in `BuildDocument`.
        attempts: times that a worker was told to build it in this run.
    """

    source: str
    target: str
    state: State
    bases: list[str]
    image: str | None
    error: str | None
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)]
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    bytes_in: Count
    bytes_new: Count
    bytes_shared: Count
    attempts: Count


class ManyDocument(Document, frozen=True, kw_only=True):
    """What `build-many --json` prints, and `--report` keeps.

    Args:
        images: in the order of the list.
    """

    schema: Literal["eroseal.build-many/1"] = "eroseal.build-many/1"
    images: Annotated[list[ManyImage], msgspec.Meta(max_length=MAX_LISTED_IMAGES)]


def many_document(report: ManyReport) -> ManyDocument:
    """The document for a report."""
    images = [ManyImage(**{**asdict(entry), "bases": list(entry.bases)}) for entry in report.entries]
    return ManyDocument(images=images)


def write_report(path: Path, report: ManyReport, *, durable: bool = True) -> None:
    """Write a report's file anew; raises OutputError."""
    write_atomic(path, f"{to_json(many_document(report))}\n".encode(), replace=True, durable=durable)


def read_report(path: Path) -> ManyReport | None:
    """The report of an earlier run; None if there is none.

    Raises:
        NotFoundError: the file cannot be read.
        FormatError: it is something else.
    """
    where = os.fspath(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANY_REPORT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", where=where) from error
    return parse_report(data, where=where)


def parse_report(data: bytes, *, where: str | None = None) -> ManyReport:
    """Read a report's bytes.

    Args:
        data: of the file.
        where: its path, for messages.

    Raises:
        FormatError: it is something else, or two entries have the same source and target.
    """
    hint = "name another file for the report, or remove this one"
    if len(data) > MAX_MANY_REPORT:
        raise FormatError(f"a report has more than {MAX_MANY_REPORT} bytes", where=where, hint=hint)
    try:
        # Not msgspec's own decoder: it refuses the lone surrogates that stand for bytes which are not UTF-8.
        document = msgspec.convert(json.loads(data.decode("ascii"), parse_constant=_no_number), type=ManyDocument)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"not a report of build-many: {error}", where=where, hint=hint) from error
    entries = tuple(
        ManyEntry(**{**msgspec.structs.asdict(image), "bases": tuple(image.bases)}) for image in document.images
    )
    if len({(entry.source, entry.target) for entry in entries}) < len(entries):
        raise FormatError("a report lists an image twice", where=where, hint=hint)
    if any((entry.image is not None) != entry.is_there for entry in entries):
        raise FormatError("a report gives a digest where there is no image, or none where one is", where=where)
    return ManyReport(entries)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
