"""All measurements against the peers, in one run: `make bench`.

    python benchmarks/run.py [--quick] [--only NAME ...] [--json FILE] [--write docs/measurements.md]

Prints a report in Markdown; `--write` puts it between the markers of a document as well. Peers come from
$EROSEAL_PEERS, then from PATH; the report names their versions. Needs about 10 GiB of disk below --directory and, for
the large region, 3 GiB of tmpfs (or else of disk); the packages of `versions` come from PyPI through pip. Exits with 1 when a target is missed and `--strict` is given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import conversion
import harness
import network
import sections
import versions
from harness import Section
from inputs import QUICK, Sizes

PARTS: dict[str, Callable[[sections.Bench], list[Section]]] = {
    "region": sections.sealing_and_verifying,
    "tree": sections.building,
    "small": lambda bench: [sections.many_small(bench)],
    "memory": lambda bench: [sections.memory(bench)],
    "convert": conversion.converting,
    "network": network.pushing_and_pulling,
    "versions": versions.storing_versions,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="measurements against the peers")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not to measure")
    parser.add_argument("--only", action="append", choices=PARTS, help="these parts alone; may repeat")
    parser.add_argument("--rounds", type=int, help="rounds of most measurements")
    parser.add_argument("--tree", type=Path, help="directory to copy and build, instead of /usr/share")
    parser.add_argument("--directory", type=Path, default=Path(os.environ.get("TMPDIR", "/var/tmp")))
    parser.add_argument("--memory-directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--downloads", type=Path, metavar="DIR", help="keep what is fetched from PyPI here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, all rounds included")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the report between the markers of FILE")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    return parser.parse_args()


def run(options: argparse.Namespace, sizes: Sizes, places: tuple[Path, Path]) -> tuple[list[Section], dict[str, str]]:
    """All parts asked for."""
    bench = sections.Bench(*places, sizes, options.downloads)
    found: list[Section] = []
    for name, part in PARTS.items():
        if options.only and name not in options.only:
            continue
        print(f"bench: {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        done = part(bench)
        done[0].seconds = time.perf_counter() - start
        found += done
    return found, bench.peers


def main() -> int:
    """Measure, print, write."""
    options = arguments()
    sizes = QUICK if options.quick else Sizes()
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    if options.tree:
        sizes = replace(sizes, tree=options.tree)
    facts = harness.machine()
    start = time.monotonic()
    disk = Path(tempfile.mkdtemp(prefix="eroseal-bench-", dir=options.directory))
    memory = disk
    try:
        if options.memory_directory.is_dir() and shutil.disk_usage(options.memory_directory).free > 3.5 * sizes.region:
            memory = Path(tempfile.mkdtemp(prefix="eroseal-bench-", dir=options.memory_directory))
        found, peers = run(options, sizes, (disk, memory))
    finally:
        harness.remove(disk, memory)
    facts["took"] = f"{time.monotonic() - start:.0f} s"
    if options.quick:
        facts["sizes"] = "quick: nothing here is a measurement"
    report = harness.report(facts, peers, found)
    print(report, end="")
    if options.json:
        options.json.write_text(harness.as_json(facts, peers, found), encoding="utf-8")
    if options.write:
        harness.write_between_markers(options.write, report)
    missed = [target for section in found for target in section.targets if not target.met]
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    raise SystemExit(main())
