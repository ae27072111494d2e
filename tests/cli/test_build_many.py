"""`eroseal build-many`: lists, reports that runs continue from, and runs that are stopped."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import People, Run, files_below
from tests.support.many import make_sources
from tests.support.program import command

from eroseal.cli.build_many import Surroundings
from eroseal.cli.signing import Signing

DEADLINE = 60.0


@pytest.fixture
def many(place: Path) -> Path:
    """Give `place` with four sources and a list of them."""
    make_sources(place, 4)
    write_list(
        place,
        "# SOURCE TARGET",
        "source0 dir:new:app-0",
        "source1 dir:new:app-1 base=dir:new:app-2  # which comes first",
        "source2 dir:new:app-2",
        "'source3' three.erofs",
    )
    return place


def write_list(place: Path, *lines: str) -> None:
    (place / "list").write_text("".join(f"{line}\n" for line in lines))


def states(place: Path) -> list[str]:
    return [image["state"] for image in report(place)]


def report(place: Path) -> list[dict[str, Any]]:
    document = json.loads((place / "report.json").read_text())
    assert document["schema"] == "eroseal.build-many/1"
    images: list[dict[str, Any]] = document["images"]
    return images


def test_all_images_of_a_list(run: Run, many: Path) -> None:
    done = run("build-many", "list", "--no-sync", "--report", "report.json", "--workers", "2")
    lines = [line.split() for line in done.text.splitlines()]
    assert [target for _, target in lines] == ["dir:new:app-0", "dir:new:app-1", "dir:new:app-2", "three.erofs"]
    for digest, target in lines:
        run("verify", target, "--digest", digest)
    assert run("build", "source0", "dir:alone:app", "--no-sync").last == lines[0][0]
    assert done.err == "eroseal: 4 images built, 0 there already, 0 failed\n"
    assert states(many) == ["done"] * 4
    assert [image["image"] for image in report(many)] == [digest for digest, _ in lines]
    again = run("build-many", "list", "--report", "report.json", "--executor", "threads")
    assert again.text == done.text
    assert again.err == "eroseal: 0 images built, 4 there already, 0 failed\n"
    assert states(many) == ["skipped"] * 4


def test_a_failing_image_among_good_ones(run: Run, many: Path) -> None:
    write_list(
        many,
        "source0 dir:new:a",
        "none dir:new:b",
        "store dir:new:c base=dir:new:b",
        "list dir:new:d",
        "source1 dir:new:e",
    )
    done = run("build-many", "list", "--no-sync", "--report", "report.json", "--json", code=3)
    assert [image["state"] for image in done.document["images"]] == ["done", "failed", "failed", "failed", "done"]
    assert done.document["images"] == report(many)
    assert [image["exit_code"] for image in report(many)] == [0, 1, 1, 3, 0]
    assert done.error == "3 of 5 images failed"
    assert "eroseal: failed: dir:new:b: " in done.err
    assert "eroseal: failed: dir:new:c: its base dir:new:b was not built" in done.err
    write_list(many, "source0 dir:new:a", "source2 dir:new:b", "source1 dir:new:e")
    again = run("build-many", "list", "--no-sync", "--report", "report.json")
    assert again.err == "eroseal: 1 image built, 2 there already, 0 failed\n"


def test_a_list_from_standard_input(run: Run, many: Path) -> None:
    done = run("build-many", "-", "--no-sync", "--executor", "threads", input=b"source0 dir:new:a\n", stdin=None)
    assert done.last.endswith(" dir:new:a")


def test_options_hold_for_all_images(run: Run, many: Path) -> None:
    (many / "owners").write_text("/** 7 8\n")
    options = ("--chunk-size", "4K", "--hash", "sha512", "--owners", "owners", "--exclude", "own", "--no-sync")
    environment = {"SOURCE_DATE_EPOCH": "1000000000"}
    write_list(many, "source0 dir:new:a", "source1 dir:new:b blobs=file")
    processes = run("build-many", "list", *options, environment=environment)
    assert run("build", "source0", "dir:alone:a", *options, environment=environment).last in processes.text
    single = run("build", "source1", "dir:alone:b", *options, "--blobs", "file", environment=environment)
    assert single.last in processes.text
    write_list(many, "source0 dir:threads:a", "source1 dir:threads:b blobs=file")
    threads = run("build-many", "list", *options, "--executor", "threads", "--jobs", "2", environment=environment)
    assert threads.text.replace("dir:threads:", "dir:new:") == processes.text


def test_bases_by_name(run: Run, many: Path) -> None:
    run("build", "source3", "dir:new:app-0.9", "--no-sync")
    write_list(many, "source0 dir:new:app-1", "source1 dir:new:app-2", "source2 one.erofs")
    done = run("build-many", "list", "--no-sync", "--base-auto", "--report", "report.json", "--json")
    assert [image["bases"] for image in done.document["images"]] == [
        [f"dir:{many}/new:app-0.9"],
        [f"dir:{many}/new:app-1"],
        [],
    ]
    assert [image["bytes_shared"] > 0 for image in report(many)] == [True, True, False]


def test_images_are_signed(run: Run, many: Path, people: People) -> None:
    (many / "secret").write_text("open sesame\n")
    write_list(many, "source0 dir:new:a", "source1 b.erofs")
    locked = ("--ed25519", people.key("locked"), "--name", "x", "--no-sync")
    assert "the private key is encrypted" in run("build-many", "list", *locked, code=1).error
    assert "regular file" in run("build-many", "list", *locked, "--passphrase-file", "/dev/stdin", code=2).error
    run("build-many", "list", *locked, "--passphrase-file", "secret", *people.pair("good"), "--report", "report.json")
    run("verify", "dir:new:a", "--ed25519", people.public, "--name", "x")
    run("verify", "b.erofs", "--cert", people.cert("good"))


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["none"], 1, "none: no such file"),
        (["list", "--scheduler", "tcp://127.0.0.1:1", "--workers", "2"], 2, "a cluster has its own"),
        (["list", "--name", "x"], 2, "are signed"),
        (["list", "--key", "none", "--cert", "none"], 1, "none: cannot be read"),
        (["list", "--report", "list"], 3, "list: not a report of build-many"),
        (["list", "--report", "none/report"], 1, "no such directory"),
        (["list", "--owners", "none"], 2, "none: cannot be read"),
        (["broken"], 2, "broken:2: no target"),
        (["inside"], 2, "inside:1: the target dir:"),
        (["circle"], 2, "built on each other"),
        (["twice"], 2, "two images with one target"),
    ],
)
def test_what_is_refused_before_anything_starts(
    run: Run, many: Path, arguments: list[str], code: int, expected: str
) -> None:
    (many / "broken").write_text("source0 dir:new:a\nsource1\n")
    (many / "inside").write_text("source0 dir:source0/new:a\n")
    (many / "circle").write_text("source0 dir:new:a base=dir:new:b\nsource1 dir:new:b base=dir:new:a\n")
    (many / "twice").write_text("source0 dir:new:a\nsource1 dir:./new:a\n")
    before = files_below(many)
    outcome = run("build-many", *arguments, code=code)
    assert expected in outcome.error
    assert outcome.out == b""
    assert files_below(many) == before


def test_no_secrets_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    servers = {"authfile": None, "tls_verify": True, "parallel": 2, "timeout": 3.0, "s3_endpoint": None}
    prepare = Surroundings(servers=servers, signing=Signing(), owners=None, file_contexts=None)
    assert ("AWS_SECRET_ACCESS_KEY", "very secret") in prepare().remote.environment
    assert b"very secret" not in pickle.dumps(prepare)
    assert pickle.loads(pickle.dumps(prepare))() == prepare()


# --- runs that are stopped ---
@pytest.fixture
def long(place: Path) -> Path:
    """Give `place` with a list of which the first images are quick, and the others take some seconds."""
    make_sources(place, 2)
    slow = place / "slow"
    slow.mkdir()
    (slow / "0").write_bytes(os.urandom(1 << 20))
    for number in range(1, 150):
        os.link(slow / "0", slow / str(number))
    write_list(place, *(f"{source} dir:new:{source}" for source in ("source0", "source1")), *SLOW)
    return place


SLOW = [f"slow dir:new:slow{number}" for number in range(3)]


def started(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("build-many", "list", "--report", "report.json", "--no-sync", "--workers", "2", *arguments),
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def wait_for_images(process: subprocess.Popen[str], place: Path, count: int) -> None:
    """Wait until so many images are done, and another is being built."""
    deadline = time.monotonic() + DEADLINE
    while True:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        under_way = any((place / "new/blobs").glob(".eroseal-tmp-*"))
        if under_way and (place / "report.json").exists() and states(place).count("done") >= count:
            return
        time.sleep(0.005)


def finish_all(run: Run, place: Path, done: int) -> None:
    """Run it again to its end, and look at what is in the store."""
    again = run("build-many", "list", "--report", "report.json", "--no-sync")
    assert sorted(set(states(place))) == ["done", "skipped"]
    assert states(place).count("skipped") >= done
    assert run("fsck", "new").text.startswith("ok: 5 images, ")
    assert not list(place.rglob(".eroseal-tmp-*"))
    assert len(again.text.splitlines()) == 5


@pytest.mark.parametrize("executor", ["processes", "threads"])
def test_a_killed_run_continues(run: Run, long: Path, executor: str) -> None:
    process = started(long, "--executor", executor)
    wait_for_images(process, long, 2)
    process.kill()
    process.communicate(timeout=DEADLINE)  # workers hold its output until they have ended
    assert states(long).count("done") >= 2
    assert "pending" in states(long)
    finish_all(run, long, 2)


@pytest.mark.parametrize(
    ("executor", "number"),
    [("processes", signal.SIGINT), ("processes", signal.SIGTERM), ("threads", signal.SIGINT)],
)
def test_a_stopped_run_leaves_a_right_report(run: Run, long: Path, executor: str, number: signal.Signals) -> None:
    process = started(long, "--executor", executor)
    wait_for_images(process, long, 2)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does, workers included
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    word = "interrupted" if number is signal.SIGINT else "terminated"
    assert (process.returncode, out, err) == (128 + number, "", f"eroseal: error: {word}\n")
    assert not list(long.rglob(".eroseal-tmp-*"))
    done = [image["target"].rpartition(":")[2] for image in report(long) if image["state"] == "done"]
    assert sorted(path.name for path in (long / "new/images").iterdir()) == sorted(done)
    assert states(long).count("pending") == 5 - len(done) > 0


def test_an_interruption_while_workers_start(long: Path) -> None:
    """A worker whose interpreter is just starting must not answer with a traceback."""
    for pause in (0.0, 0.1):
        process = started(long)
        deadline = time.monotonic() + DEADLINE
        while not (long / "report.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
        assert (process.returncode, out, err) == (130, "", "eroseal: error: interrupted\n")
        (long / "report.json").unlink()
        shutil.rmtree(long / "new", ignore_errors=True)
