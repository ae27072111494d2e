"""Programs that are stopped: by Ctrl-C, by the system, or killed without a chance to clean up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cli.conftest import Run, files_below
from tests.support.program import command

DEADLINE = 30.0


@pytest.fixture
def endless(place: Path) -> Path:
    """Give a source that takes longer to read than any test lasts."""
    source = place / "endless"
    source.mkdir()
    for number in range(300):
        (source / f"small{number}").write_text(f"{number}" * 500)
    # Each of many names of a file of 1 MiB is read; only then is it seen that they are one file.
    (source / "read").mkdir()
    (source / "read" / "0").write_bytes(os.urandom(1 << 20))
    for number in range(1, 12_000):
        os.link(source / "read" / "0", source / "read" / str(number))
    return source


@contextmanager
def started(place: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a process group of its own, as a shell would start it."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not there():
        assert process.poll() is None, process.stderr.read() if process.stderr else b""
        assert time.monotonic() < deadline
        time.sleep(0.002)


def unfinished(place: Path) -> list[Path]:
    return list(place.rglob(".eroseal-tmp-*"))


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err.decode()


@pytest.mark.parametrize("target", ["dir:new:app", "dir:store:new", "new.erofs"])
@pytest.mark.parametrize("pause", [0.0, 0.4], ids=["early", "late"])
def test_interrupted_build(place: Path, endless: Path, target: str, pause: float) -> None:
    before = files_below(place)
    with started(place, "build", "endless", target) as process:
        wait_for(process, lambda: len(files_below(place)) > len(before))
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        assert finish(process) == (130, b"", "eroseal: error: interrupted\n")
    assert files_below(place) == before


def test_interrupt_while_workers_start(place: Path, endless: Path) -> None:
    """A worker whose interpreter is just starting must not answer with a traceback."""
    for step in range(8):
        with started(place, "build", "endless", "dir:new:app", "--jobs", "4") as process:
            wait_for(process, lambda: bool(unfinished(place)))
            time.sleep(step * 0.008)
            os.killpg(process.pid, signal.SIGINT)
            assert finish(process) == (130, b"", "eroseal: error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_terminated_build(place: Path, endless: Path, number: signal.Signals, jobs: str) -> None:
    before = files_below(place)
    with started(place, "build", "endless", "dir:new:app", "--jobs", jobs) as process:
        wait_for(process, lambda: bool(unfinished(place)))
        process.send_signal(number)
        assert finish(process) == (128 + number, b"", "eroseal: error: terminated\n")
    assert files_below(place) == before


def test_impatience_does_not_disturb_the_clean_up(place: Path, endless: Path) -> None:
    before = files_below(place)
    with started(place, "build", "endless", "dir:new:app") as process:
        wait_for(process, lambda: bool(unfinished(place)))
        for _ in range(3):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.01)
        assert finish(process)[0] == 130
    assert files_below(place) == before


def test_killed_build(run: Run, place: Path, endless: Path) -> None:
    """What it leaves is recognised: it does no harm, and the next build into the store takes it away."""
    with started(place, "build", "endless", "dir:store:new") as process:
        wait_for(process, lambda: bool(unfinished(place)))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    left = unfinished(place)
    assert left
    deadline = time.monotonic() + DEADLINE
    while "leftover: " not in (report := run("fsck", "store").text) and time.monotonic() < deadline:
        time.sleep(0.1)  # its workers notice a moment later that they are alone
    assert report.count("leftover: ") == len(left)
    assert "ok: 1 image," in report
    run("verify", "dir:store:app", "--insecure")
    (place / "tree").mkdir()
    run("build", "tree", "dir:store:new", "--no-sync")
    assert unfinished(place) == []


def test_killed_build_of_a_file(run: Run, place: Path, endless: Path) -> None:
    with started(place, "build", "endless", "new.erofs") as process:
        wait_for(process, lambda: bool(unfinished(place)))
        process.kill()
        finish(process)
    assert not (place / "new.erofs").exists()
    (place / "tree").mkdir()
    run("build", "tree", "new.erofs", "--no-sync")


def test_interrupted_unpack(run: Run, place: Path) -> None:
    (place / "tree").mkdir()
    for number in range(20):
        (place / f"tree/noise{number}").write_bytes(os.urandom(8 << 20))
    digest = run("build", "tree", "dir:store:noise", "--no-sync").last
    before = files_below(place)
    with started(place, "unpack", "dir:store:noise", "out", "--digest", digest) as process:
        wait_for(process, lambda: (place / "out").exists() and len(files_below(place / "out")) > 2)
        os.killpg(process.pid, signal.SIGINT)
        assert finish(process) == (130, b"", "eroseal: error: interrupted\n")
    assert files_below(place) == before


def test_background_jobs_ignore_what_their_caller_ignores(place: Path, endless: Path) -> None:
    """A script's `eroseal build … &` starts with SIGINT ignored, and stays so."""
    with started(place, "--version") as process:
        assert finish(process)[0] == 0
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command("build", "endless", "dir:new:app")]
    with subprocess.Popen(ignoring, cwd=place, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for(process, lambda: bool(unfinished(place)))
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.terminate()
        assert process.wait(DEADLINE) == 128 + signal.SIGTERM


def test_ctrl_c_while_the_program_is_being_loaded(place: Path) -> None:
    """Nothing is there to clean up yet: it ends as any program does, without a traceback."""
    script = (
        "import os, runpy, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "runpy.run_module('eroseal', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, check=False, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
