"""Images pulled over HTTP into a directory: in pieces, each once, whatever happens in between."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.webstore import WebDirectory, blob_bytes, same_image, serving
from tests.unit.store_samples import add_blob, add_image, data_region, meta_region, sealed_bytes, signature

from eroseal.errors import FormatError, IntegrityError, NotFoundError, OutputError, RemoteError
from eroseal.format.digest import TreeParams
from eroseal.seal.blob import seal_in_place
from eroseal.store.document import BlobInfo, ImageDocument, StackDocument
from eroseal.store.fsck import check_store
from eroseal.store.local import LocalStore
from eroseal.store.partial import PIECE_SIZE, is_partial, is_partial_in_use, remove_partial
from eroseal.store.reference import StoreReference, parse_reference
from eroseal.store.remote import RemoteOptions
from eroseal.store.transfer import CopyOptions, CopyResult, copy

PIECES = 16
SLACK = 256 << 10
"""Bytes for the look at a seal before its blob is fetched."""


def add_large(store: LocalStore, size: int, seed: int = 1) -> BlobInfo:
    """A blob whose every megabyte begins differently, quickly made."""
    with store.new_blob() as blob:
        os.ftruncate(blob.fd, size)
        for number, offset in enumerate(range(0, size, 1 << 20)):
            os.pwrite(blob.fd, b"%08d%08d" % (seed, number) * 256, offset)
        sealed = seal_in_place(blob.fd, size, TreeParams())
        return BlobInfo(sealed.digest, size, blob.commit(sealed.digest))


def add_large_image(store: LocalStore, name: str = "x", size: int = PIECES * PIECE_SIZE - (1 << 19)) -> ImageDocument:
    data = add_large(store, size)
    meta = add_blob(store, meta_region([data]))
    document = ImageDocument(meta.digest, (meta, data))
    store.put_image(name, document, [signature("signed")])
    return document


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A store that is only read: `x` has a blob of several pieces, `many` has 300 small ones, `stack` two layers."""
    store = LocalStore.create(tmp_path_factory.mktemp("origin") / "store", durable=False)
    large = add_large_image(store)
    many = add_image(store, "many", seeds=range(100, 400), record=[signature("many")])
    store.put_image("stack", StackDocument((large, many)), [signature("stack")])
    return store


@pytest.fixture
def web(origin: LocalStore) -> Iterator[WebDirectory]:
    with serving(origin.path) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "target", durable=False)


def pull(web: WebDirectory, target: LocalStore, name: str = "x", **options: object) -> CopyResult:
    return copy(
        parse_reference(f"{web.url}:{name}"),
        StoreReference(target.path, name),
        CopyOptions(durable=False, **options),  # type: ignore[arg-type]
        remote=RemoteOptions(attempts=1, timeout=10),
    )


def partials(store: LocalStore) -> list[Path]:
    return [path for path in (store.path / "blobs").iterdir() if is_partial(path.name)]


def marked(partial: Path) -> list[int]:
    """Numbers of the pieces that have arrived."""
    content = (partial / "map").read_bytes()
    return [number for number, mark in enumerate(content[content.index(b"\n") + 1 :]) if mark]


def fail_after(web: WebDirectory, target: LocalStore, pieces: int) -> None:
    """Have the server fail for all but the first pieces of a large blob, once the target has these."""

    def meddle(_path: str, offset: int, data: bytes) -> bytes | None:
        if len(data) <= SLACK or offset < pieces * PIECE_SIZE:
            return data
        deadline = time.monotonic() + 10
        while len(marked(partials(target)[0])) < pieces:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return None

    web.meddle = meddle


def interrupted(web: WebDirectory, target: LocalStore, pieces: int) -> Path:
    """A pull that ended with so many pieces; gives the partial."""
    fail_after(web, target, pieces)
    with pytest.raises(RemoteError):
        pull(web, target)
    web.meddle = None
    web.forget()
    (partial,) = partials(target)
    assert marked(partial) == list(range(pieces))
    return partial


@pytest.mark.parametrize("name", ["x", "many", "stack"])
def test_a_pull_fetches_each_byte_once(origin: LocalStore, web: WebDirectory, target: LocalStore, name: str) -> None:
    size = blob_bytes(origin.image(name)[0])
    told: list[int] = []
    result = pull(web, target, name, begin=told.append, progress=told.append)
    assert same_image(origin, target, name)
    assert check_store(target).findings == ()
    assert (result.image, result.bytes_moved, result.bytes_skipped) == (origin.image(name)[0].image, size, 0)
    assert told[0] == sum(told[1:]) == size
    assert size <= web.total <= size + SLACK
    assert all((path.stat().st_mode & 0o777) == 0o444 for path in target.path.glob("blobs/*/*"))
    web.forget()
    again = pull(web, target, name)
    assert (again.copied, again.bytes_skipped) == (0, size)
    assert web.total < SLACK


def test_blobs_that_are_there_are_skipped(origin: LocalStore, web: WebDirectory, target: LocalStore) -> None:
    shared = add_image(target, "other", seeds=range(100, 300))
    result = pull(web, target, "many")
    assert (result.copied, result.skipped) == (101, 200)
    assert same_image(origin, target, "many")
    assert target.image("other")[0] == shared


def test_what_arrived_before_an_error_stays(origin: LocalStore, web: WebDirectory, target: LocalStore) -> None:
    document = origin.image("x")[0]
    partial = interrupted(web, target, 4)
    assert not target.has_image("x")
    report = check_store(target)
    assert [finding.kind for finding in report.findings] == ["stray-temporary"]
    assert report.ok
    target.new_blob().discard()  # which removes what other killed writers left
    assert marked(partial) == [0, 1, 2, 3]
    result = pull(web, target)
    assert same_image(origin, target, "x")
    assert check_store(target).findings == ()
    assert result.bytes_moved == document.blobs[1].size - 4 * PIECE_SIZE
    assert web.total <= result.bytes_moved + SLACK


def test_pieces_that_went_bad_are_fetched_again(origin: LocalStore, web: WebDirectory, target: LocalStore) -> None:
    partial = interrupted(web, target, 4)
    with (partial / "data").open("r+b") as file:
        file.seek(PIECE_SIZE + 5000)
        file.write(b"flipped")
    pull(web, target)
    assert same_image(origin, target, "x")
    large = max(web.sent, key=lambda path: web.sent[path])
    asked = {offset // PIECE_SIZE for path, offset in web.asked if path == large}
    assert asked == {1, 4, 6, 8, 10, 12, 14, 15}  # two pieces a request; the seal was looked at before, in the last one


@pytest.mark.parametrize(
    "damage",
    [
        lambda partial: (partial / "map").write_bytes(b"not a map"),
        lambda partial: (partial / "map").write_bytes((partial / "map").read_bytes().replace(b"\0", b"\1")),
        lambda partial: (partial / "map").unlink(),
        lambda partial: (partial / "data").unlink(),
        lambda partial: (partial / "data").chmod(0o400),
        lambda partial: os.truncate(partial / "data", 12345),
        lambda partial: os.truncate(partial / "map", 20),
        lambda partial: (partial / "data").write_bytes(os.urandom((partial / "data").stat().st_size)),
    ],
    ids=["no-map", "marked-too-much", "map-gone", "data-gone", "closed", "data-cut", "map-cut", "noise"],
)
def test_broken_partials_heal(origin: LocalStore, web: WebDirectory, target: LocalStore, damage: object) -> None:
    damage(interrupted(web, target, 4))  # type: ignore[operator]
    assert check_store(target).damage == ()
    pull(web, target)
    assert same_image(origin, target, "x")
    assert check_store(target).findings == ()


def test_a_server_that_lies_leaves_nothing(web: WebDirectory, target: LocalStore) -> None:
    def lie(path: str, offset: int, data: bytes) -> bytes:
        return bytes(len(data)) if len(data) > SLACK and offset == 2 * PIECE_SIZE else data

    web.meddle = lie
    with pytest.raises(IntegrityError) as caught:
        pull(web, target)
    assert caught.value.offset is not None
    assert 2 * PIECE_SIZE <= caught.value.offset < 4 * PIECE_SIZE
    assert not target.has_image("x")
    assert partials(target) == []
    assert check_store(target).findings == ()


def test_a_server_that_goes_on_lying_is_given_up(web: WebDirectory, target: LocalStore) -> None:
    """Bad pieces of an earlier try are fetched again once, not for ever."""
    partial = interrupted(web, target, 4)
    (partial / "data").write_bytes(bytes((partial / "data").stat().st_size))
    web.meddle = lambda _path, _offset, data: bytes(len(data)) if len(data) > SLACK else data
    with pytest.raises(IntegrityError):
        pull(web, target)
    large = Counter({key: count for key, count in web.asked.items() if key[0].startswith("/blobs")})
    assert all(count <= 2 for count in large.values()), large
    assert partials(target) == []
    assert check_store(target).findings == ()


def test_small_blobs_that_lie_do_not_spoil_the_others(web: WebDirectory, target: LocalStore) -> None:
    digest, content = sealed_bytes(data_region(250))
    lies = f"/blobs/{digest.hex[:2]}/{digest.hex[2:]}"
    web.meddle = lambda path, _offset, data: data.replace(b"00000250", b"00000251") if path == lies else data
    with pytest.raises(IntegrityError):
        pull(web, target, "many")
    assert not target.has_blob(digest)
    assert not target.has_image("many")
    report = check_store(target)
    assert report.findings == ()
    web.meddle = None
    web.forget()
    pull(web, target, "many")
    assert web.total <= (302 - report.blobs) * len(content) + SLACK


def test_two_pulls_share_the_work(origin: LocalStore, web: WebDirectory, target: LocalStore) -> None:
    with ThreadPoolExecutor(2) as executor:
        names = ("x", "y")
        results = list(
            executor.map(
                lambda name: copy(
                    parse_reference(f"{web.url}:x"),
                    StoreReference(target.path, name),
                    CopyOptions(durable=False),
                    remote=RemoteOptions(),
                ),
                names,
            )
        )
    size = origin.image("x")[0].blobs[1].size
    assert target.image("x") == target.image("y") == origin.image("x")
    assert size <= sum(result.bytes_moved for result in results) <= size + 3 * SLACK
    assert web.total <= size + 3 * SLACK
    assert check_store(target).findings == ()


def test_a_partial_in_use_is_no_litter(origin: LocalStore, web: WebDirectory, target: LocalStore) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold(_path: str, offset: int, data: bytes) -> bytes:
        if len(data) > SLACK and offset >= PIECE_SIZE:
            reached.set()
            go_on.wait(10)
        return data

    web.meddle = hold
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(pull, web, target)
        try:
            assert reached.wait(10)
            (partial,) = partials(target)
            assert is_partial_in_use(partial)
            assert not remove_partial(partial)
            report = check_store(target)
            assert (report.findings, report.in_progress) == ((), 1)
        finally:
            go_on.set()
        future.result()
    assert same_image(origin, target, "x")


def test_partials_nobody_wants_can_be_removed(web: WebDirectory, target: LocalStore) -> None:
    partial = interrupted(web, target, 4)
    assert remove_partial(partial)
    assert remove_partial(partial)
    assert check_store(target).findings == ()


def test_documents_that_lie(tmp_path: Path, target: LocalStore) -> None:
    """The device table of the verified meta blob decides what an image consists of."""
    origin = LocalStore.create(tmp_path / "origin", durable=False)
    honest = add_image(origin, "x", seeds=(1, 2))
    other = add_blob(origin, data_region(3))
    meta, first, second = honest.blobs
    lies = {
        "left-out": (meta, first),
        "added": (meta, first, second, other),
        "swapped": (meta, second, first),
        "another": (meta, first, other),
    }
    for name, blobs in lies.items():
        (origin.path / "images" / name).write_bytes(ImageDocument(honest.image, blobs).encode())
    with serving(origin.path) as web:
        for name in lies:
            with pytest.raises(FormatError, match="device table"):
                pull(web, target, name)
    size = BlobInfo(meta.digest, meta.data_size + 4096, meta.size + 8192)
    (origin.path / "images" / "size").write_bytes(ImageDocument(honest.image, (size, first, second)).encode())
    with serving(origin.path) as web, pytest.raises(FormatError, match="device table"):
        pull(web, target, "size")
    assert check_store(target).blobs == 0
    assert target.list_images() == []


def test_sizes_come_from_the_blobs(tmp_path: Path, target: LocalStore) -> None:
    origin = LocalStore.create(tmp_path / "origin", durable=False)
    honest = add_image(origin, "x", seeds=(1,))
    meta, data = honest.blobs
    larger = BlobInfo(data.digest, data.data_size, data.size + 4096)
    (origin.path / "images" / "x").write_bytes(ImageDocument(honest.image, (meta, larger)).encode())
    with serving(origin.path) as web:
        pull(web, target)
    assert target.image("x")[0] == honest
    assert check_store(target).findings == ()


def test_a_blob_that_the_source_lacks(tmp_path: Path, target: LocalStore) -> None:
    origin = LocalStore.create(tmp_path / "origin", durable=False)
    document = add_image(origin, "x", seeds=(1, 2, 3))
    origin.delete_blob(document.data[1].digest)
    with serving(origin.path) as web, pytest.raises(NotFoundError):
        pull(web, target)
    assert not target.has_image("x")
    assert check_store(target).findings == ()


def test_the_first_error_does_not_wait_for_a_silent_server(web: WebDirectory, target: LocalStore) -> None:
    """A blob fails while requests for another hang: the copy ends without them."""
    silence = threading.Event()

    def meddle(_path: str, offset: int, data: bytes) -> bytes | None:
        if len(data) <= SLACK:
            return data
        if offset == 0:
            return None
        silence.wait(20)
        return data

    web.meddle = meddle
    try:
        with pytest.raises(RemoteError):
            pull(web, target)
        assert not silence.is_set()
    finally:
        silence.set()
    deadline = threading.Event()
    while any(is_partial_in_use(path) for path in partials(target)):
        assert not deadline.wait(0.01)


def test_a_full_disk(origin: LocalStore, web: WebDirectory, tmp_path: Path, need_root: None) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    document = origin.image("x")[0]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "eroseal-test", disk], check=True)
    try:
        target = LocalStore.create(disk / "store")
        with pytest.raises(OutputError, match="the disk is full"):
            pull(web, target)
        assert check_store(target).damage == ()
        here = len(marked(partials(target)[0]))
        assert here
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        web.forget()
        pull(web, target)
        assert check_store(target).findings == ()
        assert web.total <= blob_bytes(document) - (here - 1) * PIECE_SIZE + SLACK
    finally:
        subprocess.run(["umount", disk], check=True)


_MEASURED = """
import resource, sys
from eroseal.cli.main import main
if sys.argv[3] != "0":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
code = main(["copy", sys.argv[1], sys.argv[2], "--no-sync"])
# Not getrusage: it counts what the parent had when it forked.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def measured(web: WebDirectory, name: str, place: Path, *, files: int = 0) -> int:
    """Pull in a process of its own; gives the most KiB of memory that it had."""
    command = [sys.executable, "-c", _MEASURED, f"{web.url}:{name}", f"dir:{place}:{name}", str(files)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("mebibytes", [256, pytest.param(1024, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_image(tmp_path: Path, mebibytes: int) -> None:
    store = LocalStore.create(tmp_path / "origin", durable=False)
    add_large_image(store, size=mebibytes << 20)
    with serving(store.path) as web:
        assert measured(web, "x", tmp_path / "target") < 160 << 10
        assert web.total > mebibytes << 20


def test_open_files_do_not_grow_with_the_image(web: WebDirectory, tmp_path: Path) -> None:
    assert measured(web, "many", tmp_path / "target", files=100)
    assert check_store(LocalStore.open(tmp_path / "target")).blobs == 301
