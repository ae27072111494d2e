"""A container image becomes a sealed image: against umoci and mkfs.erofs, which take two steps to an unsealed one."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import layered
import ours
from harness import Contender, Section, Target, measure, remove, run_quietly
from layered import TAG, LayeredImage
from memory import peak_memory
from sections import MIB, Bench

MEMORY_ALLOWED = 200 * MIB
UNPACK, PLAIN, CHUNKED = "umoci unpack", "mkfs.erofs of it", "mkfs.erofs --chunksize=65536 --blobdev of it"


def layered_image(bench: Bench) -> LayeredImage:
    """The image that sections share: made by the first that needs it, unless an earlier run left it in the cache."""
    if bench.image is None:
        place = (bench.cache or bench.disk) / f"image-{bench.sizes.image >> 20}"
        made = place / "made.json"
        if made.exists():
            fields = json.loads(made.read_text())
            bench.image = LayeredImage(Path(fields.pop("layout")), **fields)
        else:
            print("bench: making a container image", file=sys.stderr, flush=True)
            remove(place)
            bench.image = layered.make_layered_image(place / "layout", bench.sizes.image)
            made.write_text(json.dumps(asdict(bench.image), default=str))
            os.sync()
    return bench.image


def converting(bench: Bench) -> list[Section]:
    """Wall time of the conversion, and its peak memory."""
    image = layered_image(bench)
    return [conversion(bench, image), conversion_memory(bench, image)]


def build_from(bench: Bench, image: LayeredImage, *options: str, tag: str = TAG, store: str = "store") -> list[str]:
    """The command that builds the image into a store."""
    name = f"dir:{bench.disk / store}:{tag}"
    return ours.command("build", "--no-sync", *options, f"oci:{image.layout}:{tag}", name)


def conversion(bench: Bench, image: LayeredImage) -> Section:
    """Each command in each round; the peers' steps are timed one by one, and the best of each are added."""
    bundle, plain, meta, blob = (bench.disk / name for name in ("bundle", "plain.erofs", "meta.erofs", "blob.erofs"))
    clear = partial(remove, bench.store)
    contenders = [
        Contender("eroseal build --no-sync", partial(run_quietly, *build_from(bench, image)), clear),
        Contender(
            "eroseal build --no-sync --layers stack",
            partial(run_quietly, *build_from(bench, image, "--layers", "stack")),
            clear,
        ),
    ]
    umoci, mkfs = bench.peer("umoci"), bench.peer("mkfs.erofs")
    if umoci and mkfs:
        tree = bundle / "rootfs"
        # The second one takes what the first one left, so their order matters.
        contenders += [
            Contender(
                UNPACK,
                partial(run_quietly, umoci, "unpack", "--image", f"{image.layout}:{TAG}", bundle),
                partial(remove, bundle),
            ),
            Contender(PLAIN, partial(run_quietly, mkfs, "--quiet", plain, tree), partial(remove, plain)),
            Contender(
                CHUNKED,
                partial(run_quietly, mkfs, "--quiet", "--chunksize=65536", f"--blobdev={blob}", meta, tree),
                partial(remove, meta, blob),
            ),
        ]
    timings = measure(contenders, rounds=bench.sizes.few_rounds)
    remove(bench.store, bundle, plain, meta, blob)
    title = (
        f"Converting a container image ({image.layers} layers, {image.files:,} files, "
        f"{image.uncompressed / MIB:,.0f} MiB, {image.compressed / MIB:,.0f} MiB as gzip)"
    )
    section = Section(title, ("what", "wall s", "user+sys s", "MB/s", "ratio to umoci + mkfs.erofs"), timings=timings)
    walls = {name: timing.wall for name, timing in timings.items()}
    used = {name: timing.processor for name, timing in timings.items()}
    for step in (PLAIN, CHUNKED) if UNPACK in walls else ():
        both = f"{UNPACK}, then {step}"
        walls[both], used[both] = walls[UNPACK] + walls[step], used[UNPACK] + used[step]
    reference = walls.get(f"{UNPACK}, then {PLAIN}")
    for name, wall in walls.items():
        ratio = f"{wall / reference:.2f}" if reference else "-"
        rate = f"{image.uncompressed / wall / 1e6:,.0f}" if name not in (PLAIN, CHUNKED) else "-"
        section.rows.append((name, f"{wall:.2f}", f"{used[name]:.2f}", rate, ratio))
    if reference:
        mine = "eroseal build --no-sync"
        section.targets.append(Target(f"wall time of {mine} / umoci unpack + mkfs.erofs", walls[mine] / reference, 1.0))
    section.remarks += [
        "MB/s: of uncompressed layers",
        "nobody syncs",
        "`umoci unpack` also writes a list of all files with their hashes; ours writes trees, seals and a chunk map",
        "the image is made of real files of this machine; its upper layers replace, remove and link files",
    ]
    return section


def conversion_memory(bench: Bench, image: LayeredImage) -> Section:
    """Peak memory of conversions in processes of their own."""
    head = ("what", "processes", "sampled MiB", "sum of peaks MiB", "allowed MiB")
    section = Section("Peak memory of a conversion", head)
    for options in ((), ("--layers", "stack")):
        remove(bench.store)
        what = " ".join(("build", *options))
        peak = peak_memory(build_from(bench, image, *options))
        figures = (peak.sampled / MIB, peak.bound / MIB, MEMORY_ALLOWED / MIB)
        section.rows.append((what, str(peak.processes), *(f"{figure:.0f}" for figure in figures)))
        section.targets.append(
            Target(f"peak memory of the conversion, {what} / 200 MiB", peak.sampled / MEMORY_ALLOWED, 1)
        )
    remove(bench.store)
    section.remarks += [
        "held against what is allowed: sampled, every 10 ms, PSS of all processes at that moment",
        "sum of peaks: of each process's own, whenever it was, shared pages counted in each",
        "of a stack each layer has its own workers, which end before the next ones start",
        "page cache of the spools, which the kernel drops when it needs the memory, is in neither",
    ]
    return section
