"""The verifier's rules, one by one, and the attacks that they answer."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.sealing import PARAM_IDS, PARAMS, SHA256, SHA512, Changeable, Sample, noise, reference_tree, seal_bytes

from eroseal.errors import FormatError, IntegrityError, UsageError
from eroseal.format.chunkmap import encode_chunk_map
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.dmverity import superblock
from eroseal.format.fsverity import Descriptor
from eroseal.format.record import CHUNK_MAP, DESCRIPTOR, SEAL_MAGIC, RecordEntry, encode_record
from eroseal.format.sealed import TreeShape, encode_seal, max_record_length, record_tail
from eroseal.trust.blob import SelfConsistentBlob, UnverifiedBlob, VerifiedBlob
from eroseal.trust.image import open_blob, open_self_consistent
from eroseal.trust.verifier import (
    SealBytes,
    SealLocation,
    VerifiedSeal,
    step1_record,
    step1_record_length,
    verify_seal,
)

BLOCKS = 300  # three levels with SHA-512, two with SHA-256


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return seal_bytes(tmp_path_factory.mktemp("sample"), noise(BLOCKS), chunk_blocks=[16] * 18)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Two data blocks under one tree block."""
    return seal_bytes(tmp_path_factory.mktemp("small"), noise(2, seed=2), chunk_blocks=[1, 1])


def shape_of(sample: Sample) -> TreeShape:
    return TreeShape.of(len(sample.data), sample.sealed.descriptor.params)


def read_everything(source: Changeable, expected: Digest) -> bytes:
    blob = open_blob(source, expected)
    return blob.read_at(0, blob.size)


def refusal(source: Changeable, expected: Digest) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        read_everything(source, expected)
    assert caught.value.exit_code == 3
    assert caught.value.blob is not None
    return caught.value


def forged(descriptor: Descriptor, data: bytes, tree: bytes, chunk_map: bytes | None = None) -> Changeable:
    """A blob with any descriptor, data and tree, and with all else as it should be."""
    entries = [RecordEntry(DESCRIPTOR, descriptor.encode(), critical=True)]
    if chunk_map is not None:
        entries.append(RecordEntry(CHUNK_MAP, chunk_map))
    record = encode_record(SEAL_MAGIC, entries)
    return Changeable(data + superblock(descriptor) + tree + record + record_tail(descriptor, len(record)), "forged")


# --- what passes ---


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
@pytest.mark.parametrize("blocks", [1, 2, 64, 65, 128, 129, BLOCKS])
def test_sealed_blobs_open_and_read(tmp_path: Path, params: TreeParams, blocks: int) -> None:
    sample = seal_bytes(tmp_path, noise(blocks), params)
    blob = open_blob(sample.source(), sample.sealed.digest)
    assert isinstance(blob, VerifiedBlob)
    assert (blob.digest, blob.size, blob.params) == (sample.sealed.digest, len(sample.data), params)
    assert blob.descriptor == sample.sealed.descriptor
    assert blob.seal.sealed_size == len(sample.blob)
    assert blob.read_at(0, blob.size) == sample.data
    for offset, length in [(0, 0), (0, 1), (1, BLOCK), (BLOCK - 1, 2), (blob.size - 1, 1), (blob.size, 0)]:
        if offset + length <= blob.size:
            assert blob.read_at(offset, length) == sample.data[offset : offset + length]


def test_nothing_behind_the_data_region_is_served(sample: Sample) -> None:
    blob = open_blob(sample.source(), sample.sealed.digest)
    for offset, length in [(blob.size, 1), (0, blob.size + 1), (-1, 1), (0, -1)]:
        with pytest.raises(FormatError):
            blob.read_at(offset, length)


def test_leaf_hashes_come_without_reading_data(sample: Sample) -> None:
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    source.reads.clear()
    shape = shape_of(sample)
    leaves = sample.blob[shape.level_offset(1) :][: BLOCKS * 32]
    assert blob.read_tree_hashes(0, BLOCKS) == leaves
    assert blob.read_tree_hashes(7, 250) == leaves[7 * 32 : 257 * 32]
    assert blob.read_tree_hashes(BLOCKS, 0) == b""
    assert all(offset >= len(sample.data) for offset, _ in source.reads)
    with pytest.raises(FormatError):
        blob.read_tree_hashes(BLOCKS - 1, 2)


def test_a_tree_block_is_read_once(sample: Sample) -> None:
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    source.reads.clear()
    for block in range(128):
        blob.read_at(block * BLOCK + 5, 100)
    tree_reads = [offset for offset, _ in source.reads if offset >= len(sample.data)]
    assert tree_reads == [shape_of(sample).level_offset(1)]


def test_the_cache_of_tree_blocks_is_bounded(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eroseal.trust.blob.TREE_CACHE_BLOCKS", 1)
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    assert blob.read_at(0, blob.size) == sample.data
    source.reads.clear()
    for block in (0, 299, 0, 299):  # under different blocks of level 1
        blob.read_at(block * BLOCK, 1)
    assert len([offset for offset, _ in source.reads if offset >= len(sample.data)]) == 4


def test_a_partly_present_blob_serves_what_is_there(sample: Sample) -> None:
    source = sample.source()
    source.data[10 * BLOCK : 200 * BLOCK] = bytes(190 * BLOCK)
    blob = open_blob(source, sample.sealed.digest)
    assert blob.read_at(0, 10 * BLOCK) == sample.data[: 10 * BLOCK]
    assert blob.read_at(200 * BLOCK, 100 * BLOCK) == sample.data[200 * BLOCK :]
    with pytest.raises(IntegrityError) as caught:
        blob.read_at(9 * BLOCK, 2 * BLOCK)
    assert (caught.value.step, caught.value.level, caught.value.offset) == (5, 0, 10 * BLOCK)


# --- types ---


def test_only_the_verifier_makes_verified_things(sample: Sample) -> None:
    blob = open_self_consistent(sample.source())
    with pytest.raises(UsageError):
        VerifiedBlob(sample.source(), blob.seal)
    with pytest.raises(UsageError):
        VerifiedBlob(sample.source(), sample.sealed.descriptor)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        VerifiedSeal(
            token=object(),
            name="x",
            descriptor=sample.sealed.descriptor,
            top=b"",
            record=None,  # type: ignore[arg-type]
            expected=True,
        )


def test_a_self_consistent_blob_is_not_a_verified_one(sample: Sample) -> None:
    blob = open_self_consistent(sample.source())
    assert isinstance(blob, SelfConsistentBlob)
    assert not isinstance(blob, VerifiedBlob)
    assert not blob.seal.expected
    assert blob.digest == sample.sealed.digest
    assert blob.read_at(0, blob.size) == sample.data


def test_an_unverified_blob_keeps_to_its_size() -> None:
    blob = UnverifiedBlob(Changeable(b"0123456789", "ten"), 5)
    assert (blob.size, blob.name) == (5, "ten")
    assert blob.read_at(1, 4) == b"1234"
    with pytest.raises(FormatError):
        blob.read_at(1, 5)
    with pytest.raises(FormatError, match="truncated"):
        UnverifiedBlob(Changeable(b"0123456789"), 11)
    assert UnverifiedBlob(Changeable(b"0123456789")).size == 10


# --- step 1: records ---


def test_step_1_bounds_the_record_by_the_data_region() -> None:
    def header(length: int) -> bytes:
        body = bytes(length - 32)
        return _header_for(body)

    location = SealLocation(BLOCK, 2 * BLOCK)
    limit = max_record_length(BLOCK)
    assert step1_record_length(header(limit // 8 * 8), location, name="x") == BLOCK
    with pytest.raises(IntegrityError, match="outside 32 to") as caught:
        step1_record_length(header(limit + 8), location, name="x")
    assert caught.value.step == 1


def _header_for(body: bytes) -> bytes:
    head = struct.pack("<8sIIQI", SEAL_MAGIC, 1, 32, 32 + len(body), google_crc32c.value(body))
    return head + struct.pack("<I", google_crc32c.value(head))


def test_step_1_refuses_a_record_with_another_end(small: Sample) -> None:
    shape = shape_of(small)
    location = SealLocation(len(small.data), shape.record_offset)
    data = small.blob[shape.record_offset :]
    assert step1_record(data, location, name="x").length
    for wrong in (data[:-1], data + b"\0", data + bytes(BLOCK)):
        with pytest.raises(IntegrityError) as caught:
            step1_record(wrong, location, name="x")
        assert caught.value.step == 1


@pytest.mark.parametrize("extra", [RecordEntry(3, b"", False), RecordEntry(3, b"", True), RecordEntry(16, b"")])
def test_step_1_refuses_foreign_entries(small: Sample, extra: RecordEntry) -> None:
    descriptor = small.sealed.descriptor
    record = encode_record(SEAL_MAGIC, [RecordEntry(DESCRIPTOR, descriptor.encode(), critical=True), extra])
    data = small.blob[: shape_of(small).record_offset] + record + record_tail(descriptor, len(record))
    assert refusal(Changeable(data), small.sealed.digest).step == 1


# --- step 2: the descriptor, what is derived from it, padding ---


def test_step_2_wants_d_to_be_the_descriptors(small: Sample) -> None:
    shape = shape_of(small)
    location = SealLocation(BLOCK, shape.record_offset)
    seal = SealBytes(location, small.blob[shape.record_offset :], bytes(BLOCK), bytes(BLOCK))
    with pytest.raises(IntegrityError, match="speaks of 8192 bytes, the data region has 4096") as caught:
        verify_seal(seal, name="x")
    assert caught.value.step == 2


def test_step_2_wants_the_record_in_its_place(small: Sample) -> None:
    shape = shape_of(small)
    location = SealLocation(2 * BLOCK, shape.record_offset + BLOCK)
    seal = SealBytes(location, small.blob[shape.record_offset :], bytes(BLOCK), bytes(BLOCK))
    with pytest.raises(IntegrityError, match="not where its descriptor puts it") as caught:
        verify_seal(seal, name="x")
    assert caught.value.step == 2


def test_step_2_refuses_another_dm_verity_superblock(small: Sample) -> None:
    """Each byte of its block, padding included: tools that read it would otherwise see another tree."""
    for offset in range(len(small.data), len(small.data) + BLOCK):
        source = small.source()
        source.flip(offset)
        error = refusal(source, small.sealed.digest)
        assert (error.step, error.offset) == (2, len(small.data))


def test_step_2_refuses_padding_that_is_not_zero(small: Sample) -> None:
    record_offset = shape_of(small).record_offset
    length = 32 + 8 + 256 + 8 + 8
    for offset in range(record_offset + length, len(small.blob), 61):
        source = small.source()
        source.flip(offset)
        with pytest.raises(IntegrityError, match="padding or footer") as caught:
            open_blob(source, small.sealed.digest, data_size=len(small.data))
        assert caught.value.step == 2
        assert caught.value.offset == record_offset + length


@pytest.mark.parametrize("blocks", [2, 130])
def test_step_2_refuses_tree_padding_under_a_matching_root(blocks: int) -> None:
    """A signer could have hashed a tree with other padding; fs-verity in the kernel would never agree with it."""
    params = TreeParams()
    data = noise(blocks)
    for level in range(1, len(TreeShape.of(len(data), params).levels) + 1):
        descriptor, tree = _with_padded_tree(data, params, level)
        error = refusal(forged(descriptor, data, tree), descriptor.digest)
        assert (error.step, error.level) == (2, level)
        assert "padding of the tree is not zero" in str(error)


def _with_padded_tree(data: bytes, params: TreeParams, bad_level: int) -> tuple[Descriptor, bytes]:
    tree, level, number = b"", data, 0
    while len(level) > BLOCK:
        hashes = b"".join(reference_tree(level[at : at + BLOCK], params)[1] for at in range(0, len(level), BLOCK))
        number += 1
        padding = -len(hashes) % BLOCK
        level = hashes + (bytes(padding - 1) + b"\x01" if number == bad_level else bytes(padding))
        tree = level + tree
    return Descriptor(params, len(data), reference_tree(level, params)[1]), tree


# --- step 3: the digest ---


def test_step_3_refuses_another_blob(small: Sample, sample: Sample) -> None:
    error = refusal(sample.source("swapped"), small.sealed.digest)
    assert error.step == 3
    assert error.blob == "swapped"
    assert str(small.sealed.digest) in str(error)
    assert str(sample.sealed.digest) in str(error)


def test_step_3_refuses_the_other_algorithm(small: Sample, sample: Sample) -> None:
    assert refusal(small.source(), Digest(SHA512, bytes(64))).step == 3
    # Trees of different sizes, so there is no record where one of SHA-512 would have it; the one that is there tells.
    error = refusal(sample.source(), Digest(SHA512, bytes(64)))
    assert error.step == 3
    assert str(sample.sealed.digest) in str(error)


def test_step_3_changed_salt(small: Sample) -> None:
    """The salt is in the descriptor: the same tree under another salt is another blob."""
    descriptor = replace(small.sealed.descriptor, params=TreeParams(SHA256, b"other"))
    shape = shape_of(small)
    source = forged(descriptor, small.data, small.blob[shape.offset : shape.record_offset])
    assert refusal(source, small.sealed.digest).step == 3
    assert refusal(source, descriptor.digest).step == 4


def test_step_3_asks_whoever_vouches_before_the_tree_is_looked_at(small: Sample) -> None:
    shape = shape_of(small)
    seal = SealBytes(
        SealLocation(len(small.data), shape.record_offset),
        small.blob[shape.record_offset :],
        small.blob[shape.data_size : shape.offset],
        bytes(BLOCK),
    )
    asked: list[Digest] = []
    with pytest.raises(IntegrityError) as caught:
        verify_seal(seal, name="x", vouch=asked.append)
    assert caught.value.step == 4
    assert asked == [small.sealed.digest]


# --- steps 4 and 5: the tree and the data ---


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
def test_each_level_is_checked_against_its_parent(tmp_path: Path, params: TreeParams) -> None:
    sample = seal_bytes(tmp_path, noise(BLOCKS), params)
    shape = shape_of(sample)
    top = len(shape.levels)
    for level in range(top + 1):
        count = shape.levels[level - 1] if level else BLOCKS
        for block in {0, count // 2, count - 1}:
            source = sample.source()
            offset = (shape.level_offset(level) if level else 0) + block * BLOCK
            source.flip(offset + 3, 7)
            error = refusal(source, sample.sealed.digest)
            assert (error.step, error.level) == (4 if level == top else 5, level)
            assert error.offset == offset
            assert f"at byte {offset}" in str(error)


def test_the_lowest_bad_block_of_a_read_is_named(sample: Sample) -> None:
    source = sample.source()
    source.flip(290 * BLOCK)
    source.flip(20 * BLOCK)
    source.flip(21 * BLOCK)
    assert refusal(source, sample.sealed.digest).offset == 20 * BLOCK


def test_bytes_that_change_after_opening_are_refused(sample: Sample) -> None:
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    source.flip(5 * BLOCK)
    with pytest.raises(IntegrityError, match="data block does not match"):
        blob.read_at(5 * BLOCK, 1)
    source.flip(5 * BLOCK)
    assert blob.read_at(5 * BLOCK, 1) == sample.data[5 * BLOCK : 5 * BLOCK + 1]
    source.flip(shape_of(sample).level_offset(1) + BLOCK)  # the parent of the second 128 blocks
    blob.read_at(6 * BLOCK, 1)
    with pytest.raises(IntegrityError, match="tree block of level 1"):
        blob.read_at(128 * BLOCK, 1)


def test_a_refused_tree_block_is_not_kept(sample: Sample) -> None:
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    at = shape_of(sample).level_offset(1)
    source.flip(at)
    for _ in range(2):
        with pytest.raises(IntegrityError):
            blob.read_at(0, 1)
    source.flip(at)
    assert blob.read_at(0, 1) == sample.data[:1]


def test_swapped_blocks_are_refused(sample: Sample) -> None:
    shape = shape_of(sample)
    for first, second, level in [(3, 4, 0), (0, 299, 0)]:
        source = sample.source()
        one, two = slice(first * BLOCK, (first + 1) * BLOCK), slice(second * BLOCK, (second + 1) * BLOCK)
        source.data[one], source.data[two] = source.data[two], source.data[one]
        error = refusal(source, sample.sealed.digest)
        assert (error.step, error.level, error.offset) == (5, level, first * BLOCK)
    source = sample.source()
    at = shape.level_offset(1)
    source.data[at : at + 2 * BLOCK] = source.data[at + BLOCK : at + 2 * BLOCK] + source.data[at : at + BLOCK]
    error = refusal(source, sample.sealed.digest)
    assert (error.step, error.level, error.offset) == (5, 1, at)


def test_swapped_blocks_and_swapped_hashes_are_refused(sample: Sample) -> None:
    source = sample.source()
    at = shape_of(sample).level_offset(1)
    source.data[: 2 * BLOCK] = source.data[BLOCK : 2 * BLOCK] + source.data[:BLOCK]
    source.data[at : at + 64] = source.data[at + 32 : at + 64] + source.data[at : at + 32]
    assert refusal(source, sample.sealed.digest).level == 1


# --- the attacks of the specification ---


def test_a_top_tree_block_is_no_one_block_blob_under_the_same_root(sample: Sample) -> None:
    """The dm-verity root binds no length: the top block of the tree hashes to it as a one-block blob would."""
    shape = shape_of(sample)
    top = sample.blob[shape.offset : shape.offset + BLOCK]
    descriptor = Descriptor(TreeParams(), BLOCK, sample.sealed.root_hash)
    fake = forged(descriptor, top, b"")
    # It does agree with itself, and has the very root hash of the real blob...
    assert open_self_consistent(fake).read_at(0, BLOCK) == top
    assert open_self_consistent(fake).descriptor.root_hash == sample.sealed.root_hash
    # ...but its digest, which binds the length, is another.
    assert refusal(fake, sample.sealed.digest).step == 3


def test_a_level_is_no_data_region(sample: Sample) -> None:
    """Level 1 of the tree, presented as the data of a smaller blob, with the levels above it as its tree."""
    shape = shape_of(sample)
    level1 = sample.blob[shape.level_offset(1) : shape.record_offset]
    upper = sample.blob[shape.offset : shape.level_offset(1)]
    descriptor = Descriptor(TreeParams(), len(level1), sample.sealed.root_hash)
    fake = forged(descriptor, level1, upper)
    assert open_self_consistent(fake).read_at(0, len(level1)) == level1
    assert refusal(fake, sample.sealed.digest).step == 3


def test_the_true_descriptor_on_a_shorter_region_is_refused(sample: Sample) -> None:
    """Descriptor and digest are right, but the blob holds the tree's top block as its data."""
    shape = shape_of(sample)
    top = sample.blob[shape.offset : shape.offset + BLOCK]
    source = forged(sample.sealed.descriptor, top, b"")
    with pytest.raises(IntegrityError) as caught:
        open_blob(source, sample.sealed.digest, data_size=BLOCK)
    assert caught.value.step == 2


@pytest.mark.parametrize("trailer", [b"\0", b"x" * 100, bytes(BLOCK), b"EROSEALF" * 8, bytes(3 * BLOCK)])
def test_bytes_after_the_records_change_nothing(sample: Sample, trailer: bytes) -> None:
    source = Changeable(sample.blob + trailer)
    assert read_everything(source, sample.sealed.digest) == sample.data
    assert open_blob(source, sample.sealed.digest).seal.sealed_size == len(sample.blob)


def test_bytes_inserted_before_the_end_are_refused(sample: Sample) -> None:
    shape = shape_of(sample)
    for at in (0, BLOCK, shape.data_size, shape.offset, shape.record_offset, len(sample.blob) - 64):
        data = sample.blob[:at] + bytes(BLOCK) + sample.blob[at:]
        refusal(Changeable(data), sample.sealed.digest)
        with pytest.raises(IntegrityError):
            blob = open_blob(Changeable(data), sample.sealed.digest, data_size=shape.data_size)
            blob.read_at(0, blob.size)


@pytest.mark.parametrize("known_size", [False, True])
def test_a_blob_truncated_anywhere_is_refused(sample: Sample, known_size: bool) -> None:
    shape = shape_of(sample)
    ends = {
        0,
        1,
        BLOCK,
        shape.data_size - 1,
        shape.data_size,
        shape.offset,
        *(shape.level_offset(level) for level in (1, 2)),
        shape.record_offset,
        shape.record_offset + 31,
        shape.record_offset + 32,
        shape.record_offset + 200,
        len(sample.blob) - BLOCK,
        len(sample.blob) - 64,
        len(sample.blob) - 1,
    }
    for end in sorted(ends):
        source = Changeable(sample.blob[:end])
        with pytest.raises(IntegrityError) as caught:
            open_blob(source, sample.sealed.digest, data_size=shape.data_size if known_size else None)
        assert caught.value.step == 1, end
        assert caught.value.blob == "test blob"


def test_a_source_that_gives_too_little_is_refused(sample: Sample) -> None:
    class Short(Changeable):
        def read_at(self, offset: int, length: int) -> bytes:
            data = super().read_at(offset, length)
            return data[:-1] if offset == 7 * BLOCK else data

    blob = open_blob(Short(sample.blob), sample.sealed.digest)
    assert blob.read_at(6 * BLOCK, BLOCK) == sample.data[6 * BLOCK : 7 * BLOCK]
    with pytest.raises(IntegrityError, match="truncated: 4095 of 4096 bytes"):
        blob.read_at(7 * BLOCK, 1)


# --- what carries no authority ---


def test_a_chunk_map_that_lies_changes_nothing_but_itself(sample: Sample) -> None:
    """Nothing authenticates it: with its checksum made right, any map passes, and all that is read stays true."""
    shape = shape_of(sample)
    tree = sample.blob[shape.offset : shape.record_offset]
    honest = open_blob(sample.source(), sample.sealed.digest)
    assert honest.chunk_map == encode_chunk_map([16] * 18)
    for lie in (None, b"", b"not a chunk map", encode_chunk_map([BLOCKS])):
        blob = open_blob(forged(sample.sealed.descriptor, sample.data, tree, lie), sample.sealed.digest)
        assert blob.chunk_map == lie
        assert blob.digest == honest.digest
        assert blob.read_at(0, blob.size) == sample.data
        assert blob.read_tree_hashes(0, BLOCKS) == honest.read_tree_hashes(0, BLOCKS)


def test_every_flipped_bit_is_refused(small: Sample) -> None:
    """Under a pinned digest no single bit of a sealed blob can change, not even where nothing has authority.

    (The chunk map and what counts its bytes are guarded by checksums alone, against accidents: see above.) All bits of
    what has structure; of the hashed blocks, whose bits are all alike to a hash, one in each byte.
    """
    shape = shape_of(small)
    structured = set(range(shape.data_size, shape.data_size + 512)) | set(range(shape.record_offset, len(small.blob)))
    source = small.source()
    passed = []
    for offset in range(len(small.blob)):
        for bit in range(8) if offset in structured else (offset % 8,):
            source.flip(offset, bit)
            try:
                blob = open_blob(source, small.sealed.digest)
                blob.read_at(0, blob.size)
            except IntegrityError:
                pass
            else:
                passed.append((offset, bit))
            source.flip(offset, bit)
    assert passed == []
    assert read_everything(source, small.sealed.digest) == small.data


@given(st.data())
def test_a_mutated_blob_is_refused_or_reads_the_same(sample: Sample, data: st.DataObject) -> None:
    """Bytes cut out, put in, overwritten, moved: an IntegrityError, or the true data, and nothing else."""
    blob = bytearray(sample.blob)
    for _ in range(data.draw(st.integers(1, 3))):
        # Near the seal more often than in the data, whose every block is treated alike.
        at = data.draw(st.integers(0, len(blob)) | st.integers(max(0, len(blob) - 6 * BLOCK), len(blob)))
        removed = data.draw(st.sampled_from([0, 1, 8, 64, 512, BLOCK, 2 * BLOCK]))
        inserted = data.draw(st.binary(max_size=64) | st.sampled_from([bytes(BLOCK), bytes(blob[:BLOCK])]))
        blob[at : at + removed] = inserted
    source = Changeable(blob)
    for size in (None, len(sample.data)):
        try:
            opened = open_blob(source, sample.sealed.digest, data_size=size)
            found = opened.read_at(0, opened.size)
        except IntegrityError as error:
            assert 1 <= error.step <= 5
        else:
            assert found == sample.data


def test_the_seal_of_this_test_is_the_canonical_one(small: Sample) -> None:
    descriptor = small.sealed.descriptor
    assert small.blob.endswith(encode_seal(descriptor, [1, 1]))
