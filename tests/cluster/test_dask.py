"""Many images on a real Dask cluster of two worker processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import dask
import distributed
import pytest
from tests.support.many import images, make_jobs, make_sources, states
from tests.support.program import eroseal

from eroseal.build import manyworkers
from eroseal.build.many import ManyEntry, build_many
from eroseal.build.manyjob import Outcome
from eroseal.build.manyworkers import Cluster, Threads
from eroseal.errors import RemoteError
from eroseal.store.local import LocalStore

IMAGES = 20


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    """Give a scheduler in this process, and two workers with a nanny each that starts them anew."""
    # A scheduler that wants a result from a worker which has just been killed tries to reach it for this long.
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
        ) as running,
    ):
        yield running


def test_a_killed_worker_costs_no_image(tmp_path: Path, cluster: distributed.LocalCluster) -> None:
    make_sources(tmp_path, IMAGES)
    pids = [nanny.pid for nanny in cluster.workers.values()]
    ended: list[ManyEntry] = []

    def tell(entry: ManyEntry, _outcome: Outcome) -> None:
        ended.append(entry)
        if len(ended) == 5:
            os.kill(pids[0], signal.SIGKILL)

    jobs = make_jobs(tmp_path, IMAGES, "store")
    report = build_many(jobs, Cluster(cluster.scheduler_address), tell=tell)
    assert states(report) == ["done"] * IMAGES
    assert len(ended) == IMAGES
    assert not os.path.exists(f"/proc/{pids[0]}")
    assert images(report) == images(build_many(make_jobs(tmp_path, IMAGES, "local"), Threads(2)))
    store = LocalStore.open(tmp_path / "store")
    assert [str(store.image(f"app-{number}")[0].image) for number in range(IMAGES)] == images(report)
    continue_from_the_command_line(tmp_path, cluster, report.entries[0])


def continue_from_the_command_line(place: Path, cluster: distributed.LocalCluster, first: ManyEntry) -> None:
    """The same cluster through the program: elsewhere, so that paths must travel whole."""
    (place / "list").write_text("source0 dir:cli:a base=dir:cli:b\nsource1 dir:cli:b\nnone dir:cli:c\n")
    outcome = eroseal(
        "build-many",
        "list",
        "--scheduler",
        cluster.scheduler_address,
        "--report",
        "report.json",
        cwd=place,
        code=1,
        environment={"PYTHONWARNINGS": "default"},  # what Dask imports has warnings of its own
    )
    assert outcome.error == "1 of 3 images failed"
    found = json.loads((place / "report.json").read_text())["images"]
    assert [image["state"] for image in found] == ["done", "done", "failed"]
    assert found[0]["image"] == first.image
    assert all(line.startswith("eroseal: ") for line in outcome.err.splitlines()), outcome.err


def test_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sources(tmp_path, 1)
    monkeypatch.setattr(manyworkers, "_CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    for wrong in (address, "tcp://127.0.0.1:port", "tcp://127.0.0.1", "nonsense", "nonsense://x"):
        with pytest.raises(RemoteError, match="no Dask scheduler answers"):
            build_many(make_jobs(tmp_path, 1, "store"), Cluster(wrong))
    monkeypatch.setattr(manyworkers, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RemoteError, match="no Dask scheduler answers"):
            build_many(make_jobs(tmp_path, 1, "store"), Cluster(address))
