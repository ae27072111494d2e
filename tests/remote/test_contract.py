"""What every kind of store does: the same cases for all of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.stores import (
    EXCLUDES,
    FOLLOWS,
    KINDS,
    LISTS,
    NATIVE,
    SERVERS,
    WRITES,
    Harness,
    Kind,
    fill,
    kinds,
    publish,
    publish_stack,
    sample_blob,
    sample_image,
)
from tests.unit.store_samples import signature

from eroseal.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    OutputError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.readat import BytesAt
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.protocol import Store
from eroseal.trust.image import open_blob
from eroseal.trust.scan import scan_blob

pytestmark = pytest.mark.usefixtures(*SERVERS)
read_only = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if WRITES not in kind.promises], ids=lambda kind: kind.name
)


@pytest.fixture
def harness(kind: Kind, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    with kind.make(request, tmp_path) as made:
        yield made


@pytest.fixture
def store(harness: Harness) -> Store:
    return harness.store


def blobs_of(store: Store) -> list[str]:
    return [str(digest) for digest in store.list_blobs()]


class Cut:
    """A source that ends before it said it would."""

    def __init__(self, data: bytes, end: int) -> None:
        self._data = BytesAt(data[:end])
        self.size = len(data)
        self.name = "cut"

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data.read_at(offset, length)


class Shifty:
    """A source that is right the first time that a place is read, and wrong from then on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._seen: set[int] = set()
        self._lock = threading.Lock()
        self.size = len(data)
        self.name = "shifty"

    def read_at(self, offset: int, length: int) -> bytes:
        with self._lock:
            places = set(range(offset, offset + length))
            again = places & self._seen
            self._seen |= places
        data = BytesAt(self._data).read_at(offset, length)
        return bytes(byte ^ 1 if offset + i in again else byte for i, byte in enumerate(data)) if again else data


# Blobs


@kinds(WRITES, NATIVE)
def test_a_blob_goes_in_and_comes_out(harness: Harness) -> None:
    digest, blob = sample_blob(1)
    assert not harness.store.has_blob(digest)
    arrived: list[int] = []
    assert harness.store.put_blob(digest, BytesAt(blob), jobs=1, progress=arrived.append) == len(blob)
    assert sum(arrived) == len(blob)
    for store in (harness.store, harness.again()):
        assert store.has_blob(digest)
        with contextlib.closing(store.open_blob(digest)) as source:
            assert source.size == len(blob)
            assert source.read_at(0, len(blob)) == blob
            assert scan_blob(source, open_blob(source, digest), jobs=2) == []


@kinds(WRITES)
def test_what_follows_a_blob_stays_behind(store: Store) -> None:
    digest, blob = sample_blob(1)
    assert store.put_blob(digest, BytesAt(blob + b"trailer"), jobs=1) == len(blob)
    with contextlib.closing(store.open_blob(digest)) as source:
        assert source.size == len(blob)


@kinds()
def test_ranges_at_the_ends_and_beyond(harness: Harness) -> None:
    digest, blob = sample_blob(2, blocks=40)
    harness.behind.put_blob(digest, BytesAt(blob), jobs=1)
    size = len(blob)
    source = harness.store.open_blob(digest)
    for offset, length in [(0, 0), (0, 1), (size - 1, 1), (size, 0), (4095, 2), (size - 70_000, 70_000), (1, 100_000)]:
        assert source.read_at(offset, length) == blob[offset : offset + length]
        assert isinstance(source.read_at(offset, length), bytes)
    for offset, length in [(0, size + 1), (size - 1, 2), (size, 1), (size + 1, 0), (-1, 1), (0, -1), (1 << 70, 1)]:
        with pytest.raises(FormatError):
            source.read_at(offset, length)
    with ThreadPoolExecutor(8) as pool:
        pieces = pool.map(lambda offset: source.read_at(offset, 4096), range(0, size, 4096))
        assert b"".join(pieces) == blob
    source.close()
    source.close()


@kinds(WRITES)
def test_a_second_put_changes_nothing(store: Store) -> None:
    digest, blob = sample_blob(1)
    store.put_blob(digest, BytesAt(blob), jobs=1)
    # Nothing of the source is looked at: it could be anything.
    assert store.put_blob(digest, BytesAt(b""), jobs=1) == len(blob)


def damage(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


@kinds(WRITES, LISTS)
def test_a_damaged_blob_never_enters(store: Store) -> None:
    digest, blob = sample_blob(2, blocks=40)
    # Data, tree, padding of the tree, and seal; the footer is a hint, and no part of what is proved.
    for at in (0, 39 * 4096 + 7, 40 * 4096 + 20, 41 * 4096 + 3, len(blob) - 4096):
        with pytest.raises(VerificationError):
            store.put_blob(digest, BytesAt(damage(blob, at)), jobs=1)
        assert not store.has_blob(digest)
    assert blobs_of(store) == []


@kinds(WRITES, LISTS)
def test_another_blob_never_enters(store: Store) -> None:
    digest, _ = sample_blob(1)
    _, other = sample_blob(2)
    for source in (other, b"", b"\0" * 8192):
        with pytest.raises((IntegrityError, FormatError)):
            store.put_blob(digest, BytesAt(source), jobs=1)
    assert not store.has_blob(digest)
    assert blobs_of(store) == []


@kinds(WRITES, LISTS)
def test_a_source_that_ends_early_or_changes_leaves_nothing(store: Store) -> None:
    digest, blob = sample_blob(2, blocks=40)
    for source in (BytesAt(blob[:-5000]), Cut(blob, 8192), Cut(blob, len(blob) - 1)):
        with pytest.raises((VerificationError, FormatError)):
            store.put_blob(digest, source, jobs=1)
        assert blobs_of(store) == []
    with contextlib.suppress(VerificationError):
        store.put_blob(digest, Shifty(blob), jobs=1)
    for found in store.list_blobs():
        with contextlib.closing(store.open_blob(found)) as source:
            assert source.read_at(0, source.size) == blob


@kinds(WRITES, LISTS, NATIVE)
def test_blobs_are_listed_in_order_and_deleted(store: Store) -> None:
    digests = sorted((sample_blob(seed)[0] for seed in range(1, 9)), key=lambda digest: digest.hex)
    for seed in range(1, 9):
        store.put_blob(*_source(seed), jobs=1)
    assert list(store.list_blobs()) == digests
    store.delete_blob(digests[3])
    assert list(store.list_blobs()) == digests[:3] + digests[4:]
    assert not store.has_blob(digests[3])
    with pytest.raises(NotFoundError):
        store.delete_blob(digests[3])


def _source(seed: int) -> tuple[Digest, BytesAt]:
    digest, blob = sample_blob(seed)
    return digest, BytesAt(blob)


@kinds()
def test_unknown_names_are_not_found(store: Store) -> None:
    digest, _ = sample_blob(1)
    assert not store.has_blob(digest)
    assert not store.has_image("nothing")
    with pytest.raises(NotFoundError):
        store.open_blob(digest)
    with pytest.raises(NotFoundError, match="no image has this name"):
        store.image("nothing")


@kinds(WRITES)
def test_unknown_names_cannot_be_changed(store: Store) -> None:
    digest, _ = sample_blob(1)
    with pytest.raises(NotFoundError):
        store.delete_blob(digest)
    with pytest.raises(NotFoundError):
        store.delete_image("nothing")
    with pytest.raises(NotFoundError):
        store.update_record("nothing", lambda entries: entries)


@kinds()
def test_names_that_cannot_be_are_refused(store: Store) -> None:
    for name in ("", ".", "..", "a/b", "../x", "-x", "a\nb", "x" * 129):
        with pytest.raises(UsageError):
            store.image(name)
        with pytest.raises((UsageError, NotFoundError, UnsupportedError)):
            store.delete_image(name)


# Images


@kinds(NATIVE)
def test_an_image_comes_back_with_its_record(harness: Harness) -> None:
    sample = sample_image((1, 2))
    record = [signature("first"), signature("second")]
    publish(harness.behind, "app", sample, record)
    publish(harness.behind, "bare", sample)
    for store in (harness.store, harness.again()):
        assert store.has_image("app")
        assert store.image("app") == (sample.document, record)
        assert store.image("bare") == (sample.document, [])
        assert all(store.has_blob(digest) for digest in sample.blobs)


@kinds()
def test_a_stack_comes_back_with_its_record(harness: Harness) -> None:
    document = publish_stack(
        harness.behind, "stacked", [sample_image((1,)), sample_image((1, 2), 1)], [signature("all")]
    )
    assert harness.store.image("stacked") == (document, [signature("all")])


@kinds(WRITES, LISTS, NATIVE)
def test_images_are_listed_and_deleted(store: Store) -> None:
    assert store.list_images() == []
    sample = sample_image()
    for name in ("zeta", "alpha", "alpha.1"):
        publish(store, name, sample, [signature(name)])
    assert store.list_images() == ["alpha", "alpha.1", "zeta"]
    store.delete_image("alpha")
    assert store.list_images() == ["alpha.1", "zeta"]
    assert store.image("alpha.1") == (sample.document, [signature("alpha.1")])
    with pytest.raises(NotFoundError):
        store.image("alpha")
    with pytest.raises(NotFoundError):
        store.delete_image("alpha")
    assert all(store.has_blob(digest) for digest in sample.blobs)
    # Nothing of the deleted image comes back with its name.
    publish(store, "alpha", sample)
    assert store.image("alpha") == (sample.document, [])


@kinds(WRITES, LISTS, NATIVE)
def test_an_image_without_its_blobs_is_refused(store: Store) -> None:
    sample = sample_image((1, 2))
    for replace in (False, True):
        with pytest.raises(NotFoundError, match="is not in the store"):
            store.put_image("app", sample.document, [signature("x")], replace=replace)
    fill(store, sample)
    store.delete_blob(sample.document.data[1].digest)
    with pytest.raises(NotFoundError, match="is not in the store"):
        store.put_image("app", sample.document)
    assert store.list_images() == []


@kinds(WRITES, LISTS, NATIVE)
def test_a_document_with_other_sizes_is_refused(store: Store) -> None:
    sample = sample_image((1,))
    fill(store, sample)
    meta, data = sample.document.blobs
    wrong = ImageDocument(meta.digest, (meta, BlobInfo(data.digest, data.data_size, data.size + 4096)))
    with pytest.raises(OutputError, match="document says"):
        store.put_image("app", wrong)
    assert store.list_images() == []


@kinds(WRITES)
def test_a_name_that_is_taken_is_refused(store: Store) -> None:
    old = publish(store, "app", sample_image((1,)), [signature("old")])
    new = sample_image((2,), 1)
    fill(store, new)
    for document in (new.document, old):
        with pytest.raises(OutputError, match="exists already"):
            store.put_image("app", document, [signature("new")])
        assert store.image("app") == (old, [signature("old")])


@kinds(WRITES, NATIVE)
def test_an_image_takes_another_ones_place_with_its_record(store: Store) -> None:
    publish(store, "app", sample_image((1,)), [signature("old")])
    new = publish(store, "app", sample_image((2,), 1), [signature("new")], replace=True)
    assert store.image("app") == (new, [signature("new")])
    bare = publish(store, "app", sample_image((1,)), replace=True)
    assert store.image("app") == (bare, [])
    publish(store, "app", sample_image((1,)), [signature("again")], replace=True)
    assert store.image("app") == (bare, [signature("again")])
    publish(store, "app", sample_image((1,)), replace=True)
    assert store.image("app") == (bare, [])


@kinds(WRITES, NATIVE)
def test_a_record_changes_alone(harness: Harness) -> None:
    store = harness.store
    document = publish(store, "app", sample_image())
    publish(store, "other", sample_image(), [signature("untouched")])

    def adding(text: str) -> Callable[[list[RecordEntry]], list[RecordEntry]]:
        return lambda entries: [*entries, signature(text)]

    assert store.update_record("app", adding("one")) == [signature("one")]
    assert store.update_record("app", adding("two"), expect=document.image) == [signature("one"), signature("two")]
    assert harness.again().image("app") == (document, [signature("one"), signature("two")])
    assert store.update_record("app", lambda entries: entries[1:]) == [signature("two")]
    assert store.update_record("app", lambda entries: []) == []
    assert store.image("app") == (document, [])
    assert store.update_record("app", adding("three")) == [signature("three")]
    assert store.image("app") == (document, [signature("three")])
    assert store.image("other") == (document, [signature("untouched")])


@kinds(WRITES)
def test_a_change_that_is_about_another_image_is_refused(store: Store) -> None:
    old = publish(store, "app", sample_image((1,)), [signature("old")])
    new = publish(store, "app", sample_image((2,), 1), [signature("new")], replace=True)
    with pytest.raises(OutputError, match="replaced meanwhile"):
        store.update_record("app", lambda entries: [], expect=old.image)
    assert store.image("app") == (new, [signature("new")])


@kinds(WRITES)
def test_a_change_that_fails_leaves_the_record(store: Store) -> None:
    document = publish(store, "app", sample_image(), [signature("old")])

    def failing(entries: list[RecordEntry]) -> list[RecordEntry]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.update_record("app", failing)
    with pytest.raises(OutputError, match="cannot be written"):
        store.update_record("app", lambda entries: [RecordEntry(999, b"", critical=True)])
    assert store.image("app") == (document, [signature("old")])


# At the same time


def together(work: Callable[[int], object], count: int) -> list[object]:
    """Do something in several threads that begin together; gives what each returned or raised."""
    barrier = threading.Barrier(count)

    def one(number: int) -> object:
        barrier.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@kinds(WRITES, EXCLUDES)
def test_one_of_several_gets_a_new_name(harness: Harness) -> None:
    samples = [sample_image((1,), label) for label in range(3)]
    for sample in samples:
        fill(harness.store, sample)
    stores = [harness.again() for _ in range(6)]
    for name in ("a", "b", "c"):
        # Two publish each image, with records of their own.
        outcomes = together(
            lambda n, name=name: stores[n].put_image(name, samples[n % 3].document, [signature(str(n))]), 6
        )
        winners = [number for number, outcome in enumerate(outcomes) if outcome is None]
        losers = [outcome for outcome in outcomes if outcome is not None]
        assert len(winners) == 1
        assert all(isinstance(error, OutputError) and "exists already" in str(error) for error in losers)
        assert harness.store.image(name) == (samples[winners[0] % 3].document, [signature(str(winners[0]))])


@kinds(WRITES, EXCLUDES)
def test_no_change_of_a_record_is_lost(harness: Harness) -> None:
    document = publish(harness.store, "app", sample_image())
    stores = [harness.again() for _ in range(4)]

    def sign(number: int) -> None:
        for turn in range(3):
            text = f"{number}.{turn}"
            stores[number].update_record(
                "app", lambda entries, text=text: [*entries, signature(text)], expect=document.image
            )

    assert together(sign, 4) == [None] * 4
    entries = harness.store.image("app")[1]
    assert sorted(entry.value for entry in entries) == sorted(
        f"{number}.{turn}".encode() for number in range(4) for turn in range(3)
    )


@kinds(WRITES, EXCLUDES)
def test_the_last_of_several_that_replace_stays_whole(harness: Harness) -> None:
    samples = [sample_image((1,), label) for label in range(4)]
    for sample in samples:
        fill(harness.store, sample)
    pairs = [(sample.document, [signature(str(sample.document.image))]) for sample in samples]
    stores = [harness.again() for _ in range(4)]
    for _ in range(3):
        outcomes = together(lambda n: stores[n].put_image("app", *pairs[n], replace=True), 4)
        assert outcomes == [None] * 4
        assert harness.store.image("app") in pairs


@kinds(FOLLOWS)
def test_documents_and_records_are_never_mixed(harness: Harness) -> None:
    samples = [sample_image((1,), label) for label in range(8)]
    for sample in samples:
        fill(harness.behind, sample)
    pairs = [(sample.document, [signature(str(sample.document.image))]) for sample in samples]
    harness.behind.put_image("app", *pairs[0])
    stop = threading.Event()

    def replace() -> None:
        for pair in pairs[1:]:
            harness.behind.put_image("app", *pair, replace=True)
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace)
        seen = [harness.store.image("app")]
        while not stop.is_set() and not writer.done():
            seen.append(harness.store.image("app"))
        writer.result()
    assert all(found in pairs for found in seen)


@kinds(WRITES, LISTS, NATIVE)
def test_one_blob_may_arrive_from_several_sides(harness: Harness) -> None:
    digest, blob = sample_blob(2, blocks=40)
    stores = [harness.again() for _ in range(4)]
    assert together(lambda n: stores[n].put_blob(digest, BytesAt(blob), jobs=1), 4) == [len(blob)] * 4
    assert list(harness.store.list_blobs()) == [digest]


# Read only


@read_only
def test_what_is_read_only_says_so(harness: Harness) -> None:
    document = publish(harness.behind, "app", sample_image(), [signature("x")])
    digest, blob = sample_blob(1)
    store = harness.store
    writes: list[Callable[[], object]] = [
        lambda: store.put_blob(digest, BytesAt(blob)),
        lambda: store.adopt_blob(digest, harness.behind),
        lambda: store.delete_blob(digest),
        lambda: store.put_image("new", document),
        lambda: store.put_image("app", document, replace=True),
        lambda: store.update_record("app", lambda entries: []),
        lambda: store.delete_image("app"),
    ]
    for write in writes:
        with pytest.raises(UnsupportedError, match="read only"):
            write()
    for listing in (lambda: list(store.list_blobs()), store.list_images):
        with pytest.raises(UnsupportedError, match="cannot tell what it has"):
            listing()
    assert store.image("app") == (document, [signature("x")])
