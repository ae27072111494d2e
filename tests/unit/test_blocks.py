"""Block hashing: every native kernel and the fallback against hashlib, block by block."""

from __future__ import annotations

import hashlib
import mmap
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType

import pytest

from eroseal.crypto import blocks
from eroseal.crypto.blocks import BlockHasher, is_zero, native_kernel
from eroseal.errors import UsageError
from eroseal.format.digest import HashAlgorithm, TreeParams

try:
    from eroseal.crypto import _native
except ImportError:
    _native = None

BLOCK = 4096
FALLBACK = "hashlib"
KERNELS = (*(_native.kernels() if _native is not None else ()), FALLBACK)
SALTS = (b"", b"s", bytes(range(1, 33)))
RANDOM = random.Random(20221217).randbytes(41 * BLOCK)


def expected(data: bytes, params: TreeParams) -> bytes:
    """The definition: one hashlib call a block, over padded salt and block."""
    return b"".join(
        hashlib.new(params.algorithm.name_text, params.padded_salt + data[start : start + BLOCK]).digest()
        for start in range(0, len(data), BLOCK)
    )


@contextmanager
def using(kernel: str) -> Iterator[None]:
    """With this kernel chosen; the fallback is what is left when there is none."""
    if _native is None:
        assert kernel == FALLBACK
        yield
        return
    before = _native.kernel_name()
    _native.set_kernel(None if kernel == FALLBACK else kernel)
    try:
        yield
    finally:
        _native.set_kernel(before)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        assert native_kernel() == (None if request.param == FALLBACK else request.param)
        yield request.param


@pytest.fixture
def native() -> ModuleType:
    if _native is None or not _native.kernels():
        pytest.skip("no native kernel on this machine")
    return _native


@pytest.mark.parametrize("salt", SALTS)
def test_every_number_of_blocks(kernel: str, salt: bytes) -> None:
    params = TreeParams(salt=salt)
    hasher = BlockHasher(params)
    hashes = expected(RANDOM, params)
    for count in range(41):
        assert hasher.hash_blocks(RANDOM[: count * BLOCK]) == hashes[: count * 32], count


@pytest.mark.parametrize("salt", SALTS)
def test_each_lane_gets_its_own_block(kernel: str, salt: bytes) -> None:
    # A swapped pair of lanes, or one that reads its neighbour, shows on data that differs in one bit.
    params = TreeParams(salt=salt)
    data = bytearray(37 * BLOCK)
    for index in range(37):
        data[index * BLOCK + (index * 131) % BLOCK] = 1 << (index % 8)
    assert BlockHasher(params).hash_blocks(data) == expected(bytes(data), params)


def test_zeros_and_ones(kernel: str) -> None:
    params = TreeParams()
    for fill in (b"\0", b"\xff", b"\x80"):
        data = fill * (19 * BLOCK)
        assert BlockHasher(params).hash_blocks(data) == expected(data, params)


def test_known_answer(kernel: str) -> None:
    # sha256sum of 4096 zero bytes
    zero_block = "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7"
    assert BlockHasher(TreeParams()).hash_blocks(bytes(BLOCK)).hex() == zero_block


@pytest.mark.parametrize("shift", [*range(1, 18), 31, 63, 64, 65, 4095])
def test_any_alignment(kernel: str, shift: int) -> None:
    view = memoryview(RANDOM)[shift : shift + 23 * BLOCK]
    assert BlockHasher(TreeParams()).hash_blocks(view) == expected(bytes(view), TreeParams())


def test_kinds_of_buffers(kernel: str) -> None:
    data = RANDOM[: 21 * BLOCK]
    hasher = BlockHasher(TreeParams())
    hashes = expected(data, TreeParams())
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        assert hasher.hash_blocks(mapped) == hashes
    assert hasher.hash_blocks(bytearray(data)) == hashes
    assert hasher.hash_blocks(memoryview(data)) == hashes
    assert hasher.hash_blocks(memoryview(bytearray(data)).cast("I")) == hashes


def test_last_byte_before_an_unmapped_page(kernel: str) -> None:
    # Kernels that read ahead, or a lane too many, would run off the end of a mapping.
    length = 5 * BLOCK
    with mmap.mmap(-1, 64 * BLOCK) as mapped:
        mapped[-length:] = RANDOM[:length]
        with memoryview(mapped) as view, view[-length:] as tail:
            hashes = BlockHasher(TreeParams()).hash_blocks(tail)
    assert hashes == expected(RANDOM[:length], TreeParams())


def test_threads_share_a_hasher(kernel: str) -> None:
    hasher = BlockHasher(TreeParams(salt=b"shared"))
    pieces = [RANDOM[start * BLOCK : (start + 17) * BLOCK] for start in range(24)] * 4
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(hasher.hash_blocks, pieces))
    assert hashes == [expected(piece, hasher.params) for piece in pieces]


@pytest.mark.parametrize("length", [1, 31, 4095, 4097, 3 * BLOCK - 1])
def test_wrong_lengths(kernel: str, length: int) -> None:
    with pytest.raises(UsageError, match="4096"):
        BlockHasher(TreeParams()).hash_blocks(bytes(length))


@pytest.mark.parametrize("salt", SALTS)
def test_sha512(salt: bytes) -> None:
    params = TreeParams(HashAlgorithm.SHA512, salt)
    hasher = BlockHasher(params)
    data = RANDOM[: 5 * BLOCK]
    assert hasher.digest_size == 64
    assert hasher.hash_blocks(data) == expected(data, params)
    assert hasher.hash(b"abc") == hashlib.sha512(b"abc").digest()


def test_plain_hash_has_no_salt(kernel: str) -> None:
    hasher = BlockHasher(TreeParams(salt=b"salt"))
    assert hasher.digest_size == 32
    for length in (0, 1, 256, 8192):
        assert hasher.hash(RANDOM[:length]) == hashlib.sha256(RANDOM[:length]).digest()


def test_out_is_filled_and_returned(native: ModuleType) -> None:
    for count in (0, 1, 16, 23):
        data = RANDOM[: count * BLOCK]
        out = bytearray(32 * count)
        assert native.sha256_blocks(data, out=out) is out
        assert out == expected(data, TreeParams())


def test_native_core_refuses_what_it_cannot_hash(native: ModuleType) -> None:
    data = bytearray(2 * BLOCK)
    with pytest.raises(ValueError, match="multiple of 4096"):
        native.sha256_blocks(bytes(100))
    for salt in (b"s", bytes(63), bytes(65), bytes(128)):
        with pytest.raises(ValueError, match="padded to 64"):
            native.sha256_blocks(data, salt)
    for size in (0, 63, 65):
        with pytest.raises(ValueError, match="32 bytes a block"):
            native.sha256_blocks(data, out=bytearray(size))
    with pytest.raises(ValueError, match="overlap"):
        native.sha256_blocks(data, out=memoryview(data)[BLOCK : BLOCK + 64])
    with pytest.raises(BufferError):
        native.sha256_blocks(memoryview(bytes(4 * BLOCK))[::2])
    with pytest.raises(BufferError):
        native.sha256_blocks(data, out=bytes(64))
    with pytest.raises(TypeError):
        native.sha256_blocks("text")
    data.append(0)  # no failure left a buffer exported


def test_choosing_a_kernel(native: ModuleType) -> None:
    assert native.kernel_name() == native.kernels()[0]
    for wrong in ("", "avx1024", 7):
        with pytest.raises(ValueError, match="not a kernel"):
            native.set_kernel(wrong)
    with using(FALLBACK):
        assert native.kernel_name() is None
        with pytest.raises(RuntimeError, match="no kernel"):
            native.sha256_blocks(bytes(BLOCK))


def test_other_threads_run_meanwhile(native: ModuleType) -> None:
    # 64 MiB take tens of milliseconds: a thread that ticks must get on in that time.
    data = bytes(64 << 20)
    done = threading.Event()
    ticks = 0

    def hash_it() -> None:
        native.sha256_blocks(data)
        done.set()

    thread = threading.Thread(target=hash_it)
    thread.start()
    while not done.wait(0.0005):
        ticks += 1
    thread.join()
    assert ticks >= 3


@pytest.fixture(params=["native", "python"])
def zero_check(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(blocks, "_core", None)
    elif _native is None:
        pytest.skip("the native core is not built")


@pytest.mark.usefixtures("zero_check")
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 128, 4095, 4096, 4097, 65535, 65536, 65537, 200000])
def test_is_zero(length: int) -> None:
    data = bytearray(length)
    assert is_zero(data)
    assert is_zero(memoryview(data))
    for position in {0, 1, length // 2, length - 65, length - 64, length - 1} & set(range(length)):
        data[position] = 1
        assert not is_zero(data), position
        data[position] = 0
    assert is_zero(bytes(data))


@pytest.mark.usefixtures("zero_check")
def test_is_zero_inside_a_mapping() -> None:
    with mmap.mmap(-1, 32 * BLOCK) as mapped:
        assert is_zero(mapped)
        mapped[-1] = 0x80
        assert not is_zero(mapped)
        with memoryview(mapped) as view, view[: 31 * BLOCK] as front:
            assert is_zero(front)


def test_without_the_native_core() -> None:
    # As where it was not built, or failed its self-test: its import raises, and all still works.
    program = (
        "import hashlib, sys\n"
        "sys.modules['eroseal.crypto._native'] = None\n"
        "from eroseal.crypto.blocks import BlockHasher, is_zero, native_kernel\n"
        "from eroseal.format.digest import TreeParams\n"
        "data = bytes(range(256)) * 48\n"
        "blocks = [data[i : i + 4096] for i in range(0, len(data), 4096)]\n"
        "assert native_kernel() is None\n"
        "assert is_zero(bytes(5000)) and not is_zero(data)\n"
        "assert BlockHasher(TreeParams()).hash_blocks(data) == b''.join("
        "hashlib.sha256(block).digest() for block in blocks)\n"
        "print('hashed')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("hashed\n", "")
