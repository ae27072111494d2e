"""All measurements against the peers, in one run: `make bench`.

    python benchmarks/run.py [--quick] [--only NAME ...] [--json FILE] [--write docs/measurements.md]

Prints a report in Markdown for each group of parts; `--write` puts it between the group's markers in a document as
well, and leaves other groups as they are. Peers come from $EROSEAL_PEERS, then from PATH; the reports name their
versions. Needs about 10 GiB of disk below --directory and, for the large region, 3 GiB of tmpfs (or else of disk); the
packages of `versions` come from PyPI through pip. Exits with 1 when a target is missed and `--strict` is given.
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

Part = Callable[[sections.Bench], list[Section]]
GROUPS: dict[str, dict[str, Part]] = {
    "bench": {
        "region": sections.sealing_and_verifying,
        "tree": sections.building,
        "small": lambda bench: [sections.many_small(bench)],
        "memory": lambda bench: [sections.memory(bench)],
    },
    "bench containers": {
        "convert": conversion.converting,
        "network": network.pushing_and_pulling,
        "versions": versions.storing_versions,
    },
}
"""Parts by the name of the markers that their report goes between."""
PARTS = [name for group in GROUPS.values() for name in group]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="measurements against the peers")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not to measure")
    parser.add_argument("--only", action="append", choices=PARTS, help="these parts alone; may repeat")
    parser.add_argument("--rounds", type=int, help="rounds of most measurements")
    parser.add_argument("--tree", type=Path, help="directory to copy and build, instead of /usr/share")
    parser.add_argument("--directory", type=Path, default=Path(os.environ.get("TMPDIR", "/var/tmp")))
    parser.add_argument("--memory-directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep here what takes long to fetch or make")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, all rounds included")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the report between the markers of FILE")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    return parser.parse_args()


def run(bench: sections.Bench, parts: dict[str, Part], only: list[str] | None) -> list[Section]:
    """The parts of a group that are asked for."""
    found: list[Section] = []
    for name, part in parts.items():
        if only and name not in only:
            continue
        print(f"bench: {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        done = part(bench)
        done[0].seconds = time.perf_counter() - start
        found += done
    return found


def run_groups(options: argparse.Namespace, bench: sections.Bench) -> list[harness.Report]:
    """Measure, print and write one group after the other."""
    reports = []
    for mark, parts in GROUPS.items():
        if options.only and not set(options.only) & set(parts):
            continue
        facts = harness.machine()
        bench.peers = {}
        start = time.monotonic()
        found = run(bench, parts, options.only)
        facts["took"] = f"{time.monotonic() - start:.0f} s"
        if options.quick:
            facts["sizes"] = "quick: nothing here is a measurement"
        done = harness.Report(facts, bench.peers, found)
        text = done.as_markdown()
        print(text, flush=True)
        if options.write:
            harness.write_between_markers(options.write, text, mark)
        reports.append(done)
    return reports


def main() -> int:
    """Measure, print, write."""
    options = arguments()
    sizes = QUICK if options.quick else Sizes()
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    if options.tree:
        sizes = replace(sizes, tree=options.tree)
    disk = Path(tempfile.mkdtemp(prefix="eroseal-bench-", dir=options.directory))
    memory = disk
    try:
        if options.memory_directory.is_dir() and shutil.disk_usage(options.memory_directory).free > 3.5 * sizes.region:
            memory = Path(tempfile.mkdtemp(prefix="eroseal-bench-", dir=options.memory_directory))
        reports = run_groups(options, sections.Bench(disk, memory, sizes, options.cache))
    finally:
        harness.remove(disk, memory)
    if options.json:
        options.json.write_text(harness.as_json(reports), encoding="utf-8")
    missed = [target for report in reports for target in report.targets if not target.met]
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    raise SystemExit(main())
