from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.sealing import PARAM_IDS, PARAMS, SHA512, Changeable, meta_region, noise, seal_bytes

from eroseal.errors import AuthenticityError, FormatError, IntegrityError, NotFoundError, UsageError
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.readat import ReadAt
from eroseal.trust.blob import SelfConsistentBlob, UnverifiedBlob, VerifiedBlob
from eroseal.trust.image import UnverifiedImage, VerifiedImage, open_image, open_self_consistent_image
from eroseal.trust.policy import Policy


class Image:
    """A sealed image in memory: meta blob, data blobs by digest, and what was opened."""

    def __init__(self, directory: Path, params: TreeParams, sizes: list[int]) -> None:
        self.data = [seal_bytes(directory, noise(size, seed=10 + k), params) for k, size in enumerate(sizes)]
        self.sealed_meta(
            directory, params, [(item.sealed.digest.tag(), size) for item, size in zip(self.data, sizes, strict=True)]
        )

    def sealed_meta(self, directory: Path, params: TreeParams, tags: list[tuple[bytes, int]]) -> None:
        blocks = 2 + len(tags) * 128 // BLOCK
        self.meta = seal_bytes(directory, meta_region(tags, blocks=blocks), params)
        self.blobs = {item.sealed.digest: item.blob for item in self.data}
        self.opened: list[Changeable] = []

    def open_data(self, digest: Digest) -> ReadAt:
        if digest not in self.blobs:
            raise NotFoundError("no such blob", where=str(digest))
        source = Changeable(self.blobs[digest], f"data {digest.hex[:8]}")
        self.opened.append(source)
        return source

    def open(self) -> VerifiedImage:
        policy = Policy(digests=(self.meta.sealed.digest,), time=0)
        return open_image(self.meta.source("meta"), policy=policy, open_data=self.open_data)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Image]:
    def image(*sizes: int, params: TreeParams = PARAMS[0]) -> Image:
        return Image(tmp_path, params, list(sizes))

    return image


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
def test_an_image_opens_with_its_data_blobs(make: Callable[..., Image], params: TreeParams) -> None:
    image = make(3, 1, 200, params=params)
    with image.open() as opened:
        assert opened.digest == image.meta.sealed.digest
        assert opened.trusted_by == "digest"
        assert opened.statement is None
        assert [item.digest for item in opened.devices] == [item.sealed.digest for item in image.data]
        assert [item.size for item in opened.devices] == [len(item.data) for item in image.data]
        assert image.opened == []  # nothing is opened before it is read
        for k, sample in enumerate(image.data):
            blob = opened.device(k)
            assert isinstance(blob, VerifiedBlob)
            assert blob.read_at(0, blob.size) == sample.data
        assert opened.meta.read_at(0, opened.meta.size) == image.meta.data


def test_an_image_without_data_blobs(make: Callable[..., Image]) -> None:
    opened = make().open()
    assert opened.devices == ()
    for k in (0, -1):
        with pytest.raises(NotFoundError):
            opened.device(k)


def test_the_policy_decides(make: Callable[..., Image]) -> None:
    image = make(1)
    other = Policy(digests=(image.data[0].sealed.digest,), time=0)
    with pytest.raises(AuthenticityError) as caught:
        open_image(image.meta.source(), policy=other, open_data=image.open_data)
    assert caught.value.step == 3


def test_a_data_blob_is_no_image(make: Callable[..., Image]) -> None:
    """A data blob may hold a file that is an image; pinning the real one refuses it."""
    image = make(1)
    policy = Policy(digests=(image.meta.sealed.digest,), time=0)
    with pytest.raises(AuthenticityError):
        open_image(image.data[0].source(), policy=policy, open_data=image.open_data)


def test_nobody_else_makes_a_verified_image(make: Callable[..., Image]) -> None:
    opened = make(1).open()
    with pytest.raises(UsageError, match="made by its openers alone"):
        VerifiedImage(opened.meta, opened.decision, lambda digest: Changeable(b""), token=object())


def test_swapped_data_blobs_are_refused(make: Callable[..., Image]) -> None:
    image = make(3, 3)
    first, second = (item.sealed.digest for item in image.data)
    image.blobs[first], image.blobs[second] = image.blobs[second], image.blobs[first]
    opened = image.open()
    for k in (0, 1):
        with pytest.raises(IntegrityError) as caught:
            opened.device(k)
        assert caught.value.step == 3
        assert image.opened[k].closed  # a refused source is not left open


def test_a_missing_data_blob_is_not_found(make: Callable[..., Image]) -> None:
    image = make(3, 3)
    del image.blobs[image.data[1].sealed.digest]
    opened = image.open()
    assert opened.device(0).size == 3 * BLOCK
    with pytest.raises(NotFoundError, match="no such blob"):
        opened.device(1)


def test_a_slot_of_another_size_is_refused(make: Callable[..., Image], tmp_path: Path) -> None:
    """Else the kernel would map seal bytes as file content, or find the end of the device too early."""
    image = make(3)
    for blocks in (1, 2, 4, 5, 6):
        image.sealed_meta(tmp_path, PARAMS[0], [(image.data[0].sealed.digest.tag(), blocks)])
        opened = image.open()
        with pytest.raises(IntegrityError, match=r"no seal found|speaks of|its device slot says"):
            opened.device(0)


@pytest.mark.parametrize("blocks", [0])
def test_a_slot_without_blocks_is_refused(make: Callable[..., Image], tmp_path: Path, blocks: int) -> None:
    image = make(3)
    image.sealed_meta(tmp_path, PARAMS[0], [(image.data[0].sealed.digest.tag(), blocks)])
    with pytest.raises(IntegrityError, match="device slot 1 has 0 bytes") as caught:
        image.open()
    assert caught.value.step == 6


@pytest.mark.parametrize("tag", [bytes(64), b"Z" * 64, b"0" * 63 + b"A"])
def test_a_tag_that_is_no_digest_is_refused(make: Callable[..., Image], tmp_path: Path, tag: bytes) -> None:
    image = make(3)
    image.sealed_meta(tmp_path, PARAMS[0], [(image.data[0].sealed.digest.tag(), 3), (tag, 3)])
    with pytest.raises(IntegrityError, match="tag of device slot 2 is not a digest") as caught:
        image.open()
    assert (caught.value.step, caught.value.offset) == (7, BLOCK + 128)


def test_blobs_of_one_image_use_one_algorithm_and_salt(tmp_path: Path) -> None:
    image = Image(tmp_path, PARAMS[0], [3])
    image.data = [seal_bytes(tmp_path, noise(3), PARAMS[1])]
    image.sealed_meta(tmp_path, PARAMS[0], [(image.data[0].sealed.digest.tag(), 3)])
    with pytest.raises(IntegrityError, match="algorithm or salt") as caught:
        image.open().device(0)
    assert caught.value.step == 7


@pytest.mark.parametrize(
    ("offset", "patch", "message"),
    [
        (1024, b"\0", "wrong magic"),
        (1024 + 12, b"\x08", "blocks of 2\\^8 bytes"),
        (1024 + 12, b"\x11", "blocks of 2\\^17 bytes"),
        (1024 + 13, b"\xff", "255 extension slots"),
        (1024 + 0x24, b"\xff\xff\xff\xff", "superblock claims 4294967295 blocks"),
        (1024 + 0x24, b"\x03", "superblock claims 3 blocks"),
        (1024 + 0x56, b"\xff\xff", "device table of 8388480 bytes"),
        (1024 + 0x58, b"\x40", "device table of 128 bytes at byte 8192 leaves"),
        (1024 + 0x58, b"\xff\xff", "device table"),
    ],
)
def test_step_6_superblock_and_table_stay_inside(
    make: Callable[..., Image], tmp_path: Path, offset: int, patch: bytes, message: str
) -> None:
    """A validly sealed and pinned image whose superblock lies is refused all the same."""
    image = make(3)
    data = bytearray(image.meta.data)
    data[offset : offset + len(patch)] = patch
    image.meta = seal_bytes(tmp_path, bytes(data))
    with pytest.raises(IntegrityError, match=message) as caught:
        image.open()
    assert (caught.value.step, caught.value.offset) == (6, 1024)


def test_a_meta_blob_without_a_superblock_is_refused(make: Callable[..., Image], tmp_path: Path) -> None:
    image = make()
    image.meta = seal_bytes(tmp_path, noise(2))
    with pytest.raises(IntegrityError, match="no EROFS superblock") as caught:
        image.open()
    assert caught.value.step == 6


def test_a_flipped_bit_in_the_meta_blob_is_refused_when_it_is_read(make: Callable[..., Image]) -> None:
    image = make(3)
    source = image.meta.source("meta")
    source.flip(BLOCK + 7)  # the device table
    policy = Policy(digests=(image.meta.sealed.digest,), time=0)
    with pytest.raises(IntegrityError) as caught:
        open_image(source, policy=policy, open_data=image.open_data)
    assert (caught.value.step, caught.value.level, caught.value.offset) == (5, 0, BLOCK)


# --- how many blobs are open ---


def test_open_blobs_are_bounded_and_closed(make: Callable[..., Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eroseal.trust.image.MAX_OPEN_BLOBS", 2)
    image = make(1, 2, 3, 4)
    opened = image.open()
    for k in range(4):
        opened.device(k)
    gc.collect()
    assert [source.closed for source in image.opened] == [True, True, False, False]
    assert opened.device(3) is opened.device(3)
    held = opened.device(2)
    opened.device(0)
    opened.device(1)
    gc.collect()
    # Whoever holds a blob can go on reading it; its last reference closes the source.
    assert not image.opened[2].closed
    assert held.read_at(0, held.size) == image.data[2].data
    del held
    gc.collect()
    assert image.opened[2].closed
    opened.close()
    gc.collect()
    assert all(source.closed for source in image.opened)


def test_threads_share_an_image(make: Callable[..., Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eroseal.trust.image.MAX_OPEN_BLOBS", 2)
    image = make(*([2] * 8))
    opened = image.open()
    failures: list[BaseException] = []

    def read(start: int) -> None:
        try:
            for turn in range(200):
                k = (start + turn) % 8
                blob = opened.device(k)
                assert blob.read_at(1, 5000) == image.data[k].data[1:5001]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- unverified, by name ---


def test_a_self_consistent_image_is_an_unverified_one(make: Callable[..., Image]) -> None:
    image = make(3, 5)
    opened = open_self_consistent_image(image.meta.source("meta"), open_data=image.open_data)
    assert isinstance(opened, UnverifiedImage)
    assert opened.digest == image.meta.sealed.digest
    assert isinstance(opened.meta, SelfConsistentBlob)
    assert not isinstance(opened.meta, VerifiedBlob)
    blob = opened.device(1)
    assert blob.read_at(0, blob.size) == image.data[1].data
    first, second = (item.sealed.digest for item in image.data)
    image.blobs[first] = image.blobs[second]
    with pytest.raises(IntegrityError):
        opened.device(0)


def test_bare_parts_make_an_unverified_image(make: Callable[..., Image]) -> None:
    image = make(3, 5)
    parts = [Changeable(item.data, "part") for item in image.data]
    with UnverifiedImage(Changeable(image.meta.data, "bare"), parts) as opened:
        assert opened.digest is None
        assert [item.size for item in opened.devices] == [3 * BLOCK, 5 * BLOCK]
        blob = opened.device(1)
        assert isinstance(blob, UnverifiedBlob)
        assert blob.read_at(0, blob.size) == image.data[1].data
        del blob
    gc.collect()
    assert not any(part.closed for part in parts)  # the caller opened them


def test_bare_parts_by_digest(make: Callable[..., Image], tmp_path: Path) -> None:
    image = make(3)
    opened = UnverifiedImage(Changeable(image.meta.data, "bare"), image.open_data)
    assert opened.device(0).read_at(0, 3 * BLOCK) == image.data[0].data
    image.sealed_meta(tmp_path, PARAMS[0], [(bytes(64), 3)])
    opened = UnverifiedImage(Changeable(image.meta.data, "bare"), image.open_data)
    with pytest.raises(FormatError, match="names no blob"):
        opened.device(0)


def test_the_number_of_parts_must_fit(make: Callable[..., Image]) -> None:
    image = make(3, 5)
    with pytest.raises(NotFoundError, match="image has 2 data blobs, 1 are given"):
        UnverifiedImage(Changeable(image.meta.data), [Changeable(image.data[0].data)])


@pytest.mark.parametrize("data", [b"", bytes(100), bytes(BLOCK), noise(1)])
def test_garbage_is_no_unverified_image(data: bytes) -> None:
    with pytest.raises((FormatError, IntegrityError)):
        UnverifiedImage(Changeable(data))


def test_sha512_tags_are_raw(make: Callable[..., Image]) -> None:
    image = make(2, params=PARAMS[2])
    assert image.data[0].sealed.digest.value in image.meta.data
    assert image.open().devices[0].digest == Digest(SHA512, image.data[0].sealed.digest.value)


def test_many_devices(tmp_path: Path) -> None:
    """All 65,535 slots that the format has: opened, bounded in memory, read at both ends."""
    image = Image(tmp_path, PARAMS[0], [1, 1])
    tags = [(image.data[k % 2].sealed.digest.tag(), 1) for k in range(65_535)]
    image.sealed_meta(tmp_path, PARAMS[0], tags)
    opened = image.open()
    assert len(opened.devices) == 65_535
    for k in (0, 1, 65_533, 65_534):
        assert opened.device(k).read_at(0, BLOCK) == image.data[k % 2].data
