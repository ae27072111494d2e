"""Leaf hashing against its limits and its peer: GB/s, and the ratio to `fsverity digest` in the same run.

    python benchmarks/hash_blocks.py [--size-mib 1024] [--rounds 5] [--threads 2] [--file PATH] [--json]

Without --file a file of pseudo-random bytes is made in --directory (memory-backed by default) and removed.
Everything is read once before the first measurement, so all of it is about data in page cache. The peer is
measured in every round next to what is compared with it, and each figure is the best of its rounds: other
load on the machine then disturbs single rounds, not ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from eroseal.crypto.blocks import BlockHasher
from eroseal.format.digest import HashAlgorithm, TreeParams

try:
    from eroseal.crypto import _native
except ImportError:
    _native = None

PIECE = 256 << 10  # one read and one call: fits the second-level cache
SHARE = 16 << 20  # what a thread takes at a time
CACHED = 256 << 20  # bytes to hash out of one cached piece
FALLBACK = "hashlib"


@contextmanager
def using(kernel: str) -> Iterator[None]:
    """With this native kernel, or hashlib, in use."""
    if _native is None:
        yield
        return
    before = _native.kernel_name()
    _native.set_kernel(None if kernel == FALLBACK else kernel)
    try:
        yield
    finally:
        _native.set_kernel(before)


def hash_range(fd: int, hasher: BlockHasher, offset: int, end: int) -> None:
    """Read and hash part of a file through one private buffer."""
    with memoryview(bytearray(PIECE)) as buffer:
        while offset < end:
            length = min(PIECE, end - offset)
            with buffer[:length] as piece:
                if os.preadv(fd, [piece], offset) != length:
                    raise EOFError(f"the file shrank while it was read, at byte {offset}")
                hasher.hash_blocks(piece)
            offset += length


def hash_file(path: Path, hasher: BlockHasher, pool: ThreadPoolExecutor | None) -> None:
    """Hash all whole blocks of a file, in this thread or in the pool's."""
    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size // 4096 * 4096
        if pool is None:
            hash_range(file.fileno(), hasher, 0, size)
            return
        starts = range(0, size, SHARE)
        jobs = [pool.submit(hash_range, file.fileno(), hasher, at, min(at + SHARE, size)) for at in starts]
        for job in jobs:
            job.result()


def hash_cached(hasher: BlockHasher, piece: bytes) -> None:
    """Hash the same bytes again and again: the kernel without the memory behind it."""
    for _ in range(CACHED // len(piece)):
        hasher.hash_blocks(piece)


def run_quietly(*command: str) -> None:
    """Run a peer; its output is not what is measured."""
    subprocess.run(command, check=True, capture_output=True)


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def contenders(path: Path, threads: int, pool: ThreadPoolExecutor) -> dict[str, tuple[str, int, Callable[[], None]]]:
    """What is measured: name -> (kernel, bytes, action)."""
    size = path.stat().st_size // 4096 * 4096
    piece = random.Random(1).randbytes(PIECE)
    kernels = (*(_native.kernels() if _native is not None else ()), FALLBACK)
    entries: dict[str, tuple[str, int, Callable[[], None]]] = {}
    for kernel in kernels:
        with using(kernel):
            hasher = BlockHasher(TreeParams())
        entries[f"{kernel}, cached"] = (kernel, CACHED, partial(hash_cached, hasher, piece))
        if kernel in (kernels[0], FALLBACK):
            entries[f"{kernel}, file, 1 thread"] = (
                kernel,
                size,
                partial(hash_file, path, hasher, None),
            )
            entries[f"{kernel}, file, {threads} threads"] = (
                kernel,
                size,
                partial(hash_file, path, hasher, pool),
            )
    sha512 = BlockHasher(TreeParams(HashAlgorithm.SHA512))
    entries["sha512, cached"] = (FALLBACK, CACHED, partial(hash_cached, sha512, piece))
    return entries


def measure(path: Path, *, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Best throughput of each contender in GB/s, and its ratio to the peer's best where that is installed."""
    size = path.stat().st_size
    peer = shutil.which("fsverity")
    best: dict[str, float] = {}

    def note(name: str, length: int, action: Callable[[], object]) -> None:
        best[name] = max(best.get(name, 0.0), length / seconds(action) / 1e9)

    with ThreadPoolExecutor(threads) as pool:
        entries = contenders(path, threads, pool)
        hash_file(path, BlockHasher(TreeParams()), None)  # into the page cache
        for _ in range(rounds):
            if peer:
                note("fsverity digest", size, partial(run_quietly, peer, "digest", str(path)))
            for name, (kernel, length, action) in entries.items():
                with using(kernel):
                    note(name, length, action)
    reference = best.get("fsverity digest")
    return {
        name: {"gb_per_s": rate} | ({"ratio": rate / reference} if reference else {}) for name, rate in best.items()
    }


@contextmanager
def random_file(directory: Path, size: int) -> Iterator[Path]:
    """A file of pseudo-random bytes that goes when the block ends."""
    source = random.Random(2)
    with tempfile.NamedTemporaryFile(dir=directory, prefix="hash-blocks-") as file:
        for start in range(0, size, SHARE):
            file.write(source.randbytes(min(SHARE, size - start)))
        file.flush()
        yield Path(file.name)


def main() -> int:
    """Measure and print a table, or JSON."""
    memory = Path("/dev/shm")
    parser = argparse.ArgumentParser(description="throughput of block hashing")
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--file", type=Path, help="measure on this file instead")
    parser.add_argument("--directory", type=Path, default=memory if memory.is_dir() else Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    made = nullcontext(arguments.file) if arguments.file else random_file(arguments.directory, arguments.size_mib << 20)
    with made as path:
        results = measure(path, rounds=arguments.rounds, threads=arguments.threads)
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
        print()
        return 0
    print(f"{'what':34} {'GB/s':>6} {'ratio to fsverity digest':>25}")
    for name, figures in results.items():
        ratio = f"{figures['ratio']:.2f}" if "ratio" in figures else "-"
        print(f"{name:34} {figures['gb_per_s']:6.2f} {ratio:>25}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
