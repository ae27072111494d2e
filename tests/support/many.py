"""Small sources and jobs for builds of many images."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

from eroseal.build.many import ManyReport
from eroseal.build.manyjob import ManyJob
from eroseal.build.options import BuildOptions
from eroseal.tree.attributes import Owner
from eroseal.tree.rules import Scope

OPTIONS = BuildOptions(jobs=1, durable=False)


def make_sources(place: Path, count: int, *, size: int = 100_000) -> None:
    """Write directories `source0`, `source1`, … that share half of their bytes."""
    shared = random.Random(0).randbytes(size)
    for number in range(count):
        source = place / f"source{number}"
        (source / "etc").mkdir(parents=True)
        (source / "etc/name").write_text(f"{number}\n")
        (source / "shared").write_bytes(shared)
        (source / "own").write_bytes(random.Random(number + 1).randbytes(size))


def job(
    place: Path,
    source: str,
    target: str,
    *,
    bases: Sequence[str] = (),
    options: BuildOptions = OPTIONS,
    auto_base: str | None = None,
) -> ManyJob:
    """One image, with paths that start in `place`."""
    return ManyJob(
        source=source, target=target, bases=tuple(bases), auto_base=auto_base, options=options, directory=str(place)
    )


def make_jobs(place: Path, count: int, store: str) -> list[ManyJob]:
    """Jobs for all sources, every third one built on the next one of the list."""
    return [
        job(
            place,
            f"source{number}",
            f"dir:{store}:app-{number}",
            bases=[f"dir:{store}:app-{number + 1}"] if number % 3 == 0 and number + 1 < count else [],
        )
        for number in range(count)
    ]


def states(report: ManyReport) -> list[str]:
    """What became of each image."""
    return [entry.state for entry in report.entries]


def images(report: ManyReport) -> list[str | None]:
    """The digest of each image."""
    return [entry.image for entry in report.entries]


class Killer(Scope[Owner]):
    """Owners by path whose look-up kills the process that does it: a stand-in for what runs a machine out of memory.

    Args:
        once: a file that it leaves when it has done so; nobody dies twice of it. None kills always.
    """

    __slots__ = ("_once",)

    def __init__(self, once: Path | None = None) -> None:
        super().__init__({}, ())
        self._once = once

    def below(self, prefix: bytes) -> Killer:
        return self

    def find(self, path: bytes, mode: int) -> None:
        if self._once is not None and self._once.exists():
            return
        if self._once is not None:
            self._once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
