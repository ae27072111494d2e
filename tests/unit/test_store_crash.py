"""A store after a crash at any point: old or new, never half of either, and a rerun needs no clean-up.

A child process does one operation and is killed before its n-th system call that shows in the file system, for
every n until the operation gets through. Audit events mark these calls, so nothing is replaced by a stand-in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.store_samples import add_blob, add_image, data_region, meta_region, sealed_bytes, signature

from eroseal.errors import NotFoundError
from eroseal.format.digest import Digest
from eroseal.readat import BytesAt
from eroseal.store.atomic import is_temporary
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.fsck import check_store
from eroseal.store.garbage import CollectOptions
from eroseal.store.gc_local import collect_local
from eroseal.store.local import LocalStore
from eroseal.store.resolve import resolve
from eroseal.store.single import write_single

_HARNESS = """
import os, shutil, signal, sys
from pathlib import Path
from tests.unit.store_samples import *
from eroseal.readat import FileAt
from eroseal.store.local import LocalStore
from eroseal.store.resolve import resolve
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.single import SingleWriter, write_single
from eroseal.store.reference import parse_reference
from eroseal.store.fsck import check_store
from eroseal.store.single import update_record

template, place = Path(sys.argv[1]), Path(sys.argv[2])
EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "fcntl.flock"}

def operate(root):
    store = LocalStore.open(root / "store")
    OPERATION

def run_killed_before(number, root):
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, args):
            nonlocal seen
            if event in EVENTS:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        try:
            operate(root)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

number, status = 0, None
while status != 0:
    number += 1
    root = place / str(number)
    shutil.copytree(template, root)
    status = run_killed_before(number, root)
    assert status in (0, signal.SIGKILL), status
"""

Crash = Callable[[str], list[Path]]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A directory with a store of two images and a signed single file."""
    root = tmp_path / "template"
    root.mkdir()
    store = LocalStore.create(root / "store", durable=False)
    add_image(store, "x", record=[signature("old")])
    add_image(store, "other", label=1, record=[signature("new")])
    write_single(BytesAt(sealed_bytes(meta_region())[1]), [signature("old")], root / "file.erofs", durable=False)
    return root


@pytest.fixture
def crash(tmp_path: Path, template: Path) -> Crash:
    """Run an operation on copies of the template, killed ever later; gives the copies, the last one done."""

    def run(operation: str) -> list[Path]:
        place = tmp_path / "crashed"
        place.mkdir()
        script = _HARNESS.replace("OPERATION", operation)
        command = [sys.executable, "-c", script, template, place]
        root = Path(__file__).resolve().parents[2]
        subprocess.run(command, check=True, cwd=root)
        return sorted(place.iterdir(), key=lambda path: int(path.name))

    return run


def no_damage(root: Path) -> LocalStore:
    """The store, which may hold litter and nothing worse."""
    store = LocalStore.open(root / "store", durable=False)
    assert check_store(store).damage == ()
    return store


def test_replacing_an_image(crash: Crash) -> None:
    copies = crash("store.put_image('x', store.image('other')[0], [signature('new')], replace=True)")
    seen = []
    for root in copies:
        store = no_damage(root)
        old, new = store.image("x")[0], store.image("other")[0]
        seen.append(old.image == new.image)
        assert store.image("x")[1] == [signature("new" if seen[-1] else "old")]
        store.put_image("x", new, [signature("again")], replace=True)
        assert store.image("x") == (new, [signature("again")])
        store.new_blob().discard()
        assert check_store(store).findings == ()
    assert len(copies) > 10
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (False, True)


def test_publishing_an_image(crash: Crash) -> None:
    copies = crash("store.put_image('y', store.image('other')[0], [signature('new')])")
    published = []
    for root in copies:
        store = no_damage(root)
        other = store.image("other")[0]
        published.append(store.has_image("y"))
        if published[-1]:
            assert store.image("y") == (other, [signature("new")])
            store.delete_image("y")
        store.put_image("y", other, [signature("again")])
        assert store.image("y")[1] == [signature("again")]
        store.new_blob().discard()
        assert check_store(store).findings == ()
    assert published == sorted(published)
    assert (published[0], published[-1]) == (False, True)


def test_an_image_without_signatures_does_not_inherit_a_lost_record(crash: Crash) -> None:
    for root in crash("store.put_image('y', store.image('other')[0], [signature('new')])"):
        store = no_damage(root)
        store.put_image("y", store.image("other")[0], replace=True)
        assert store.image("y")[1] == []


def test_deleting_an_image(crash: Crash) -> None:
    for root in crash("store.delete_image('x')"):
        store = no_damage(root)
        if store.has_image("x"):
            assert store.image("x")[1] == [signature("old")]
            store.delete_image("x")
        with pytest.raises(NotFoundError):
            store.image("x")


def test_collecting_a_store(crash: Crash) -> None:
    left = []
    for root in crash(
        "from eroseal.store.garbage import CollectOptions; from eroseal.store.gc_local import collect_local; "
        "store.delete_image('x'); (store.path / 'leases').mkdir(); (store.path / 'leases' / ('0' * 32)).touch(); "
        "os.utime(store.path / 'leases' / ('0' * 32), (1, 1)); collect_local(store, CollectOptions(grace=0.0))"
    ):
        store = no_damage(root)
        assert store.image("other")[1] == [signature("new")]
        left.append(check_store(store, data=False).unreferenced)
        collect_local(store, CollectOptions(grace=0.0 if not store.has_image("x") else 1e9))
        report = check_store(store)
        assert report.findings == ()
        assert store.has_image("x") or report.unreferenced == 0
    assert left[-1] == 0
    assert max(left) == 1


def test_signing_in_a_store(crash: Crash) -> None:
    seen = []
    for root in crash("store.update_record('x', lambda old: [*old, signature('new')])"):
        entries = no_damage(root).image("x")[1]
        assert entries in ([signature("old")], [signature("old"), signature("new")])
        seen.append(len(entries))
    assert (seen[0], seen[-1]) == (1, 2)


def test_writing_a_blob(crash: Crash) -> None:
    digest, content = sealed_bytes(data_region(7))
    stored = []
    for root in crash("add_blob(store, data_region(7))"):
        store = no_damage(root)
        stored.append(store.has_blob(digest))
        if stored[-1]:
            assert store.blob_path(digest).read_bytes() == content
        add_blob(store, data_region(7))
        assert store.blob_path(digest).read_bytes() == content
        assert not any(is_temporary(name) for name in os.listdir(store.path / "blobs"))
    assert stored == sorted(stored)
    assert (stored[0], stored[-1]) == (False, True)


def test_signing_a_single_file(crash: Crash) -> None:
    seen = []
    for root in crash("update_record(root / 'file.erofs', lambda old: [*old, signature('new')])"):
        with resolve(str(root / "file.erofs")) as image:
            assert image.record in ((signature("old"),), (signature("old"), signature("new")))
            seen.append(len(image.record))
    assert (seen[0], seen[-1]) == (1, 2)


def test_exporting_a_single_file(crash: Crash, template: Path) -> None:
    expected = (template / "file.erofs").read_bytes()
    there = []
    operation = "write_single(FileAt(root / 'file.erofs'), [signature('old')], root / 'out.erofs')"
    for root in crash(operation):
        there.append((root / "out.erofs").exists())
        if there[-1]:
            assert (root / "out.erofs").read_bytes() == expected
    assert (there[0], there[-1]) == (False, True)


def test_making_a_store(crash: Crash) -> None:
    for root in crash("LocalStore.create(root / 'new')"):
        store = LocalStore.create(root / "new", durable=False)
        assert check_store(store).findings == ()


def test_a_document_alone_is_enough(template: Path) -> None:
    """A record that a power cut took leaves the image readable, only unsigned."""
    store = LocalStore.open(template / "store", durable=False)
    document = store.image("x")[0]
    store.record_path("x", document.image).unlink()
    assert store.image("x") == (document, [])
    assert isinstance(document.image, Digest)
    assert isinstance(document, ImageDocument)
    assert isinstance(document.meta, BlobInfo)
