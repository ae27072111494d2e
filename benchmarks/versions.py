"""Ten consecutive versions of a package: the bytes that they take together, in our images and in what others make.

The packages are wheels from PyPI, unpacked, all files with one time, as builds that can be repeated leave them: with
the times of the wheels, casync and archives would find every file changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ours
from harness import Section, peer, remove, run_quietly
from inputs import disk_bytes
from sections import MIB, Bench

TIME = 1_700_000_000
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True, slots=True)
class Package:
    """A package and ten releases of it that follow each other, pinned so that figures can be compared later."""

    name: str
    releases: tuple[str, ...]


PACKAGES = (
    Package("Django", ("5.2", *(f"5.2.{number}" for number in range(1, 10)))),
    Package("botocore", tuple(f"1.43.{number}" for number in range(118, 128))),
)
"""Much text in small files; and files that are compressed already, of which the largest change a little each time."""

Step = Callable[[Path, Path, str, str | None], None]
"""Stores one version: (tree, place of the row, name, name of the version before)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to store the versions.

    Args:
        name: as the table calls it.
        step: what stores one of them.
        programs: that it needs.
    """

    name: str
    step: Step
    programs: tuple[str, ...] = ()


def _build(*options: str, base: bool) -> Step:
    def step(tree: Path, place: Path, name: str, before: str | None) -> None:
        on = ("--base", f"dir:{place}:{before}") if base and before else ()
        run_quietly(*ours.command("build", "--no-sync", *options, *on, tree, f"dir:{place}:{name}"))

    return step


def _compressed(tree: Path, place: Path, name: str, before: str | None) -> None:
    """A copy of the image that the first row built: in OCI form, compressed."""
    source = f"dir:{place.with_name(_SHARED)}:{name}"
    run_quietly(*ours.command("copy", "--no-sync", "--compress", "zstd", source, f"oci:{place}:{name}"))


def _mkfs(*options: str) -> Step:
    def step(tree: Path, place: Path, name: str, before: str | None) -> None:
        place.mkdir(exist_ok=True)
        run_quietly(peer("mkfs.erofs") or "mkfs.erofs", "--quiet", *options, place / f"{name}.erofs", tree)

    return step


def _casync(tree: Path, place: Path, name: str, before: str | None) -> None:
    place.mkdir(exist_ok=True)
    run_quietly("casync", "make", f"--store={place / 'default.castr'}", place / f"{name}.caidx", tree)


def _tar(level: int) -> Step:
    def step(tree: Path, place: Path, name: str, before: str | None) -> None:
        place.mkdir(exist_ok=True)
        output = place / f"{name}.tar.zst"
        run_quietly("tar", "--sort=name", "-C", tree, "-I", f"zstd -{level} -T0", "-cf", output, ".")

    return step


_SHARED = "row-0"
ROWS = (
    Row("eroseal, each on the one before", _build(base=True)),
    Row("the same, in OCI form with --compress zstd", _compressed),
    Row("eroseal, chunks of 16K", _build("--chunk-size", "16K", base=True)),
    Row("eroseal, chunks of 4K, nothing inline", _build("--chunk-size", "4K", "--inline-max", "0", base=True)),
    Row("eroseal, without bases", _build(base=False)),
    Row("mkfs.erofs", _mkfs(), ("mkfs.erofs",)),
    Row("mkfs.erofs -zlz4hc", _mkfs("-zlz4hc"), ("mkfs.erofs",)),
    Row("casync, one store", _casync, ("casync",)),
    Row("tar.zst, level 3", _tar(3), ("tar", "zstd")),
    Row("tar.zst, level 19", _tar(19), ("tar", "zstd")),
)
REFERENCE = "mkfs.erofs"


def storing_versions(bench: Bench) -> list[Section]:
    """One table for all packages that could be fetched."""
    trees = {package: _trees(bench, package) for package in PACKAGES[: bench.sizes.packages]}
    found = {package: made for package, made in trees.items() if made}
    head = ["what"]
    for package in found:
        head += [f"{package.name} MiB", "ratio to mkfs.erofs", "s"]
    section = Section("Ten versions of a package", tuple(head))
    columns = [_column(bench, package, made) for package, made in found.items()]
    for name in columns[0] if columns else ():
        cells = [name]
        for column in columns:
            size, seconds = column[name]
            reference = column.get(REFERENCE, (0, 0.0))[0]
            cells += [
                f"{size / MIB:,.1f}",
                f"{size / reference:.3f}" if reference else "-",
                f"{seconds:.1f}" if seconds else "-",
            ]
        section.rows.append(tuple(cells))
    for package in found:
        section.remarks.append(f"{package.name}: {package.releases[0]} to {package.releases[-1]}, wheels from PyPI")
    missing = [package.name for package in trees if package not in found]
    if missing:
        section.remarks.append(f"left out, because PyPI could not be reached: {', '.join(missing)}")
    section.remarks += [
        "s: of all ten; one version after the other, each row once",
        "ours are sealed: a tree over every blob is in the figures; `-zlz4hc`, casync and tar.zst compress",
        "no target",
    ]
    remove(bench.disk / "versions")
    return [section]


def _column(bench: Bench, package: Package, trees: dict[str, Path]) -> dict[str, tuple[int, float]]:
    """Bytes and seconds of every row."""
    results = {"the files themselves": (sum(map(disk_bytes, trees.values())), 0.0)}
    for number, row in enumerate(ROWS):
        if not all(bench.peer(program) for program in row.programs):
            continue
        place = bench.disk / "versions" / f"row-{number}"
        start, before = time.perf_counter(), None
        for release, tree in trees.items():
            row.step(tree, place, release, before)
            before = release
        seconds = time.perf_counter() - start
        results[row.name] = (disk_bytes(place), seconds)
    for number in range(len(ROWS)):
        remove(bench.disk / "versions" / f"row-{number}")
    return results


def _trees(bench: Bench, package: Package) -> dict[str, Path]:
    """The unpacked releases; empty where they cannot be fetched."""
    downloads = (bench.cache or bench.disk) / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    trees: dict[str, Path] = {}
    for release in package.releases[: bench.sizes.versions]:
        wheel = _wheel(downloads, package.name, release)
        if wheel is None:
            return {}
        trees[release] = bench.disk / "versions" / package.name / release
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(trees[release])
        for directory, _, files in os.walk(trees[release], topdown=False):
            for name in (*files, "."):
                os.utime(os.path.join(directory, name), (TIME, TIME))
    os.sync()
    return trees


def _wheel(downloads: Path, name: str, release: str) -> Path | None:
    """A wheel that is there, or comes from the package index that pip is set up for."""

    def there() -> Path | None:
        prefix = f"{name}-{release}-".lower()
        return next((path for path in downloads.glob("*.whl") if path.name.lower().startswith(prefix)), None)

    found = there()
    if found is None and shutil.disk_usage(downloads).free > 1 << 30:
        arguments = ("download", "--no-deps", "--only-binary=:all:", f"--dest={downloads}", f"{name}=={release}")
        done = subprocess.run([*_PIP, *arguments], check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"bench: {name} {release} left out: {done.stderr.strip()[-300:]}", file=sys.stderr)
        found = there()
    return found
