"""Measuring next to a peer: alternating rounds, the best of each, ratios, and what they were measured on.

Other load on a machine disturbs single rounds; the best of several rounds, each contender once in every round, is
what stays comparable. Wall time is a clock's, processor time is that of this process and of all children that ended.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eroseal.crypto.blocks import native_kernel


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to measure.

    Args:
        name: as the table calls it.
        action: what is timed.
        before: run before each round, not timed: removes what the last one made.
    """

    name: str
    action: Callable[[], object]
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Timing:
    """The best round of a contender, in seconds; `rounds` has the wall time of each."""

    wall: float
    processor: float
    rounds: list[float]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of ours against a peer's, and what it must be.

    Args:
        what: as the table calls it.
        value: what was measured.
        limit: what it is held against.
        at_least: whether it must be at least the limit, rather than at most.
    """

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(slots=True)
class Section:
    """One group of measurements: a table, targets, and remarks."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    timings: dict[str, Timing] = field(default_factory=dict)
    seconds: float = 0.0


def measure(contenders: Sequence[Contender], *, rounds: int) -> dict[str, Timing]:
    """Time each contender once a round, in turns."""
    walls: dict[str, list[float]] = {item.name: [] for item in contenders}
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for item in contenders:
            item.before()
            used, start = processor_seconds(), time.perf_counter()
            item.action()
            wall, used = time.perf_counter() - start, processor_seconds() - used
            walls[item.name].append(wall)
            best[item.name] = min(best.get(item.name, (wall, used)), (wall, used))
    return {name: Timing(*best[name], walls[name]) for name in walls}


def processor_seconds() -> float:
    """User and system time of this process and of its children that ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_quietly(*command: str | Path) -> None:
    """Run a command whose output is not what is measured; says what it said when it fails."""
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace")[-800:]
        raise SystemExit(f"{' '.join(map(str, command))}: status {done.returncode}: {said}")


def remove(*paths: Path) -> None:
    """Remove files and directories that may be there."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def peer(name: str) -> Path | None:
    """A peer's program: from $EROSEAL_PEERS first, then PATH and the system directories."""
    places = [os.environ.get("EROSEAL_PEERS", ""), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    found = shutil.which(name, path=os.pathsep.join(place for place in places if place))
    return Path(found) if found else None


def peer_version(program: Path) -> str:
    """The version that a peer prints, or what its first line says."""
    for option in ("--version", "-V"):
        done = subprocess.run([program, option], check=False, capture_output=True, text=True)
        found = re.search(r"\d+(\.\d+)+|(?<=^casync )\d+", done.stdout + done.stderr)
        if found:
            return found[0]
    return "unknown version"


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "hash kernel": native_kernel() or "hashlib",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


# --- output ---


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table that is readable as text too: columns padded, all but the first to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = []
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("| " + " | ".join(cells) + " |")
        if not number:
            rule = ["-" * (width - 1) + ":" if at else "-" * width for at, width in enumerate(widths)]
            text.append("| " + " | ".join(rule) + " |")
    return "\n".join(text)


@dataclass(frozen=True, slots=True)
class Report:
    """What one group of measurements gave.

    Args:
        facts: what it was measured on.
        peers: their versions.
        sections: the tables.
    """

    facts: dict[str, str]
    peers: dict[str, str]
    sections: list[Section]

    @property
    def targets(self) -> list[Target]:
        return [target for section in self.sections for target in section.targets]

    def as_markdown(self) -> str:
        """Everything, as a document shows it."""
        rows = [
            (
                target.what,
                f"{target.value:.2f}",
                f"{'≥' if target.at_least else '≤'} {target.limit:.2f}",
                "yes" if target.met else "**no**",
            )
            for target in self.targets
        ]
        parts = [
            table(("machine", "value"), self.facts.items()),
            table(("peer", "version"), self.peers.items()),
            "### Targets",
            table(("ratio", "measured", "target", "met"), rows),
        ]
        for section in self.sections:
            parts += [f"### {section.title}", table(section.head, section.rows)]
            if section.remarks:
                parts.append("\n".join(f"- {remark}" for remark in section.remarks))
        return "\n\n".join(parts) + "\n"


def as_json(reports: Sequence[Report]) -> str:
    """Everything, for programs."""
    document = {
        "schema": "eroseal.bench/2",
        "reports": [
            {
                "machine": report.facts,
                "peers": report.peers,
                "sections": [
                    {**asdict(section), "targets": [asdict(item) | {"met": item.met} for item in section.targets]}
                    for section in report.sections
                ],
            }
            for report in reports
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write_between_markers(path: Path, text: str, mark: str) -> None:
    """Put a report between the markers of a document; what lies around them stays."""
    first, last = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    document = path.read_text(encoding="utf-8")
    head, begin, rest = document.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise SystemExit(f"{path}: no {first} and {last}")
    path.write_text(f"{head}{first}\n\n{text}\n{last}{tail}", encoding="utf-8")
