"""Object stores from processes of their own: memory, signals and forks."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_objects import FakeObjects, Request
from tests.support.s3 import S3Server
from tests.unit.store_samples import SHA256, data_region, seal_into

from eroseal.format.digest import BLOCK
from eroseal.seal.blob import seal_in_place
from eroseal.store.keys import blob_key

pytestmark = pytest.mark.usefixtures("s3_server")

LARGE = 512 << 20
MAX_PEAK = 200 << 20
"""The budget of the whole process: shared/design, and the issue that stores belong to."""
TIMEOUT = 120
NO_DIGEST = "fsverity-sha256-12:" + "0" * 64

PRELUDE = """
import os, sys, threading, time
from pathlib import Path
from eroseal.errors import *
from eroseal.format.digest import Digest
from eroseal.readat import BytesAt, FileAt
from eroseal.store.staging import provable
from tests.support.s3 import s3_store

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

url, bucket, digest, path = sys.argv[1:]
digest = Digest.parse(digest)
store = s3_store(url, bucket, create=False)
"""


@pytest.fixture
def server() -> Iterator[FakeObjects]:
    server = FakeObjects()
    yield server
    server.stop()


def start(script: str, url: str, bucket: str, digest: object, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + script, url, bucket, str(digest), str(path)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script: str, url: str, bucket: str, digest: object, path: Path) -> str:
    with start(script, url, bucket, digest, path) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[object, Path]]:
    """Give a sealed blob of half a gigabyte, mostly holes."""
    path = tmp_path_factory.mktemp("large") / "large"
    with path.open("w+b") as file:
        file.write(data_region(1))
        file.truncate(LARGE)
        sealed = seal_in_place(file.fileno(), LARGE, SHA256)
    yield sealed.digest, path
    path.unlink()


def test_a_large_blob_goes_up_in_bounded_memory(server: FakeObjects, large: tuple[object, Path]) -> None:
    digest, path = large
    script = "with FileAt(path) as file: print(store.put_blob(digest, file)); print(peak())"
    size, peak = map(int, run(script, server.url, "bucket", digest, path).split())
    assert server.received == size == path.stat().st_size
    assert peak < MAX_PEAK


def test_a_large_blob_comes_down_in_bounded_memory(server: FakeObjects, large: tuple[object, Path]) -> None:
    digest, path = large
    server.objects[f"/bucket/{blob_key(digest)}"] = path  # type: ignore[arg-type]
    script = """
source = store.open_blob(digest)
with provable(source, source.size, parallel=16) as file:
    print(file.size, file.read_at(0, 4096) == FileAt(path).read_at(0, 4096))
print(peak())
"""
    size, same, peak = run(script, server.url, "bucket", digest, path).split()
    assert (int(size), same) == (path.stat().st_size, "True")
    assert int(peak) < MAX_PEAK


SLOW_UPLOAD = """
def told(count):
    print("part", flush=True)
    time.sleep(DELAY)

try:
    with FileAt(path) as file:
        store.put_blob(digest, file, jobs=1, progress=told)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def medium(tmp_path: Path) -> tuple[object, Path]:
    """Give a sealed blob of several parts."""
    path = tmp_path / "medium"
    with path.open("w+b") as file:
        sealed = seal_into(file.fileno(), data_region(1, (40 << 20) // BLOCK))
    return sealed.digest, path


def test_a_killed_upload_leaves_nothing_under_the_name(s3_server: S3Server, medium: tuple[object, Path]) -> None:
    digest, path = medium
    bucket = s3_server.new_bucket()
    with start(SLOW_UPLOAD.replace("DELAY", "60"), s3_server.url, bucket, digest, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "part\n"
        process.kill()
        process.communicate(timeout=TIMEOUT)
    assert s3_server.keys(bucket) == []
    # The parts that arrived stay hidden until the bucket's rules remove them; a later upload does not mind.
    run("with FileAt(path) as file: store.put_blob(digest, file, jobs=1)", s3_server.url, bucket, digest, path)
    assert s3_server.keys(bucket) == [blob_key(digest)]  # type: ignore[arg-type]


def test_an_interrupted_upload_takes_its_parts_back(s3_server: S3Server, medium: tuple[object, Path]) -> None:
    digest, path = medium
    bucket = s3_server.new_bucket()
    with start(SLOW_UPLOAD.replace("DELAY", "0.3"), s3_server.url, bucket, digest, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "part\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    assert "interrupted" in out, err
    assert process.returncode == 0
    assert s3_server.keys(bucket) == []
    assert s3_server.uploads(bucket) == []


def test_a_silent_server_does_not_hold_up_an_interrupt(server: FakeObjects, tmp_path: Path) -> None:
    asked, release = tmp_path / "asked", threading.Event()

    def stall(request: Request) -> bool:
        asked.touch()
        release.wait(TIMEOUT)
        return True

    server.fault = stall
    script = """
def interrupt():
    while not Path(path).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), 2)

threading.Thread(target=interrupt).start()
try:
    store.image("app")
except KeyboardInterrupt:
    print("interrupted")
"""
    try:
        assert run(script, server.url, "bucket", NO_DIGEST, asked) == "interrupted\n"
    finally:
        release.set()


def test_a_forked_process_is_refused_and_does_not_hang(s3_server: S3Server, tmp_path: Path) -> None:
    script = """
if os.fork() == 0:
    print(store.has_image("before"), flush=True)
    os._exit(0)
os.wait()
print(store.has_image("app"), flush=True)
if os.fork() == 0:
    try:
        store.has_image("app")
    except RemoteError as error:
        print(error.what, flush=True)
    os._exit(0)
os.wait()
"""
    out = run(script, s3_server.url, s3_server.new_bucket(), NO_DIGEST, tmp_path)
    assert out.splitlines() == ["False", "False", "object stores cannot be reached from a forked process"]
