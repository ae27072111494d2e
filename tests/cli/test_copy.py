"""`eroseal copy` as a user meets it: what it prints, what it refuses, and what is left when it is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cli.conftest import People, Run, Samples, files_below
from tests.support.program import command
from tests.support.webstore import blob_bytes, serving
from tests.unit.store_samples import add_image

from eroseal.cli.remote import remote_settings
from eroseal.errors import NotFoundError
from eroseal.store.document import StackDocument
from eroseal.store.fsck import check_store
from eroseal.store.local import LocalStore
from eroseal.store.partial import PIECE_SIZE
from eroseal.store.remote import RemoteOptions

DEADLINE = 30.0
KILLS = 20


def content(place: Path) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in files_below(place) if (place / name).is_file()}


def test_between_directories(run: Run, place: Path, samples: Samples) -> None:
    done = run("copy", "dir:store:app", "dir:new:app")
    assert done.text == samples.digest + "\n"
    assert done.err.startswith("eroseal: 2 blobs copied, 0 there already; ")
    assert content(place / "new") == content(place / "store")
    assert run("fsck", "new").text.startswith("ok: 1 image, 2 blobs")
    again = run("copy", "dir:store:app", "dir:new:app", "--json").document
    sizes = blob_bytes(LocalStore.open(place / "new").image("app")[0])
    assert again.pop("seconds") >= 0
    assert again == {
        "schema": "eroseal.copy/1",
        "image": samples.digest,
        "copied": 0,
        "skipped": 2,
        "adopted": 0,
        "bytes_moved": 0,
        "bytes_skipped": sizes,
    }


def test_signatures_travel(run: Run, people: People) -> None:
    run("sign", "dir:store:app", *people.pair("good"), "--name", "app", "--version", "3")
    run("copy", "dir:store:app", "dir:new:app")
    run("verify", "dir:new:app", "--cert", people.cert("good"), "--min-version", "3")
    run("copy", "app.erofs", "dir:new:file")
    run("sign", "dir:new:file", "--ed25519", people.key("ed"), "--name", "file", "--version", "1")
    run("copy", "dir:new:file", "signed.erofs")
    run("verify", "signed.erofs", "--ed25519", people.public)
    run("copy", "signed.erofs", "dir:new:again")
    assert "ok: " in run("verify", "dir:new:again", "--ed25519", people.public).text


def test_files(run: Run, place: Path, samples: Samples) -> None:
    assert run("copy", "app.erofs", "dir:new:file").last == samples.file_digest
    assert run("copy", "dir:new:file", "back.erofs").last == samples.file_digest
    assert (place / "back.erofs").read_bytes() == (place / "app.erofs").read_bytes()
    assert "exists already" in run("copy", "dir:new:file", "back.erofs", code=1).error
    run("copy", "dir:new:file", "back.erofs", "--replace")
    assert "holds one blob" in run("copy", "dir:store:app", "more.erofs", code=1).error
    assert not (place / "more.erofs").exists()


def test_files_with_data_blobs(run: Run, place: Path, samples: Samples) -> None:
    trust = ("--digest", samples.digest)
    run("export", "dir:store:app", "meta", *trust)
    run("export", "dir:store:app", "data", "--blob", "1", *trust)
    assert "is not there" in run("copy", "meta", "dir:new:app", code=1).error
    assert not (place / "new").exists()
    assert run("copy", "meta", "dir:new:app", "--device", "data").last == samples.digest
    assert content(place / "new") == content(place / "store")


def test_names_that_are_taken(run: Run, place: Path, people: People) -> None:
    run("copy", "dir:store:app", "dir:new:app")
    run("copy", "app.erofs", "dir:new:other")
    before = content(place / "new")
    assert run("copy", "app.erofs", "dir:new:app", code=1).error.startswith("dir:new:app: exists already")
    run("sign", "dir:store:app", *people.pair("good"), "--name", "app", "--version", "3")
    assert "exists already" in run("copy", "dir:store:app", "dir:new:app", code=1).error  # the record is another one
    assert content(place / "new") == before
    run("copy", "app.erofs", "dir:new:app", "--replace")
    assert run("digest", "dir:new:app").last == run("digest", "app.erofs").last
    assert check_store(LocalStore.open(place / "new")).findings == ()


def test_a_copy_mends_a_store(run: Run, place: Path, samples: Samples) -> None:
    """The image is there, a blob of it is not, or was cut short."""
    run("copy", "dir:store:app", "dir:new:app")
    store = LocalStore.open(place / "new")
    meta, data = store.image("app")[0].blobs
    store.blob_path(meta.digest).unlink()
    os.truncate(store.blob_path(data.digest), 5000)
    assert run("copy", "dir:store:app", "dir:new:app").last == samples.digest
    assert check_store(store).findings == ()


def test_stacks(run: Run, place: Path) -> None:
    store = LocalStore.open(place / "store", durable=False)
    document = StackDocument((add_image(store, "a"), add_image(store, "b", label=1, seeds=(1, 2))))
    store.put_image("stack", document)
    assert run("copy", "dir:store:stack", "dir:new:stack").last == str(document.image)
    assert LocalStore.open(place / "new").image("stack") == (document, [])
    assert check_store(LocalStore.open(place / "new")).findings == ()
    assert "layers" in run("copy", "dir:store:stack", "stack.erofs", code=1).error


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("dir:store:app", "https://127.0.0.1/store:app"), 1, "a web server can only be read from"),
        (("dir:store:app", "docker://localhost/a@sha256:" + 64 * "0"), 2, "an image cannot be given a digest"),
        (("dir:store:app", "dir:new:app", "--compress", "zstd"), 2, "only blobs in OCI form can be compressed"),
        (("dir:store:none", "dir:new:app"), 1, "no image has this name"),
        (("dir:none:app", "dir:new:app"), 1, "no store here"),
        (("none.erofs", "dir:new:app"), 1, "no such file"),
        (("dir:store:app", "dir:new:app", "--device", "app.erofs"), 2, "no data files can be given"),
        (("dir:store:app", "dir:new:app", "--authfile", "none.json"), 1, "no such file with credentials"),
        (("dir:store:app", "dir:new:app", "--parallel", "0"), 2, "--parallel"),
        (("dir:store:app", "dir:new:app", "--timeout", "0"), 2, "--timeout"),
    ],
)
def test_refusals_leave_nothing(run: Run, place: Path, arguments: tuple[str, ...], code: int, error: str) -> None:
    before = files_below(place)
    assert error in run("copy", *arguments, code=code).error
    assert files_below(place) == before


def test_a_damaged_source(run: Run, place: Path) -> None:
    """Each blob is checked against its own name, wherever it comes from."""
    store = LocalStore.open(place / "store")
    _, data = store.image("app")[0].blobs
    path = store.blob_path(data.digest)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(9000)
        file.write(b"flipped")
    assert "at byte 8192" in run("copy", "dir:store:app", "dir:new:app", code=3).error
    assert not (place / "new/images/app").exists()
    assert not (place / "new").exists() or check_store(LocalStore.open(place / "new")).findings == ()


def stored(store: Path) -> dict[str, bytes]:
    """What a store has, without the leases of those that were killed."""
    return content(store / "blobs") | content(store / "images")


@contextmanager
def started(place: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command(*arguments), cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def large(run: Run, place: Path) -> Path:
    """Give a store with the image `big`: a large blob and small ones."""
    (place / "noise").mkdir()
    (place / "noise/noise").write_bytes(os.urandom(24 << 20))
    run("build", "noise", "dir:large:big", "--no-sync")
    return place / "large"


def arrived(place: Path) -> set[int]:
    """Pieces of the large blob that have come to the store."""
    for path in place.glob("new/blobs/.eroseal-part-*/map"):
        marks = path.read_bytes().partition(b"\n")[2]
        return {number for number, mark in enumerate(marks) if mark}
    return set()


def test_interrupted_and_silent(run: Run, place: Path, large: Path) -> None:
    """Ctrl-C ends a pull while its server says nothing; parts stay, and the rerun continues with them."""
    silence, requests = threading.Event(), threading.Semaphore(8)

    def meddle(_path: str, _offset: int, data: bytes) -> bytes:
        if len(data) >= PIECE_SIZE and not requests.acquire(blocking=False):
            silence.wait(DEADLINE)
        return data

    with serving(large) as web:
        web.meddle = meddle
        try:
            with started(place, "copy", f"{web.url}:big", "dir:new:big") as process:
                deadline = time.monotonic() + DEADLINE
                while len(arrived(place)) < 16:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                os.killpg(process.pid, signal.SIGINT)
                _, error = process.communicate(timeout=DEADLINE)
                assert (process.returncode, error) == (130, b"eroseal: error: interrupted\n")
                assert not silence.is_set()
        finally:
            silence.set()
    assert not [name for name in files_below(place) if "eroseal-tmp" in name]
    report = check_store(LocalStore.open(place / "new"))
    assert report.damage == ()
    assert {finding.kind for finding in report.findings} == {"stray-temporary"}
    with serving(large) as web:
        run("copy", f"{web.url}:big", "dir:new:big", "--no-sync")
        assert web.total < (24 - 15) * PIECE_SIZE
    assert check_store(LocalStore.open(place / "new")).findings == ()
    assert content(place / "new") == content(large)


_HARNESS = """
import os, random, signal, sys, threading
import httpx2, stamina
from eroseal.cli.main import main
from eroseal.store import checked, partial, transfer, web

url, target, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "fcntl.flock"}
chance = random.Random(1)

def killed_before(number):
    lock, seen, pwrite = threading.Lock(), 0, os.pwrite
    def step():
        nonlocal seen
        with lock:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
    def counted(*arguments):
        step()
        return pwrite(*arguments)
    os.pwrite = counted
    sys.addaudithook(lambda event, arguments: step() if event in EVENTS and target in str(arguments) else None)
    return main(["copy", url, target, "--no-sync", "--parallel", "2"])

for _ in range(kills):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os._exit(killed_before(chance.randrange(1, 24)))
    os.waitpid(child, 0)
    print(flush=True)
    sys.stdin.readline()
"""


def test_killed_again_and_again(run: Run, place: Path, large: Path) -> None:
    """Killed at one step or another, a pull gets through in the end; no piece that arrived is asked for again."""
    store = LocalStore.create(place / "new", durable=False)
    before, again = set[int](), set[int]()

    def meddle(_path: str, offset: int, data: bytes) -> bytes:
        if len(data) >= PIECE_SIZE:
            again.update(before & set(range(offset // PIECE_SIZE, (offset + len(data)) // PIECE_SIZE)))
        return data

    with serving(large) as web:
        web.meddle = meddle
        harness = [sys.executable, "-c", _HARNESS, f"{web.url}:big", f"dir:{store.path}:big", str(KILLS)]
        with subprocess.Popen(harness, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            for _ in range(KILLS):
                assert process.stdout.readline() == b"\n"
                assert check_store(store).damage == ()
                assert again == set()
                if store.has_image("big"):  # once more, from the beginning
                    assert stored(place / "new") == stored(large)
                    shutil.rmtree(place / "new")
                    LocalStore.create(place / "new", durable=False)
                else:
                    assert before <= arrived(place) or not arrived(place)
                before = arrived(place)
                process.stdin.write(b"\n")
                process.stdin.flush()
        run("copy", f"{web.url}:big", "dir:new:big", "--no-sync", "--replace")
        assert again == set()
    assert stored(place / "new") == stored(large)
    assert check_store(store).findings == ()


def test_settings_from_the_environment(tmp_path: Path) -> None:
    named = tmp_path / "auth.json"
    named.touch()
    home = {"HOME": "/h", "PATH": "/bin", "SECRET": "no", "AWS_REGION": "x", "GOOGLE_A": "y", "AZURE_B": "z"}
    found = remote_settings(home)
    assert found == RemoteOptions(
        auth_files=(Path("/h/.docker/config.json"),),
        state=Path("/h/.local/state/eroseal"),
        environment=(("AWS_REGION", "x"), ("AZURE_B", "z"), ("GOOGLE_A", "y"), ("HOME", "/h"), ("PATH", "/bin")),
    )
    more = {**home, "XDG_RUNTIME_DIR": "/run/u", "DOCKER_CONFIG": "/d", "XDG_STATE_HOME": "/s"}
    assert remote_settings(more).auth_files == (Path("/run/u/containers/auth.json"), Path("/d/config.json"))
    assert remote_settings(more).state == Path("/s/eroseal")
    assert remote_settings({**more, "REGISTRY_AUTH_FILE": str(named)}).auth_files == (named,)
    assert remote_settings({"XDG_STATE_HOME": "relative", "HOME": ""}).state is None
    with pytest.raises(NotFoundError, match="credentials"):
        remote_settings(home, authfile=tmp_path / "none")
    given = remote_settings(
        {}, authfile=named, tls_verify=False, parallel=3, timeout=1.5, s3_endpoint="http://127.0.0.1:1"
    )
    assert given == RemoteOptions(
        auth_files=(named,), tls_verify=False, parallel=3, timeout=1.5, s3_endpoint="http://127.0.0.1:1"
    )
