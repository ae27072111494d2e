"""Peak memory of a command with all its children.

Two figures, because neither says it all. *Sampled*: the proportional set sizes (PSS) of all processes of the tree at
one moment, the largest sum seen; it counts shared pages once, but looks only every few milliseconds. *Bound*: the
sum of each process's own high-water mark (VmHWM), as if all had peaked at the same moment and shared nothing.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.01
KIB = 1024


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes; see the module. `processes` counts those seen."""

    sampled: int
    bound: int
    processes: int
    seconds: float


def peak_memory(command: Sequence[str | Path]) -> Peak:
    """Run a command and watch it; its output is dropped."""
    start = time.perf_counter()
    marks: dict[int, int] = {}
    sampled = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            total = 0
            for pid in _tree(process.pid):
                total += _field(pid, "smaps_rollup", "Pss:")
                marks[pid] = max(marks.get(pid, 0), _field(pid, "status", "VmHWM:"))
            sampled = max(sampled, total)
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))}: {said.read().decode(errors='replace')[-800:]}")
    return Peak(sampled, sum(marks.values()), len(marks), seconds)


def _tree(root: int) -> list[int]:
    """A process and all below it that are there now."""
    found = [root]
    for pid in found:
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in listing.read_text().split()]
            except OSError:
                continue  # the thread ended meanwhile
    return found


def _field(pid: int, file: str, name: str) -> int:
    """Bytes of a field that /proc gives in KiB; 0 for a process that is gone."""
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * KIB
    except (OSError, ValueError):
        pass
    return 0
