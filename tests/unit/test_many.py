"""Many images through executors: order, failures, lost workers, interruptions, and runs that continue."""

from __future__ import annotations

import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.many import OPTIONS, Killer, images, job, make_jobs, make_sources, states

from eroseal.build.builder import build
from eroseal.build.many import ManyEntry, ManyReport, Workers, build_many
from eroseal.build.manyjob import Outcome, Setting, build_image, find_image
from eroseal.build.manyworkers import AnyExecutor, Cluster, Processes, Threads
from eroseal.build.options import BlobLayout
from eroseal.errors import ErosealError, KeyMaterialError, RemoteError, UnsupportedError
from eroseal.store.local import LocalStore
from eroseal.store.remote import RemoteOptions

SINGLE = replace(OPTIONS, blobs=BlobLayout.NONE)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_sources(tmp_path, 6)
    return tmp_path


def plain(parallel: int) -> Workers:
    return AnyExecutor(lambda: ThreadPoolExecutor(parallel), parallel)


@pytest.mark.parametrize("workers", [Threads(3), Processes(2), plain(1)], ids=["threads", "processes", "plain"])
def test_digests_are_those_of_single_builds(place: Path, workers: Workers) -> None:
    jobs = make_jobs(place, 6, "many")
    report = build_many(jobs, workers)
    assert states(report) == ["done"] * 6
    assert report.exit_code == 0
    alone = {}
    for number in (1, 0, 2, 4, 3, 5):
        bases = tuple(str(base).replace("/many:", "/alone:") for base in jobs[number].base_references)
        target = replace(jobs[number], target=f"dir:alone:app-{number}").reference
        alone[number] = str(build(place / f"source{number}", target, OPTIONS, bases=bases).image)
    assert images(report) == [alone[number] for number in range(6)]
    assert [entry.bytes_shared > 0 for entry in report.entries] == [True, False, False, True, False, False]


def test_a_failure_stops_only_what_is_built_on_it(place: Path) -> None:
    saved: list[ManyReport] = []
    told: list[str] = []
    (place / "broken.tar").write_bytes(b"no archive" * 100)
    jobs = [
        job(place, "source0", "dir:store:a"),
        job(place, "broken.tar", "dir:store:b"),
        job(place, "source1", "dir:store:c", bases=["dir:store:b"]),
        job(place, "source2", "dir:store:d", bases=["dir:store:c"]),
        job(place, "source3", "dir:store:e", auto_base="dir:store:b"),
        job(place, "none", "dir:store:f"),
        job(place, "source4", "dir:store:g", bases=["dir:store:nobody"]),
    ]
    report = build_many(jobs, Threads(2), save=saved.append, tell=lambda entry, _: told.append(entry.target))
    assert states(report) == ["done", "failed", "failed", "failed", "done", "failed", "failed"]
    assert [entry.exit_code for entry in report.entries] == [0, 3, 3, 3, 0, 1, 1]
    assert report.exit_code == 3
    assert [entry.error and entry.error.startswith(f"{place}/") for entry in report.entries[1::4]] == [True, True]
    assert report.entries[3].error == "its base dir:store:c was not built"
    assert report.entries[2].attempts == 0
    assert report.entries[4].bases == ()
    assert sorted(told) == [entry.target for entry in report.entries]
    assert states(saved[0]) == ["pending"] * 7
    assert saved[-1] == report
    assert LocalStore.open(place / "store").list_images() == ["a", "e"]


def test_everything_fails_without_harm(place: Path) -> None:
    jobs = [job(place, "none", f"dir:store:{name}") for name in "abcdefgh"]
    assert states(build_many(jobs, Threads(4))) == ["failed"] * 8
    assert states(build_many([job(place, "source0", "dir:store:a")], Threads(1))) == ["done"]
    assert build_many([], Threads(1)) == ManyReport(())


# --- runs that continue ---
def test_a_run_continues(place: Path) -> None:
    jobs = make_jobs(place, 6, "store")
    first = build_many(jobs, Threads(2))
    store = LocalStore.open(place / "store")
    store.delete_image("app-1")
    shutil.rmtree(place / "source4")
    earlier = ManyReport(
        (
            *first.entries[:2],
            replace(first.entries[2], state="failed", image=None, error="full", exit_code=1),
            *first.entries[3:5],
        )
    )
    second = build_many(jobs, Threads(2), earlier=earlier)
    assert states(second) == ["skipped", "done", "done", "skipped", "skipped", "failed"]
    assert images(second)[:5] == images(first)[:5]
    assert second.entries[5].error == "exists already (choose another name, or --replace it)"
    assert second.entries[0] == replace(first.entries[0], state="skipped", attempts=0)
    saved: list[ManyReport] = []
    third = build_many(jobs[:5], Threads(2), earlier=second, save=saved.append)
    assert saved[0].entries == second.entries[:5]
    assert states(third) == ["skipped"] * 5
    assert images(third) == images(first)[:5]


def test_a_report_is_not_believed(place: Path) -> None:
    jobs = [job(place, "source0", "dir:store:a"), job(place, "source1", "one.erofs", options=SINGLE)]
    report = build_many(jobs, Threads(1))
    build_other = [replace(item, source="source2", options=replace(item.options, replace=True)) for item in jobs]
    other = build_many(build_other, Threads(1))
    assert states(other) == ["done", "done"]
    again = build_many(jobs, Threads(1), earlier=report)
    assert states(again) == ["failed", "failed"]
    assert all("exists already, with another image" in str(entry.error) for entry in again.entries)
    assert images(build_many(build_other, Threads(1), earlier=other)) == images(other)
    blob = LocalStore.open(place / "store").image("a")[0].blobs[0].digest
    LocalStore.open(place / "store").delete_blob(blob)
    (place / "one.erofs").write_bytes(b"spoiled")
    assert states(build_many(build_other, Threads(1), earlier=other)) == ["done", "done"]


@pytest.mark.parametrize("target", ["dir:store:a", "one.erofs"])
def test_a_worker_may_be_told_again(place: Path, target: str) -> None:
    """It died, or its answer was lost, after the image appeared."""
    signed: list[bytes] = []

    def prepare() -> Setting:
        return Setting(record=lambda image, root_hash: signed.append(b"x") or [])

    item = job(place, "source0", target, options=SINGLE)
    assert find_image(item, prepare) == Outcome()
    first = build_image(item, prepare)
    assert find_image(item, prepare) == Outcome(image=first.image)
    assert build_image(item, prepare).image == first.image
    (place / "source0/etc/name").write_text("changed")
    assert "with another image" in str(build_image(item, prepare).error)
    assert find_image(item, prepare) == Outcome(image=first.image)
    assert len(signed) == 2


# --- workers that die ---
def test_a_worker_that_dies_once(place: Path) -> None:
    jobs = make_jobs(place, 6, "store")
    jobs[2] = replace(jobs[2], options=replace(OPTIONS, owners=Killer(place / "once")))
    report = build_many(jobs, Processes(2))
    assert states(report) == ["done"] * 6
    assert report.entries[2].attempts == 2
    assert (place / "once").exists()
    again = make_jobs(place, 6, "other")
    again[2] = replace(again[2], options=jobs[2].options)
    assert images(report) == images(build_many(again, Threads(2)))


def test_an_image_that_kills_workers_fails_alone(place: Path) -> None:
    jobs = make_jobs(place, 6, "store")
    jobs[4] = replace(jobs[4], options=replace(OPTIONS, owners=Killer()))
    report = build_many(jobs, Processes(3), attempts=2)
    assert states(report) == ["done", "done", "done", "failed" if jobs[3].bases else "done", "failed", "done"]
    assert report.entries[4].attempts == 2
    assert str(report.entries[4].error).startswith("lost 2 workers: BrokenProcessPool: ")
    assert max(item.attempts for item in report.entries) == 2


class Flaky(ThreadPoolExecutor):
    """Loses every second call, as a cluster does that cannot keep its machines."""

    calls = 0

    def submit(self, fn, /, *args, **kwargs):
        Flaky.calls += 1
        if Flaky.calls % 2:
            return super().submit(divmod, 1, 0)
        return super().submit(fn, *args, **kwargs)


def test_lost_calls_are_made_again(place: Path) -> None:
    report = build_many(make_jobs(place, 6, "store"), AnyExecutor(lambda: Flaky(1), 1), attempts=5)
    assert states(report) == ["done"] * 6
    report = build_many(make_jobs(place, 1, "other"), AnyExecutor(lambda: Flaky(1), 1), attempts=1)
    assert report.entries[0].error == "lost 1 workers: ZeroDivisionError: integer division or modulo by zero"


class Unreachable(ThreadPoolExecutor):
    """Cancels what it has, as a client does whose scheduler is gone."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future[object] = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_an_executor_that_cancels_is_left(place: Path) -> None:
    made: list[Executor] = []

    def make() -> Executor:
        made.append(ThreadPoolExecutor(2) if made else Unreachable(2))
        return made[-1]

    report = build_many(make_jobs(place, 6, "store"), AnyExecutor(make, 2))
    assert states(report) == ["done"] * 6
    assert len(made) == 2


def test_no_workers(place: Path) -> None:
    saved: list[ManyReport] = []

    def refuse() -> Executor:
        raise RemoteError("no scheduler answers")

    def ended() -> Executor:
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        return executor

    for make, expected in ((refuse, "no scheduler answers"), (ended, "no worker takes work: RuntimeError: cannot")):
        with pytest.raises(ErosealError, match=expected):
            build_many(make_jobs(place, 3, "store"), AnyExecutor(make, 1), save=saved.append)
        assert states(saved[-1]) == ["pending"] * 3


def test_the_extra_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UnsupportedError, match=r"Dask is not installed \(pip install 'eroseal\[cluster\]'\)"):
        Cluster("tcp://127.0.0.1:1")


def test_workers_of_another_version_are_refused(place: Path) -> None:
    outcome = find_image(job(place, "source0", "dir:store:a"), Setting, "0.0")
    assert outcome.exit_code == 1
    assert "not 0.0" in str(outcome.error)


# --- interruptions ---
@pytest.mark.parametrize("workers", [Threads, Processes])
def test_an_interruption_leaves_a_right_report(place: Path, workers: Callable[[int], Workers]) -> None:
    """What runs ends, nothing new starts, and the next run finishes the work."""
    saved: list[ManyReport] = []
    jobs = make_jobs(place, 6, "store")

    def interrupt(_entry: ManyEntry, _outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_many(jobs, workers(1), save=saved.append, tell=interrupt)
    assert states(saved[-1]).count("done") == 1
    assert states(saved[-1]).count("pending") == 5
    assert not list(place.rglob(".eroseal-tmp-*"))
    report = build_many(jobs, Threads(2), earlier=saved[-1])
    assert sorted(states(report)) == ["done"] * 5 + ["skipped"]


# --- what travels ---
def test_jobs_and_outcomes_are_plain(place: Path) -> None:
    item = job(place, "source0", "dir:store:a")
    assert pickle.loads(pickle.dumps(item)) == item
    outcome = build_image(item, Setting)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_an_error_of_the_surroundings_is_the_image_s(place: Path) -> None:
    def prepare() -> Setting:
        raise KeyMaterialError("the private key is encrypted")

    report = build_many([job(place, "source0", "dir:store:a")], Threads(1), prepare=prepare)
    assert report.entries[0].error == "the private key is encrypted"


def test_unforeseen_errors_are_the_image_s(place: Path) -> None:
    def prepare() -> Setting:
        return Setting(remote=RemoteOptions(), record=lambda image, root_hash: 1 / 0)  # type: ignore[arg-type,return-value]

    report = build_many([job(place, "source0", "dir:store:a")], Threads(1), prepare=prepare)
    assert report.entries[0].error == "internal error: ZeroDivisionError: division by zero"
    assert not (place / "store/images/a").exists()


def test_warnings_come_back(place: Path) -> None:
    with tarfile.open(place / "odd.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("file")
        member.pax_headers = {"SCHILY.xattr.odd.name": "value"}
        archive.addfile(member)
    outcome = build_image(job(place, "odd.tar", "dir:store:a"), Setting)
    assert outcome.error is None
    assert len(outcome.warnings) == 1
    assert "odd.name" in outcome.warnings[0]
