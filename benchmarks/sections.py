"""The measurements, one function each: what is compared with what, and which ratio is held against which target."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import inputs
import ours
from harness import Contender, Section, Target, Timing, measure, peer, peer_version, remove, run_quietly
from hash_blocks import random_file
from inputs import Sizes
from layered import LayeredImage
from memory import KIB, peak_memory

from eroseal.build.options import BlobLayout, BuildResult
from eroseal.format.digest import Digest
from eroseal.store.local import LocalStore

MIB = 1 << 20
TREE_SHARE = 1.008  # a Merkle tree of SHA-256 over 4 KiB blocks takes 1/128 of the data, and a little

THROUGHPUT = ("what", "s", "GB/s", "ratio to fsverity digest")
BUILDS = ("what", "wall s", "user+sys s", "ratio to mkfs plain", "ratio to mkfs chunked")


@dataclass(slots=True)
class Bench:
    """What sections share: places, sizes, and what earlier ones left.

    Args:
        disk: directory on a disk file system.
        memory: directory on tmpfs if there is one with room; nothing is synced there, whoever asks for it.
        sizes: how much is measured.
        cache: directory that keeps what is fetched, and the container image; None means that they go with the rest.
        image: the container image, once it is made.
    """

    disk: Path
    memory: Path
    sizes: Sizes
    cache: Path | None = None
    image: LayeredImage | None = None
    peers: dict[str, str] = field(default_factory=dict)
    files: int = 0

    def peer(self, name: str) -> Path | None:
        """A peer's program, whose version the report then names."""
        program = peer(name)
        self.peers[name] = peer_version(program) if program else "not there"
        return program

    @property
    def tree(self) -> Path:
        return self.disk / "tree"

    @property
    def store(self) -> Path:
        return self.disk / "store"


# --- one large region: seal, hash, verify ---


@contextmanager
def region_image(bench: Bench) -> Iterator[tuple[Path, Digest, int]]:
    """A single sealed file with one file of random bytes in it: (path, digest, D)."""
    source, image = bench.memory / "region", bench.memory / "region.erofs"
    source.mkdir()
    try:
        with random_file(source, bench.sizes.region):
            result = ours.build_image(source, str(image), blobs=BlobLayout.NONE)
        yield image, result.image, result.blobs[0].data_size
    finally:
        remove(source, image)


def sealing_and_verifying(bench: Bench) -> list[Section]:
    """Both on the same bytes."""
    with region_image(bench) as (image, digest, data_size):
        return [sealing(bench, image, digest, data_size), verifying(bench, image, digest, data_size)]


def sealing(bench: Bench, image: Path, digest: Digest, data_size: int) -> Section:
    """Sealing in place against the tools that compute the same tree."""
    bare, tree = bench.memory / "bare.erofs", bench.memory / "tree.verity"
    shutil.copyfile(image, bare)
    unseal = partial(os.truncate, bare, data_size)
    contenders = [Contender("seal in place, library", lambda: check_digest(ours.seal(bare, data_size), digest), unseal)]
    if ours.has_command("seal"):
        contenders.append(
            Contender("eroseal seal", partial(run_quietly, *ours.command("seal", "--no-sync", bare)), unseal)
        )
    if fsverity := bench.peer("fsverity"):
        contenders.append(Contender("fsverity digest", partial(run_quietly, fsverity, "digest", bare), unseal))
    if veritysetup := bench.peer("veritysetup"):
        action = partial(run_quietly, veritysetup, "format", "--salt=-", bare, tree)
        contenders.append(Contender("veritysetup format", action, unseal))
    try:
        timings = measure(contenders, rounds=bench.sizes.rounds)
    finally:
        remove(bare, tree)
    section = throughput_section(f"Sealing {data_size / MIB:,.0f} MiB in page cache", timings, data_size)
    reference = timings.get("fsverity digest")
    if reference:
        for name in ("seal in place, library", "eroseal seal"):
            if name in timings:
                ratio = reference.wall / timings[name].wall
                section.targets.append(Target(f"throughput of {name} / fsverity digest", ratio, 1.8, at_least=True))
    section.remarks.append("`fsverity digest` and `veritysetup format` write no seal; the former writes nothing at all")
    return section


def verifying(bench: Bench, image: Path, digest: Digest, data_size: int) -> Section:
    """Verifying every block and the structure against hashing alone."""
    contenders = [
        Contender("hash, keep nothing", partial(ours.hash_only, image, data_size)),
        Contender("verify, library", partial(ours.verify, str(image), digest)),
    ]
    if ours.has_command("verify"):
        action = partial(run_quietly, *ours.command("verify", "--digest", str(digest), image))
        contenders.append(Contender("eroseal verify", action))
    if fsverity := bench.peer("fsverity"):
        contenders.append(Contender("fsverity digest", partial(run_quietly, fsverity, "digest", image)))
    # Fractions of a second: more rounds cost nothing, and the target leaves no room for a disturbed one.
    timings = measure(contenders, rounds=2 * bench.sizes.rounds)
    section = throughput_section(f"Verifying {data_size / MIB:,.0f} MiB in page cache", timings, data_size)
    ratio = timings["verify, library"].wall / timings["hash, keep nothing"].wall
    section.targets.append(Target("time of verify / hashing the same image", ratio, 1.1))
    section.remarks.append("`eroseal verify` is a whole command, start of the interpreter included")
    return section


def check_digest(found: Digest, expected: Digest) -> None:
    """What was measured also has to be right."""
    if found != expected:
        raise SystemExit(f"sealing gave {found}, not {expected}")


def throughput_section(title: str, timings: dict[str, Timing], size: int) -> Section:
    """Seconds, GB/s and the ratio of throughputs."""
    section = Section(title, THROUGHPUT, timings=timings)
    reference = timings.get("fsverity digest")
    for name, timing in timings.items():
        ratio = f"{reference.wall / timing.wall:.2f}" if reference else "-"
        section.rows.append((name, f"{timing.wall:.3f}", f"{size / timing.wall / 1e9:.2f}", ratio))
    return section


# --- builds ---


def tree_contenders(bench: Bench, source: Path, *, chunked: bool) -> list[Contender]:
    """Builds of one directory: ours and mkfs.erofs's, each of which removes what the last one made."""
    store, meta, blob, plain = (bench.disk / name for name in ("store", "meta.erofs", "blob.erofs", "plain.erofs"))
    clear = partial(remove, store, meta, blob, plain)
    reference = f"dir:{store}:bench"
    contenders = [Contender("build, library", partial(ours.build_image, source, reference), clear)]
    if ours.has_command("build"):
        action = partial(run_quietly, *ours.build_command(source, reference))
        contenders.append(Contender("eroseal build --no-sync", action, clear))
    if mkfs := bench.peer("mkfs.erofs"):
        contenders.append(Contender("mkfs.erofs", partial(run_quietly, mkfs, "--quiet", plain, source), clear))
        if chunked:
            action = partial(run_quietly, mkfs, "--quiet", "--chunksize=65536", f"--blobdev={blob}", meta, source)
            contenders.append(Contender("mkfs.erofs --chunksize=65536 --blobdev", action, clear))
    return contenders


def building(bench: Bench) -> list[Section]:
    """A real tree, with a data blob, sealed; then its size, a build on a base, and unpacking."""
    inputs.copy_tree(bench.sizes.tree, bench.tree)
    bench.files = inputs.count_files(bench.tree)
    contenders = tree_contenders(bench, bench.tree, chunked=True)
    timings = measure(contenders, rounds=bench.sizes.rounds)
    section = build_section(f"Building {bench.sizes.tree} ({bench.files:,} files)", timings)
    for peer_name, limit in (("mkfs.erofs --chunksize=65536 --blobdev", 0.8), ("mkfs.erofs", 1.2)):
        if peer_name in timings:
            for name in ("build, library", "eroseal build --no-sync"):
                if name in timings:
                    ratio = timings[name].wall / timings[peer_name].wall
                    section.targets.append(Target(f"wall time of {name} / {peer_name}", ratio, limit))
    section.remarks.append("ours writes trees and seals and a chunk map as well; mkfs.erofs seals nothing")
    section.remarks.append("mkfs.erofs never syncs; ours runs with `--no-sync`")
    remove(bench.store)
    result = ours.build_image(bench.tree, f"dir:{bench.store}:base")
    plain = bench.disk / "plain.erofs"
    if mkfs := bench.peer("mkfs.erofs"):
        run_quietly(mkfs, "--quiet", plain, bench.tree)
    sections = [section, sizes(bench, result, plain), unpacking(bench, result, plain), incremental(bench)]
    remove(bench.store, plain)
    return sections


def build_section(title: str, timings: dict[str, Timing]) -> Section:
    """Wall and processor time, and ratios to both kinds of peer."""
    section = Section(title, BUILDS, timings=timings)
    plain, chunked = timings.get("mkfs.erofs"), timings.get("mkfs.erofs --chunksize=65536 --blobdev")
    for name, timing in timings.items():
        ratios = [f"{timing.wall / other.wall:.2f}" if other else "-" for other in (plain, chunked)]
        section.rows.append((name, f"{timing.wall:.2f}", f"{timing.processor:.2f}", *ratios))
    return section


def sizes(bench: Bench, result: BuildResult, plain: Path) -> Section:
    """Bytes of the sealed image against those of an unsealed one."""
    single, meta, blob = (bench.disk / name for name in ("single.erofs", "meta.erofs", "blob.erofs"))
    ours.build_image(bench.tree, str(single), blobs=BlobLayout.NONE)
    ours_bytes = {
        "eroseal, meta and data blob, sealed": sum(item.size for item in result.blobs),
        "eroseal, single file, sealed": single.stat().st_size,
    }
    theirs: dict[str, int] = {}
    if mkfs := bench.peer("mkfs.erofs"):
        run_quietly(mkfs, "--quiet", "--chunksize=65536", f"--blobdev={blob}", meta, bench.tree)
        theirs["mkfs.erofs"] = plain.stat().st_size
        theirs["mkfs.erofs --chunksize=65536 --blobdev"] = inputs.disk_bytes(meta, blob)
    section = Section("Image size", ("what", "MiB", "ratio to mkfs plain"))
    reference = theirs.get("mkfs.erofs")
    for name, size in (ours_bytes | theirs).items():
        ratio = f"{size / reference:.3f}" if reference else "-"
        section.rows.append((name, f"{size / MIB:,.1f}", ratio))
    if reference:
        section.targets += [
            Target(f"size of {name} / (mkfs.erofs + tree)", size / (reference * TREE_SHARE), 1.0)
            for name, size in ours_bytes.items()
        ]
    remove(single, meta, blob)
    return section


def unpacking(bench: Bench, result: BuildResult, plain: Path) -> Section:
    """Unpacking, every block verified, against tools that verify nothing."""
    target, archive = bench.disk / "unpacked", bench.disk / "tree.tar"
    subprocess.run(["tar", "-C", bench.tree, "-cf", archive, "."], check=True)
    clear = partial(remove, target)
    reference = f"dir:{bench.store}:base"

    def untar() -> None:
        target.mkdir()
        run_quietly("tar", "--numeric-owner", "-xpf", archive, "-C", target)

    contenders = [
        Contender("unpack, library", partial(ours.unpack_image, reference, result.image, target), clear),
        Contender("tar -xp", untar, clear),
    ]
    bench.peers["tar"] = peer_version(Path("tar"))
    fsck = bench.peer("fsck.erofs")
    if fsck and plain.exists():
        action = partial(run_quietly, fsck, f"--extract={target}", plain)
        contenders.append(Contender("fsck.erofs --extract", action, clear))
    timings = measure(contenders, rounds=bench.sizes.few_rounds)
    remove(target, archive)
    section = Section(
        f"Unpacking {bench.sizes.tree}", ("what", "wall s", "user+sys s", "ratio to tar"), timings=timings
    )
    for name, timing in timings.items():
        ratio = f"{timing.wall / timings['tar -xp'].wall:.2f}"
        section.rows.append((name, f"{timing.wall:.2f}", f"{timing.processor:.2f}", ratio))
    section.remarks.append("no target")
    return section


def incremental(bench: Bench) -> Section:
    """A build on a base after one file in a hundred changed."""
    changed = inputs.change_files(bench.tree, 100)
    base, clear = f"dir:{bench.store}:base", partial(remove_image, bench.store, "next")
    results: list[BuildResult] = []

    def on_base() -> None:
        results.append(ours.build_image(bench.tree, f"dir:{bench.store}:next", bases=(base,)))

    contenders = [Contender("build on a base", on_base, clear)]
    clear_fresh = partial(remove, bench.disk / "fresh")
    fresh = partial(ours.build_image, bench.tree, f"dir:{bench.disk / 'fresh'}:bench")
    contenders.append(Contender("build without a base", fresh, clear_fresh))
    timings = measure(contenders, rounds=bench.sizes.few_rounds)
    remove(bench.disk / "fresh")
    title = f"Build on a base, {changed:,} files changed"
    section = Section(title, ("what", "wall s", "user+sys s", "new chunk data, MiB"), timings=timings)
    new = {"build on a base": results[0].bytes_new}
    for name, timing in timings.items():
        stored = f"{new[name] / MIB:,.1f}" if name in new else "all"
        section.rows.append((name, f"{timing.wall:.2f}", f"{timing.processor:.2f}", stored))
    section.remarks.append("no target; the source is read in both, the base's data in neither")
    return section


def remove_image(store: Path, name: str) -> None:
    """Remove an image and the blobs that only it uses."""
    opened = LocalStore.open(store, durable=False)
    if opened.has_image(name):
        opened.delete_image(name)
    used = {blob.digest for other in opened.list_images() for blob in opened.image(other)[0].blobs}
    for digest in list(opened.list_blobs()):
        if digest not in used:
            opened.delete_blob(digest)


def many_small(bench: Bench) -> Section:
    """Nothing but small files: calls, not bytes."""
    source = bench.disk / "small"
    inputs.small_files(source, bench.sizes.small_files)
    os.sync()
    contenders = tree_contenders(bench, source, chunked=False)
    timings = measure(contenders, rounds=max(2, bench.sizes.rounds - 2))
    contenders[0].before()
    remove(source)
    section = build_section(f"Building {bench.sizes.small_files:,} files of 100 to 4,000 bytes", timings)
    section.remarks.append("no target")
    return section


# --- memory ---


def memory(bench: Bench) -> Section:
    """Peak memory of builds in processes of their own, workers included, against the bound."""
    if not bench.tree.exists():  # the other part that uses it did not run
        inputs.copy_tree(bench.sizes.tree, bench.tree)
    section = Section("Peak memory", ("what", "files", "chunks", "sampled MiB", "sum of peaks MiB", "allowed MiB"))
    sources: list[tuple[str, Path, Callable[[], object]]] = [
        (f"build {bench.sizes.tree}", bench.tree, lambda: None),
        (
            f"build a sparse file of {bench.sizes.sparse >> 30} GiB",
            bench.disk / "sparse",
            lambda: make_one(bench.disk / "sparse", partial(inputs.sparse_file, size=bench.sizes.sparse)),
        ),
        (
            f"build a dense file of {bench.sizes.dense / 2**30:.2g} GiB",
            bench.disk / "dense",
            lambda: make_one(bench.disk / "dense", partial(inputs.dense_file, size=bench.sizes.dense)),
        ),
    ]
    for what, source, make in sources:
        if source.name == "dense" and shutil.disk_usage(bench.disk).free < 4 * bench.sizes.dense:
            section.remarks.append("the dense file was left out: the disk has no room for it")
            continue
        make()
        measure_memory(bench, section, what, source)
        remove(source)
    section.remarks.append("allowed: 120 MiB, 1.5 KiB for each file, 160 bytes for each distinct chunk")
    section.remarks.append(
        "sum of peaks: of each process's own, shared pages counted in each; sampled: every 10 ms, PSS"
    )
    return section


def make_one(directory: Path, make: Callable[[Path], None]) -> None:
    """A directory with one large file."""
    directory.mkdir()
    make(directory / "large")


def measure_memory(bench: Bench, section: Section, what: str, source: Path) -> None:
    """One row and its target."""
    reference = f"dir:{bench.store}:memory"
    remove(bench.store)
    peak = peak_memory(ours.build_command(source, reference))
    files, chunks = inputs.count_files(source), ours.distinct_chunks(reference)
    remove(bench.store)
    allowed = 120 * MIB + 1.5 * KIB * files + 160 * chunks
    section.rows.append(
        (
            what,
            f"{files:,}",
            f"{chunks:,}",
            f"{peak.sampled / MIB:.0f}",
            f"{peak.bound / MIB:.0f}",
            f"{allowed / MIB:.0f}",
        )
    )
    section.targets.append(Target(f"peak memory of {what} / allowed", peak.bound / allowed, 1.0))
