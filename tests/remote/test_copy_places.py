"""Copies between every two kinds of places, and back: the same image, the same record, and nothing moved twice."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.remote.test_copy_pull import add_large_image
from tests.support.registry import Registry
from tests.support.s3 import S3Server, s3_options
from tests.support.webstore import blob_bytes, same_image
from tests.unit.store_samples import add_image, data_region, sealed_bytes, signature
from tests.unit.test_store_crash import _HARNESS

from eroseal.errors import IntegrityError, OutputError, RemoteError, UnsupportedError
from eroseal.readat import BytesAt
from eroseal.store.document import StackDocument
from eroseal.store.fsck import check_store
from eroseal.store.lanes import Lanes, SharedFds, TransferStopped, read_exactly
from eroseal.store.local import LocalStore
from eroseal.store.reference import NamedReference, StoreReference, parse_reference
from eroseal.store.remote import RemoteOptions
from eroseal.store.resolve import resolve, resolve_layers
from eroseal.store.transfer import CopyOptions, CopyResult, copy

# Before the first test begins, which would else be blamed for leaving them behind.
pytestmark = pytest.mark.usefixtures("registry", "s3_server")
Place = Callable[[str], NamedReference]


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A store that is only read: `x` has blobs of all sizes, `stack` two layers that share a blob."""
    store = LocalStore.create(tmp_path_factory.mktemp("origin") / "store", durable=False)
    large = add_large_image(store, size=6 << 20)
    small = add_image(store, "small", seeds=(1, 2, 3), record=[signature("small")])
    other = add_image(store, "other", seeds=(3, 4), label=1)
    store.put_image("stack", StackDocument((large, small, other)), [signature("stack")])
    return store


@pytest.fixture
def options(s3_server: S3Server) -> RemoteOptions:
    return s3_options(s3_server.url)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """References to a new place of the kind that the test is run for."""
    kind = request.param
    unique = secrets.token_hex(6)
    if kind == "directory":
        start = f"dir:{tmp_path / unique}"
    elif kind == "layout":
        start = f"oci:{tmp_path / unique}"
    elif kind == "registry":
        start = f"docker://{request.getfixturevalue('registry').host}/copies/{unique}"
    else:
        start = f"s3://{request.getfixturevalue('s3_server').new_bucket()}/some/prefix"

    def named(name: str) -> NamedReference:
        reference = parse_reference(f"{start}:{name}")
        assert isinstance(reference, NamedReference)
        return reference

    return named


everywhere = pytest.mark.parametrize("place", ["directory", "layout", "registry", "s3"], indirect=True)


def move(source: NamedReference, target: NamedReference, remote: RemoteOptions, **options: object) -> CopyResult:
    return copy(source, target, CopyOptions(durable=False, **options), remote=remote)  # type: ignore[arg-type]


@everywhere
@pytest.mark.parametrize("name", ["x", "small", "stack"])
def test_there_and_back(origin: LocalStore, place: Place, options: RemoteOptions, tmp_path: Path, name: str) -> None:
    size = blob_bytes(origin.image(name)[0])
    count = len(origin.image(name)[0].blobs) if name != "stack" else 2 + 4 + 2
    told: list[int] = []
    there = move(StoreReference(origin.path, name), place(name), options, progress=told.append)
    assert (there.copied, there.skipped, there.bytes_moved, sum(told)) == (count, 0, size, size)
    again = move(StoreReference(origin.path, name), place("again"), options)
    assert (again.copied, again.skipped, again.bytes_moved) == (0, count, 0)
    same = move(StoreReference(origin.path, name), place(name), options)
    assert same.bytes_moved == 0
    home = LocalStore.create(tmp_path / "home", durable=False)
    back = move(place(name), StoreReference(home.path, name), options)
    assert (back.image, back.bytes_moved) == (there.image, size)
    assert same_image(origin, home, name)
    assert check_store(home).findings == ()


@everywhere
def test_names_that_are_taken(origin: LocalStore, place: Place, options: RemoteOptions, tmp_path: Path) -> None:
    move(StoreReference(origin.path, "small"), place("x"), options)
    with pytest.raises(OutputError, match="exists already"):
        move(StoreReference(origin.path, "other"), place("x"), options)
    assert move(StoreReference(origin.path, "other"), place("x"), options, replace=True).image
    with resolve(place("x"), remote=options) as stored:
        assert stored.document == origin.image("other")[0]
        assert stored.record == ()


@everywhere
def test_layers_of_a_stack(origin: LocalStore, place: Place, options: RemoteOptions) -> None:
    move(StoreReference(origin.path, "stack"), place("stack"), options)
    with pytest.raises(UnsupportedError, match="a stack of 3 layers"):
        resolve(place("stack"), remote=options)
    with resolve_layers(place("stack"), remote=options) as stack:
        assert stack.is_stack
        assert stack.document == origin.image("stack")[0]
        assert stack.record == (signature("stack"),)
        assert [layer.document for layer in stack.layers] == list(origin.image("stack")[0].layers)
        assert all(layer.record == () for layer in stack.layers)
        assert stack.update_record(lambda old: [*old, signature("more")]) == [signature("stack"), signature("more")]
    move(StoreReference(origin.path, "small"), place("small"), options)
    with resolve_layers(place("small"), remote=options) as stack:
        assert not stack.is_stack
        assert [layer.record for layer in stack.layers] == [(signature("small"),)]


def test_a_registry_takes_over_what_it_has(origin: LocalStore, registry: Registry) -> None:
    unique = secrets.token_hex(6)
    first, second = (f"docker://{registry.host}/copies/{unique}{number}:x" for number in (1, 2))
    move(StoreReference(origin.path, "x"), _named(first), RemoteOptions())
    result = move(_named(first), _named(second), RemoteOptions())
    assert (result.adopted, result.copied, result.bytes_moved) == (2, 0, 0)
    with resolve(second) as stored:
        assert (stored.document, list(stored.record)) == origin.image("x")


def test_a_bucket_takes_over_what_it_has(origin: LocalStore, s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    first, second = f"s3://{bucket}/first:x", f"s3://{bucket}/second:x"
    remote = s3_options(s3_server.url)
    move(StoreReference(origin.path, "x"), _named(first), remote)
    result = move(_named(first), _named(second), remote)
    assert (result.adopted, result.copied) == (2, 0)


def test_compressed(origin: LocalStore, registry: Registry, tmp_path: Path) -> None:
    there = _named(f"docker://{registry.host}/copies/{secrets.token_hex(6)}:x")
    result = move(StoreReference(origin.path, "x"), there, RemoteOptions(), compress=True)
    assert result.bytes_moved < blob_bytes(origin.image("x")[0]) // 2
    home = LocalStore.create(tmp_path / "home", durable=False)
    move(there, StoreReference(home.path, "x"), RemoteOptions())
    assert same_image(origin, home, "x")


def _named(text: str) -> NamedReference:
    reference = parse_reference(text)
    assert isinstance(reference, NamedReference)
    return reference


_LOCAL = """
    from eroseal.store.transfer import CopyOptions, copy
    from eroseal.store.reference import StoreReference
    from eroseal.store.remote import RemoteOptions
    options = CopyOptions(jobs=1, parallel=1)
    copy(StoreReference(root / 'store', 'x'), StoreReference(root / 'copy', 'x'), options, remote=RemoteOptions())
"""
_PIECES = """
    import random
    from eroseal.format.digest import Digest
    from eroseal.readat import BytesAt
    content = (root / 'sealed').read_bytes()
    store.put_blob(Digest.parse((root / 'digest').read_text()), BytesAt(content), jobs=1)
"""


def crashed(tmp_path: Path, template: Path, operation: str) -> list[Path]:
    """Copies of a directory, in each of which the operation was killed a step later than in the one before."""
    place = tmp_path / "crashed"
    place.mkdir()
    script = _HARNESS.replace("OPERATION", operation.strip())
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script, template, place], check=True, cwd=root)
    return sorted(place.iterdir(), key=lambda path: int(path.name))


def test_a_local_copy_killed_at_every_step(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    origin = LocalStore.create(template / "store", durable=False)
    add_image(origin, "x", record=[signature("signed")])
    done = []
    for root in crashed(tmp_path, template, _LOCAL):
        target = LocalStore.create(root / "copy", durable=False)
        assert check_store(target).damage == ()
        done.append(target.has_image("x"))
        assert not done[-1] or same_image(origin, target, "x")
        copy(
            StoreReference(origin.path, "x"),
            StoreReference(target.path, "x"),
            CopyOptions(durable=False),
            remote=RemoteOptions(),
        )
        assert same_image(origin, target, "x")
        assert check_store(target).findings == ()
    assert done == sorted(done)
    assert (done[0], done[-1]) == (False, True)


def test_a_blob_in_pieces_killed_at_every_step(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    LocalStore.create(template / "store", durable=False)
    digest, content = sealed_bytes(data_region(1, 1200))
    (template / "sealed").write_bytes(content)
    (template / "digest").write_text(str(digest))
    done = []
    for root in crashed(tmp_path, template, _PIECES):
        store = LocalStore.open(root / "store", durable=False)
        assert check_store(store).damage == ()
        done.append(store.has_blob(digest))
        assert store.put_blob(digest, BytesAt(content)) == len(content)
        assert store.blob_path(digest).read_bytes() == content
        store.remove_abandoned()
        assert check_store(store).findings == ()
    assert done == sorted(done)
    assert (done[0], done[-1]) == (False, True)


class Failing:
    """A source whose reads past a point fail, or give too little."""

    def __init__(self, content: bytes, short: bool = False) -> None:
        self._content = content
        self._short = short
        self.size = len(content)

    def read_at(self, offset: int, length: int) -> bytes:
        if length < 1 << 20:
            return self._content[offset : offset + length]
        if self._short:
            return self._content[offset : offset + length - 1]
        raise RemoteError("gone", where="there")


@pytest.mark.parametrize("short", [False, True])
def test_sources_that_fail_leave_nothing(tmp_path: Path, short: bool) -> None:
    store = LocalStore.create(tmp_path / "store", durable=False)
    digest, content = sealed_bytes(data_region(1, 1200))
    with pytest.raises(RemoteError):
        store.put_blob(digest, Failing(content, short))
    assert list((store.path / "blobs").iterdir()) == []


def test_another_blob_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "store", durable=False)
    _, content = sealed_bytes(data_region(1, 1200))
    other, _ = sealed_bytes(data_region(2))
    with pytest.raises(IntegrityError):
        store.put_blob(other, Failing(content))
    assert list((store.path / "blobs").iterdir()) == []


def test_the_first_error_is_the_one_that_is_reported() -> None:
    lanes = Lanes(4)
    started = threading.Barrier(4)

    def work(number: int) -> None:
        started.wait(10)
        if number == 2:
            raise OutputError("the reason")
        while True:
            lanes.pause(0.01)

    with pytest.raises(OutputError, match="the reason"):
        lanes.run(work, range(100), workers=4)
    with pytest.raises(TransferStopped):
        lanes.check()


def test_requests_share_lanes_and_memory() -> None:
    assert [Lanes(count).read_size * min(count, 256) <= 32 << 20 for count in (1, 16, 64, 256)] == [True] * 4
    lanes, lock, most, now = Lanes(2), threading.Lock(), 0, 0

    def work(_number: int) -> None:
        nonlocal most, now
        with lanes.lane():
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= 1

    lanes.run(work, range(50), workers=8)
    assert (now, most) == (0, 2)


def test_shared_descriptors_outlive_their_owner(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        shared = SharedFds(os.dup(file.fileno()))
    with shared.use() as (fd,):
        shared.close()
        shared.close()
        assert os.write(fd, b"still open") == 10
        with pytest.raises(TransferStopped), shared.use():
            raise AssertionError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_reads_are_exact() -> None:
    assert read_exactly(BytesAt(b"abc"), 1, 2) == b"bc"
    with pytest.raises(RemoteError, match="bytes came instead of"):
        read_exactly(Failing(bytes(4 << 20), short=True), 0, 2 << 20)


_SMALL_FILES = """
import resource, signal, sys
from pathlib import Path
from tests.remote.test_copy_places import Failing
from eroseal.errors import OutputError
from eroseal.format.digest import Digest
from eroseal.store.local import LocalStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
content = Path(sys.argv[3]).read_bytes()
try:
    LocalStore.open(Path(sys.argv[1])).put_blob(Digest.parse(sys.argv[2]), Failing(content))
except OutputError as error:
    print(error.what)
"""


def test_a_file_system_that_does_not_take_the_blob(tmp_path: Path) -> None:
    """Refused before a byte is fetched, and nothing is left."""
    digest, content = sealed_bytes(data_region(1, 1200))
    store = LocalStore.create(tmp_path / "store", durable=False)
    (tmp_path / "content").write_bytes(content)
    command = [sys.executable, "-c", _SMALL_FILES, store.path, str(digest), tmp_path / "content"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    assert "does not take files of this size" in done.stdout
    assert list((store.path / "blobs").iterdir()) == []
