"""Which image comes before which, and which bases are found by name for many images at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.many import OPTIONS, images, job, make_sources, states

from eroseal.build.many import build_many
from eroseal.build.manyjob import ManyJob
from eroseal.build.manyorder import waiting_for, with_newest_bases
from eroseal.build.manyworkers import Threads
from eroseal.errors import UsageError
from eroseal.store.remote import RemoteOptions

REMOTE = RemoteOptions()


def listed(place: Path, *lines: str) -> list[ManyJob]:
    """Jobs from lines `TARGET BASE ...`."""
    return [job(place, "source0", target, bases=bases) for target, *bases in map(str.split, lines)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["dir:s:a", "dir:s:b dir:s:a", "dir:s:c dir:s:b dir:s:a dir:s:b"], [(), (0,), (1, 0)]),
        (["dir:s:a dir:s:b", "dir:s:b"], [(1,), ()]),
        (["dir:s:a dir:./x/../s:a", "dir:s:b dir:other:a"], [(), ()]),
        (["oci:s:a", "dir:s:b oci:/place/s:a", "dir:s:c dir:s:a"], [(), (0,), ()]),
        (["docker://host.example/a/b:1", "dir:s:b docker://host.example/a/b:1"], [(), (0,)]),
    ],
)
def test_who_waits_for_whom(lines: list[str], expected: list[tuple[int, ...]]) -> None:
    assert waiting_for(listed(Path("/place"), *lines)) == expected


@pytest.mark.parametrize("second", ["dir:s:a", "dir:./s:a", "dir:x/../s:a", "dir:/place/s:a"])
def test_one_target_twice(second: str) -> None:
    with pytest.raises(UsageError, match="dir:/place/s:a: two images with one target"):
        waiting_for(listed(Path("/place"), "dir:s:b", "dir:s:a", second))


def test_circles_are_refused(tmp_path: Path) -> None:
    jobs = listed(tmp_path, "dir:s:x", "dir:s:a dir:s:c", "dir:s:b dir:s:a", "dir:s:c dir:s:b")
    with pytest.raises(UsageError, match=r"built on each other: dir:s:. on dir:s:. on dir:s:. on dir:s:."):
        build_many(jobs, Threads(1))
    assert list(tmp_path.iterdir()) == []


def auto(jobs: list[ManyJob], *, continued: frozenset[tuple[str, str]] = frozenset()) -> list[str | None]:
    """The names of the bases that are found."""
    found = with_newest_bases(jobs, REMOTE, continued=continued)
    return [item.auto_base and item.auto_base.rpartition(":")[2] for item in found]


def test_earlier_lines_count_as_if_they_were_there(tmp_path: Path) -> None:
    make_sources(tmp_path, 1)
    lines = ["dir:s:app-1", "dir:s:app-3", "dir:s:app-2", "dir:t:app-4", "one.erofs", "dir:s:other", "dir:s:app"]
    jobs = listed(tmp_path, *lines)
    assert auto(jobs) == [None, "app-1", "app-3", None, None, None, "app-3"]
    # What is there of this very list does not change that, or a run that is continued would give other images.
    build_many(jobs[1:3], Threads(1))
    begun = frozenset((item.source, item.target) for item in jobs)
    assert auto(jobs, continued=begun) == [None, "app-1", "app-3", None, None, None, "app-3"]


def test_what_is_replaced_is_the_base(tmp_path: Path) -> None:
    make_sources(tmp_path, 1)
    build_many(listed(tmp_path, "dir:s:app-0", "dir:s:app-7", "dir:s:app-9"), Threads(1))
    jobs = listed(tmp_path, "dir:s:app-1", "dir:s:app-7", "dir:s:app-8")
    assert auto(jobs) == ["app-9", "app-7", "app-9"]
    assert auto(jobs[1:2], continued=frozenset({("source0", "dir:s:app-7")})) == ["app-9"]
    with_sha512 = [replace(item, options=replace(OPTIONS, params=replace(OPTIONS.params, salt=b"x"))) for item in jobs]
    assert auto(with_sha512) == [None, "app-1", "app-7"]


def test_versions_share_chunks_in_any_executor(tmp_path: Path) -> None:
    make_sources(tmp_path, 4)
    digests = []
    for store, parallel in (("one", 1), ("two", 3)):
        jobs = [job(tmp_path, f"source{number}", f"dir:{store}:app-{number}") for number in range(4)]
        report = build_many(with_newest_bases(jobs, REMOTE), Threads(parallel))
        assert states(report) == ["done"] * 4
        assert [entry.bytes_shared > 0 for entry in report.entries] == [False, True, True, True]
        assert report.entries[3].bases == (f"dir:{tmp_path}/{store}:app-2",)
        digests.append(images(report))
    assert digests[0] == digests[1]


def test_a_server_out_of_reach_stops_nobody(tmp_path: Path) -> None:
    lines = ["docker://localhost:1/x:1", "docker://localhost:1/x:2", "dir:s:app-1", "dir:s:app-2"]
    warnings: list[str] = []
    found = with_newest_bases(listed(tmp_path, *lines), replace(REMOTE, attempts=1, timeout=1.0), warn=warnings.append)
    assert [item.auto_base for item in found] == [None, "docker://localhost:1/x:1", None, f"dir:{tmp_path}/s:app-1"]
    assert len(warnings) == 1
    assert warnings[0].startswith("no base for docker://localhost:1/x:1: ")
