"""Every kind of store that the contract tests run against.

A kind is added here by a function that makes a fresh, empty store, and by what the kind promises; the tests ask for
kinds by promise, so that none is run against what does not claim to do it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from tests.support.oci_places import layout_place, registry_place
from tests.support.s3 import s3_store
from tests.unit.store_samples import data_region, meta_region, sealed_bytes

from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.readat import BytesAt
from eroseal.store.document import BlobInfo, ImageDocument, StackDocument
from eroseal.store.local import LocalStore
from eroseal.store.protocol import Store
from eroseal.store.reference import WebReference
from eroseal.store.remote import RemoteOptions
from eroseal.store.web import open_web_store

WRITES = "writes"
"""Takes blobs and images."""
LISTS = "lists"
"""Can tell what it has."""
EXCLUDES = "excludes"
"""Of two that publish one new name at the same time, exactly one succeeds; no update of a record is lost."""
NATIVE = "native"
"""Blobs need no image to be found, listed and deleted; each name has a record and sizes of its own."""
FOLLOWS = "follows"
"""While an image is replaced, readers get the old document with its record, or the new one with its own."""


@dataclass(frozen=True, slots=True)
class Harness:
    """A fresh, empty store under test.

    Args:
        store: the store, as the tests use it.
        behind: through which content gets in: the same store, unless it is read only.
        again: opens the same store another time, as another process would; closed at the test's end.
    """

    store: Store
    behind: Store
    again: Callable[[], Store]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of store.

    Args:
        name: in test names.
        make: gives a fresh store; may ask for fixtures.
        promises: of the names above.
    """

    name: str
    make: Callable[[pytest.FixtureRequest, Path], contextlib.AbstractContextManager[Harness]]
    promises: frozenset[str] = field(default_factory=frozenset)


SERVERS = ("registry", "s3_server", "web_server")
"""Fixtures of whole sessions that the kinds need; a module that uses `kinds` asks for them before its tests begin."""


@contextlib.contextmanager
def _harness(again: Callable[[], Store], behind: Store | None = None) -> Iterator[Harness]:
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(again())
        yield Harness(store, behind or store, lambda: opened.enter_context(again()))


@contextlib.contextmanager
def _directory(request: pytest.FixtureRequest, place: Path) -> Iterator[Harness]:
    with _harness(lambda: LocalStore.create(place / "store", durable=False)) as harness:
        yield harness


@contextlib.contextmanager
def _s3(request: pytest.FixtureRequest, place: Path) -> Iterator[Harness]:
    server = request.getfixturevalue("s3_server")
    bucket = server.new_bucket()
    with _harness(lambda: s3_store(server.url, bucket, "some/prefix")) as harness:
        yield harness


@contextlib.contextmanager
def _web(request: pytest.FixtureRequest, place: Path) -> Iterator[Harness]:
    server = request.getfixturevalue("web_server")
    name = secrets.token_hex(6)
    behind = LocalStore.create(server.site / name, durable=False)
    reference = WebReference(f"{server.url}/{name}", "x")
    with _harness(lambda: open_web_store(reference, RemoteOptions(attempts=2)), behind) as harness:
        yield harness


@contextlib.contextmanager
def _layout(request: pytest.FixtureRequest, place: Path) -> Iterator[Harness]:
    with contextlib.ExitStack() as opened, _harness(layout_place(place / "layout", opened).store) as harness:
        yield harness


@contextlib.contextmanager
def _registry(request: pytest.FixtureRequest, place: Path) -> Iterator[Harness]:
    server = request.getfixturevalue("registry")
    with contextlib.ExitStack() as opened, _harness(registry_place(server, opened).store) as harness:
        yield harness


KINDS: list[Kind] = [
    Kind("directory", _directory, frozenset({WRITES, LISTS, EXCLUDES, FOLLOWS, NATIVE})),
    Kind("s3", _s3, frozenset({WRITES, LISTS, EXCLUDES, FOLLOWS, NATIVE})),
    Kind("web", _web, frozenset({FOLLOWS, NATIVE})),
    Kind("layout", _layout, frozenset({WRITES, LISTS, FOLLOWS})),
    Kind("registry", _registry, frozenset({WRITES, LISTS, FOLLOWS})),
]


def kinds(*promises: str) -> pytest.MarkDecorator:
    """Run a test against all kinds that make these promises."""
    chosen = [kind for kind in KINDS if kind.promises.issuperset(promises)]
    return pytest.mark.parametrize("kind", chosen, ids=lambda kind: kind.name)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image that is in no store yet.

    Args:
        document: of the image.
        blobs: its sealed blobs.
    """

    document: ImageDocument
    blobs: dict[Digest, bytes]


@cache
def sample_blob(seed: int, blocks: int = 3) -> tuple[Digest, bytes]:
    """A sealed data blob."""
    return sealed_bytes(data_region(seed, blocks))


@cache
def sample_image(seeds: Sequence[int] = (1,), label: int = 0) -> Sample:
    """An image with a data blob for each seed; images with another label differ in their meta blob."""
    data = [(sample_blob(seed), len(data_region(seed))) for seed in seeds]
    infos = [BlobInfo(digest, size, len(blob)) for (digest, blob), size in data]
    region = meta_region(infos, label)
    meta, sealed = sealed_bytes(region)
    document = ImageDocument(meta, (BlobInfo(meta, len(region), len(sealed)), *infos))
    return Sample(document, {meta: sealed} | dict(blob for blob, _ in data))


def fill(store: Store, sample: Sample) -> None:
    """Put an image's blobs into a store."""
    for digest, blob in sample.blobs.items():
        store.put_blob(digest, BytesAt(blob), jobs=1)


def publish(
    store: Store, name: str, sample: Sample, record: Sequence[RecordEntry] = (), *, replace: bool = False
) -> ImageDocument:
    """Put an image into a store, and give its document."""
    fill(store, sample)
    store.put_image(name, sample.document, record, replace=replace)
    return sample.document


def publish_stack(
    store: Store, name: str, samples: Sequence[Sample], record: Sequence[RecordEntry] = ()
) -> StackDocument:
    """Put a stack of images into a store, and give its document."""
    for sample in samples:
        fill(store, sample)
    document = StackDocument(tuple(sample.document for sample in samples))
    store.put_image(name, document, record)
    return document
