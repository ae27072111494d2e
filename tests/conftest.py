"""What all tests share: peers, privileges, hypothesis profiles, and a guard against what tests leave behind.

A test that needs something asks for it by fixture. On a user's machine a missing peer or privilege skips the
test and says so; with ``CI=true`` it fails it, because a check that quietly stops running is no check. Only
the peers in `OPTIONAL_PEERS` may be absent there too, and the summary names them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

IN_CI = os.environ.get("CI") == "true"

# Peers that no Debian release that we support ships.
OPTIONAL_PEERS = frozenset({"mkfs.erofs>=1.9", "fsck.erofs>=1.9", "dump.erofs>=1.9", "avbtool"})
OPTIONAL_REASON = "optional peer missing: "

MS_RDONLY = 1
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36

# Processes that Python's multiprocessing keeps for the life of the interpreter.
KEPT_PROCESSES = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
GRACE_SECONDS = 2.0

# The repository's own tests are reproducible; a soak looks for what they have not found.
settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("EROSEAL_HYPOTHESIS", "ci" if IN_CI else "dev"))

libc = ctypes.CDLL(None, use_errno=True)


def pytest_configure(config: pytest.Config) -> None:
    """Become the parent of orphans, so that a daemon that a test leaves behind is seen."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the optional peers that tests went without."""
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple):
            _, found, peer = str(report.longrepr[2]).partition(OPTIONAL_REASON)
            if found:
                counts[peer] = counts.get(peer, 0) + 1
    if counts:
        terminalreporter.section("optional peers missing")
        for peer, count in sorted(counts.items()):
            terminalreporter.line(f"{peer}: {count} tests skipped")


def _unavailable(reason: str, *, optional: bool = False) -> NoReturn:
    if IN_CI and not optional:
        pytest.fail(f"{reason} (CI=true: nothing that is required may be missing)", pytrace=False)
    pytest.skip(reason)


# Peers and privileges


def _peer_version(path: Path) -> tuple[int, ...]:
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\b(\d+)\.(\d+)(?:\.(\d+))?", result.stdout + result.stderr)
    return tuple(int(part) for part in match.groups(default="0")) if match else ()


def _find_peer(name: str) -> Path | None:
    """Find a program ("mkfs.erofs", "mkfs.erofs>=1.9") in $EROSEAL_PEERS, PATH and the system directories."""
    program, _, minimum = name.partition(">=")
    wanted = tuple(int(part) for part in minimum.split(".")) if minimum else ()
    # An ordinary user's PATH lacks the directories that veritysetup and mkfs live in.
    places = [os.environ.get("EROSEAL_PEERS", ""), os.environ.get("PATH", ""), "/usr/sbin:/sbin"]
    for place in ":".join(places).split(":"):
        path = Path(place, program)
        if place and path.is_file() and os.access(path, os.X_OK) and _peer_version(path) >= wanted:
            return path
    return None


@pytest.fixture(scope="session")
def require_peer() -> Callable[[str], str]:
    """Give a function from a peer's name to its path; it skips or fails the test when the peer is missing."""
    found: dict[str, Path | None] = {}

    def require(name: str) -> str:
        if name not in found:
            found[name] = _find_peer(name)
        path = found[name]
        if path is None:
            optional = name in OPTIONAL_PEERS
            _unavailable(OPTIONAL_REASON + name if optional else f"peer missing: {name}", optional=optional)
        return str(path)

    return require


@pytest.fixture
def need_root() -> None:
    """Run the test as root only."""
    if os.geteuid() != 0:
        _unavailable("needs root")


def _erofs_obstacle(mkfs: str, place: Path) -> str | None:
    """Say why the kernel does not mount EROFS files here, or nothing when it does."""
    source, image, target = place / "source", place / "image", place / "mountpoint"
    for directory in (source, target):
        directory.mkdir()
    subprocess.run([mkfs, image, source], check=True, capture_output=True)
    if libc.mount(os.fsencode(image), os.fsencode(target), b"erofs", MS_RDONLY, None) != 0:
        return os.strerror(ctypes.get_errno())
    libc.umount2(os.fsencode(target), 0)
    return None


@pytest.fixture(scope="session")
def _kernel_erofs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str | None]:
    known: list[str | None] = []

    def obstacle() -> str | None:
        if not known:
            mkfs = _find_peer("mkfs.erofs")
            place = tmp_path_factory.mktemp("kernel-erofs")
            known.append(_erofs_obstacle(str(mkfs), place) if mkfs else "mkfs.erofs is missing, to try it with")
        return known[0]

    return obstacle


@pytest.fixture
def need_kernel_erofs(need_root: None, _kernel_erofs: Callable[[], str | None]) -> None:
    """Run the test only where the kernel mounts an EROFS image from a file (Linux 6.12 or later, as root)."""
    obstacle = _kernel_erofs()
    if obstacle is not None:
        _unavailable(f"the kernel does not mount EROFS files: {obstacle}")


# The guard


def _children() -> dict[int, bytes]:
    """Give the living children of this process with their command lines."""
    found = {}
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            found.update({int(pid): _command_line(int(pid)) for pid in listing.read_text().split()})
    return {pid: line for pid, line in found.items() if not any(kept in line for kept in KEPT_PROCESSES)}


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip() or b"(ended, not waited for)"
    return b"(gone)"


def _mounts_below(directory: Path) -> list[str]:
    """Give the mount points below a directory, innermost first."""
    prefix = f"{directory}/"
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = [os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1")) for line in lines]
    return [point for point in reversed(points) if point.startswith(prefix)]


def _loops_below(directory: Path) -> list[str]:
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached meanwhile
            if file.read_text().startswith(f"{directory}/"):
                found.append(f"/dev/{file.parent.parent.name}")
    return found


@pytest.fixture(scope="session")
def _own_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep all temporary files of this process below one directory, so that its leftovers are its own.

    Tests run in several processes at once: a mount elsewhere in /tmp may belong to any of them.
    """
    base = tmp_path_factory.getbasetemp().resolve()
    directory = base / "tmp"
    directory.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(directory))
        patch.setattr(tempfile, "tempdir", str(directory))
        yield base


@pytest.fixture(autouse=True)
def _nothing_left_behind(_own_directory: Path) -> Iterator[None]:
    """Fail a test that leaves child processes, mounts or loop devices behind, and take the last two away."""
    children = _children()
    mounts = _mounts_below(_own_directory)
    loops = _loops_below(_own_directory)
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    left = _children().keys() - children.keys()
    while left and time.monotonic() < deadline:
        _reap(left)
        time.sleep(0.01)
        left = _children().keys() - children.keys()
    leftovers = [f"process {pid}: {_command_line(pid).decode(errors='replace')}" for pid in sorted(left)]
    for point in _mounts_below(_own_directory):
        if point not in mounts:
            leftovers.append(f"mount {point}")
            libc.umount2(os.fsencode(point), MNT_DETACH)
    for loop in _loops_below(_own_directory):
        if loop not in loops:
            leftovers.append(f"loop device {loop}")
            subprocess.run(["losetup", "--detach", loop], check=False)
    if leftovers:
        pytest.fail(f"the test left behind: {', '.join(leftovers)}", pytrace=False)


def _reap(pids: set[int]) -> None:
    """Collect orphans that ended: they became our children only because we are the subreaper."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
