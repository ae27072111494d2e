"""Images that mkfs.erofs made, sealed: in place and to new files, and what is refused on the way."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.kernel import mounted, tmpfs
from tests.unit.sealing import PARAM_IDS, PARAMS

from eroseal.errors import (
    ErosealError,
    FormatError,
    NotFoundError,
    OutputError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.erofs import SUPER_OFFSET, Superblock, superblock_checksum
from eroseal.format.sealed import encode_seal
from eroseal.image.reader import ImageReader
from eroseal.readat import FileAt
from eroseal.seal.foreign import SealedImage, seal_image
from eroseal.trust.image import open_image, open_self_consistent
from eroseal.trust.policy import Policy
from eroseal.trust.scan import scan_blob

Require = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Made:
    """An image that mkfs.erofs made, with its data blobs."""

    path: Path
    devices: list[Path]
    contents: dict[bytes, bytes]

    def snapshot(self) -> dict[str, bytes]:
        """Every file of the directory, so that leftovers show."""
        return {item.name: item.read_bytes() for item in self.path.parent.iterdir() if item.is_file()}

    def seal(self, **options: object) -> SealedImage:
        return seal_image(self.path, devices=self.devices, **options)  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    (place / "sub").mkdir(parents=True)
    content = random.Random(7)
    for number, size in enumerate([0, 1, 100, 4096, 5000, 70_000, 300_000]):
        (place / "sub" / f"file{number}").write_bytes(content.randbytes(size))
    (place / "zeros").write_bytes(bytes(200_000))
    (place / "text").write_bytes(b"compressible " * 20_000)
    (place / "link").symlink_to("sub/file3")
    return place


@pytest.fixture
def make(require_peer: Require, tmp_path: Path, source: Path) -> Callable[..., Made]:
    def run(*options: str, blobdev: bool = False) -> Made:
        place = tmp_path / "images"
        place.mkdir(exist_ok=True)
        image, blob = place / "image.erofs", place / "data.bin"
        extra = [f"--blobdev={blob}", "--chunksize=4096"] if blobdev else []
        # Version 1.5 makes no blocks smaller than a page.
        mkfs = "mkfs.erofs>=1.9" if {"-b512", "-b1024"} & {*options} else "mkfs.erofs"
        command = [require_peer(mkfs), "--quiet", *options, *extra, str(image), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        contents = {
            os.fsencode(item.relative_to(source)): item.read_bytes()
            for item in source.rglob("*")
            if item.is_file() and not item.is_symlink()
        }
        return Made(image, [blob] if blobdev else [], contents)

    return run


def check_sealed(image: Path, devices: list[Path], sealed: SealedImage, contents: dict[bytes, bytes]) -> None:
    """The files verify under the digest alone, and give back what was put in."""
    paths = {blob.digest: path for blob, path in zip(sealed.devices, devices, strict=True)}
    policy = Policy(digests=(sealed.meta.digest,), time=0)
    with FileAt(image) as meta:
        opened = open_image(meta, policy=policy, open_data=lambda digest: FileAt(paths[digest]))
        reader = ImageReader(opened)
        assert scan_blob(meta, opened.meta) == []
        for k, path in enumerate(devices):
            with FileAt(path) as data:
                assert scan_blob(data, opened.device(k)) == []
        if not sealed.compressed:
            found = {path: reader.read(inode, 0, inode.size) for path, inode in reader.walk() if inode.is_regular}
            assert found == contents
        opened.close()


@pytest.mark.parametrize("options", [[], ["-b512"], ["-b1024"], ["-zlz4"], ["-C65536", "-zlz4"], ["-T0"]], ids=" ".join)
@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
def test_any_image_is_sealed_in_place(make: Callable[..., Made], options: list[str], params: TreeParams) -> None:
    made = make(*options)
    before = made.path.read_bytes()
    sealed = made.seal(params=params)
    after = made.path.read_bytes()
    padded = before + bytes(-len(before) % BLOCK)
    assert after[: len(padded)] == padded
    assert sealed.meta.descriptor.data_size == len(padded)
    assert sealed.meta.size == len(after)
    assert (sealed.compressed > 0) == any("-z" in option for option in options)
    check_sealed(made.path, [], sealed, made.contents)


def test_512_byte_blocks_need_padding(make: Callable[..., Made]) -> None:
    made = make("-b512")
    # Whatever mkfs.erofs made, force a length that is no multiple of 4096.
    size = made.path.stat().st_size
    if size % BLOCK == 0:
        os.truncate(made.path, size + 512)
    sealed = made.seal()
    assert sealed.meta.descriptor.data_size == made.path.stat().st_size // BLOCK * BLOCK - (
        sealed.meta.size - sealed.meta.descriptor.data_size
    )
    check_sealed(made.path, [], sealed, made.contents)


def test_fsck_and_veritysetup_accept_what_was_sealed(require_peer: Require, make: Callable[..., Made]) -> None:
    made = make("-zlz4")
    sealed = made.seal()
    fsck = subprocess.run([require_peer("fsck.erofs"), made.path], check=False, capture_output=True)
    assert fsck.returncode == 0, fsck.stderr
    command = [require_peer("veritysetup"), "verify", made.path, made.path, sealed.meta.root_hash.hex()]
    command.append(f"--hash-offset={sealed.meta.descriptor.data_size}")
    verity = subprocess.run(command, check=False, capture_output=True)
    assert verity.returncode == 0, verity.stderr


def test_a_new_file_appears_and_the_source_stays(make: Callable[..., Made], tmp_path: Path) -> None:
    made = make()
    made.path.chmod(0o640)
    before = made.snapshot()
    output = tmp_path / "out" / "sealed.erofs"
    output.parent.mkdir()
    sealed = made.seal(output=output)
    assert made.snapshot() == before
    assert os.listdir(output.parent) == ["sealed.erofs"]
    assert output.stat().st_mode & 0o777 == 0o640
    check_sealed(output, [], sealed, made.contents)
    # In place gives the same bytes.
    made.seal()
    assert made.path.read_bytes() == output.read_bytes()


# --- several devices ---


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
@pytest.mark.parametrize("options", [[], ["-b512"]], ids=["4096", "512"])
def test_a_data_blob_is_named_when_asked(make: Callable[..., Made], params: TreeParams, options: list[str]) -> None:
    made = make(*options, blobdev=True)
    sealed = made.seal(rewrite_tags=True, params=params)
    assert sealed.rewritten == 1
    check_sealed(made.path, made.devices, sealed, made.contents)
    data = made.path.read_bytes()
    superblock = Superblock.parse(data[SUPER_OFFSET : SUPER_OFFSET + 128])
    assert superblock.checksum == superblock_checksum(data[: SUPER_OFFSET + 4096], superblock.blkszbits)


def test_the_kernel_mounts_what_was_rewritten(
    need_kernel_erofs: None, make: Callable[..., Made], tmp_path: Path
) -> None:
    made = make(blobdev=True)
    made.seal(rewrite_tags=True)
    with mounted(made.path, made.devices, tmp_path / "mountpoint") as place:
        found = {name: (place / os.fsdecode(name)).read_bytes() for name in made.contents}
    assert found == made.contents


def test_without_being_asked_a_multi_device_image_is_refused(make: Callable[..., Made]) -> None:
    made = make(blobdev=True)
    before = made.snapshot()
    with pytest.raises(UnsupportedError, match="device slot 1 does not name") as caught:
        made.seal()
    assert "--rewrite-tags" in str(caught.value)
    assert made.snapshot() == before


def test_tags_that_are_right_need_no_rewriting(make: Callable[..., Made], tmp_path: Path) -> None:
    made = make(blobdev=True)
    raw = {path: path.read_bytes() for path in made.devices}
    first = made.seal(rewrite_tags=True)
    # The same image, tags and all, but without any seal.
    os.truncate(made.path, first.meta.descriptor.data_size)
    for path, data in raw.items():
        path.write_bytes(data)
    again = made.seal()
    assert again.rewritten == 0
    assert (again.meta, again.devices) == (first.meta, first.devices)
    # And with data blobs that are sealed already, which stay as they are.
    os.truncate(made.path, first.meta.descriptor.data_size)
    before = made.devices[0].read_bytes()
    assert made.seal().meta == first.meta
    assert made.devices[0].read_bytes() == before
    # And the tag of another blob is refused, and put back.
    os.truncate(made.path, first.meta.descriptor.data_size)
    changed = bytearray(raw[made.devices[0]])
    changed[0] ^= 1
    made.devices[0].write_bytes(changed)
    before_all = made.snapshot()
    with pytest.raises(UnsupportedError, match="device slot 1 does not name"):
        made.seal()
    assert made.snapshot() == before_all


def test_all_blobs_use_one_algorithm_and_salt(make: Callable[..., Made]) -> None:
    made = make(blobdev=True)
    first = made.seal(rewrite_tags=True)
    os.truncate(made.path, first.meta.descriptor.data_size)
    with pytest.raises(UnsupportedError, match="another hash algorithm or salt"):
        made.seal(params=TreeParams(salt=b"x"))


def test_data_blobs_must_be_given(make: Callable[..., Made]) -> None:
    made = make(blobdev=True)
    before = made.snapshot()
    with pytest.raises(NotFoundError, match="image has 1 data blobs, 0 are given"):
        seal_image(made.path, rewrite_tags=True)
    with pytest.raises(NotFoundError, match="image has 1 data blobs, 2 are given"):
        seal_image(made.path, devices=made.devices * 2, rewrite_tags=True)
    assert made.snapshot() == before


def test_new_files_for_several_devices(make: Callable[..., Made], tmp_path: Path) -> None:
    made = make(blobdev=True)
    before = made.snapshot()
    output = tmp_path / "out" / "sealed.erofs"
    output.parent.mkdir()
    sealed = made.seal(output=output, rewrite_tags=True)
    assert made.snapshot() == before
    assert sorted(os.listdir(output.parent)) == ["sealed.erofs", "sealed.erofs.device1"]
    check_sealed(output, [output.parent / "sealed.erofs.device1"], sealed, made.contents)


def test_a_data_blob_that_is_too_short_is_refused(make: Callable[..., Made]) -> None:
    made = make(blobdev=True)
    os.truncate(made.devices[0], made.devices[0].stat().st_size - 2 * BLOCK)
    before = made.snapshot()
    with pytest.raises(FormatError):
        made.seal(rewrite_tags=True)
    assert made.snapshot() == before


# --- refusals ---


def test_a_sealed_image_is_refused(make: Callable[..., Made]) -> None:
    made = make()
    made.seal()
    before = made.snapshot()
    with pytest.raises(UsageError, match="is sealed already"):
        made.seal()
    assert made.snapshot() == before


def patched_superblock(path: Path, offset: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[SUPER_OFFSET + offset : SUPER_OFFSET + offset + len(value)] = value
    superblock = Superblock.parse(bytes(data[SUPER_OFFSET:]))
    checksum = superblock_checksum(data[: SUPER_OFFSET + 4096], superblock.blkszbits)
    struct.pack_into("<I", data, SUPER_OFFSET + 4, checksum)
    path.write_bytes(data)


def test_an_image_whose_extents_leave_it_is_refused(make: Callable[..., Made]) -> None:
    """Cut off inside file data: the padding that sealing adds must not become file content."""
    made = make("-Enoinline_data")
    size = made.path.stat().st_size - 2 * BLOCK
    os.truncate(made.path, size - 512)
    patched_superblock(made.path, 0x24, struct.pack("<I", size // BLOCK - 1))
    before = made.snapshot()
    with pytest.raises(ErosealError) as caught:
        made.seal()
    assert caught.value.exit_code == 3
    assert made.snapshot() == before


def test_a_superblock_that_claims_more_is_refused(make: Callable[..., Made]) -> None:
    made = make()
    patched_superblock(made.path, 0x24, struct.pack("<I", made.path.stat().st_size // BLOCK + 1))
    before = made.snapshot()
    with pytest.raises(ErosealError, match="superblock claims"):
        made.seal()
    assert made.snapshot() == before


@pytest.mark.parametrize("data", [b"", b"x", bytes(BLOCK), os.urandom(3 * BLOCK)], ids=["empty", "x", "zero", "noise"])
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(ErosealError) as caught:
        seal_image(path)
    assert caught.value.exit_code == 3
    assert path.read_bytes() == data


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        seal_image(tmp_path / "missing")
    with pytest.raises((SourceError, OutputError)):
        seal_image(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="not a regular file"):
        seal_image(tmp_path / "fifo")
    with pytest.raises(SourceError, match="not a regular file"):
        seal_image(tmp_path, output=tmp_path / "out")


def test_an_existing_output_is_not_replaced(make: Callable[..., Made], tmp_path: Path) -> None:
    made = make(blobdev=True)
    output = tmp_path / "out" / "sealed.erofs"
    output.parent.mkdir()
    for existing in ("sealed.erofs", "sealed.erofs.device1"):
        (output.parent / existing).write_bytes(b"mine")
        with pytest.raises(OutputError, match="exists already"):
            made.seal(output=output, rewrite_tags=True)
        assert os.listdir(output.parent) == [existing]
        assert (output.parent / existing).read_bytes() == b"mine"
        (output.parent / existing).unlink()


def test_an_output_that_appears_meanwhile_is_not_replaced(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data blob was already in place: it goes again, what someone else wrote stays."""
    made = make(blobdev=True)
    output = tmp_path / "out" / "sealed.erofs"
    output.parent.mkdir()
    link = os.link

    def late(source: str, target: str) -> None:
        if target.endswith(".erofs"):
            output.write_bytes(b"theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(OutputError, match="exists already"):
        made.seal(output=output, rewrite_tags=True)
    assert os.listdir(output.parent) == ["sealed.erofs"]
    assert output.read_bytes() == b"theirs"


@pytest.mark.parametrize("error", [OutputError("disk is full"), KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize("to_output", [False, True])
def test_a_failure_leaves_everything_as_it_was(
    make: Callable[..., Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    to_output: bool,
) -> None:
    """Even when data blob, device slots and checksum were already written, and the meta blob's tree half."""
    made = make(blobdev=True)
    before = made.snapshot()
    output = tmp_path / "out" / "sealed.erofs"
    output.parent.mkdir()
    calls = []

    def failing(*args: object) -> bytes:
        calls.append(args)
        if len(calls) == 2:
            raise error
        return encode_seal(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("eroseal.seal.blob.encode_seal", failing)
    with pytest.raises(type(error)):
        made.seal(rewrite_tags=True, output=output if to_output else None)
    assert len(calls) == 2
    assert made.snapshot() == before
    assert os.listdir(output.parent) == []


@pytest.fixture
def small_disk(need_root: None, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    with tmpfs(place, "size=4m"):
        yield place


@pytest.mark.parametrize("room", [0.5, 1.0])
def test_a_full_disk_leaves_nothing(make: Callable[..., Made], small_disk: Path, room: float) -> None:
    """Whether the copy does not fit, or only its seal."""
    made = make()
    size = made.path.stat().st_size
    filler = (4 << 20) - int(size * room) // BLOCK * BLOCK
    (small_disk / "filler").write_bytes(bytes(filler))
    with pytest.raises(OutputError, match="No space left"):
        made.seal(output=small_disk / "sealed")
    assert os.listdir(small_disk) == ["filler"]


def test_a_full_disk_restores_the_file_in_place(make: Callable[..., Made], small_disk: Path) -> None:
    made = make()
    path = small_disk / "image"
    shutil.copy(made.path, path)
    with (small_disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (4 << 20) - path.stat().st_size)
    with pytest.raises(OutputError, match="No space left"):
        seal_image(path)
    assert path.read_bytes() == made.path.read_bytes()


def test_a_blob_that_was_sealed_keeps_its_digest_wherever_it_lies(make: Callable[..., Made]) -> None:
    made = make()
    sealed = made.seal()
    with FileAt(made.path) as source:
        blob = open_self_consistent(source)
        assert blob.digest == sealed.meta.digest
        assert isinstance(blob.digest, Digest)
