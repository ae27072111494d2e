"""Taking files out of a directory while others use it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from eroseal.store.atomic import is_abandoned, is_temporary, remove_abandoned, restore


def file_status(path: Path) -> os.stat_result | None:
    """What lies there, links not followed; None for what is gone by now or cannot be looked at."""
    try:
        return os.lstat(path)
    except OSError:
        return None


def plain_status(path: Path) -> os.stat_result | None:
    """The same, of a plain file alone."""
    status = file_status(path)
    return status if status is not None and stat.S_ISREG(status.st_mode) else None


def move_out(path: Path, trash: Path, condemned: Callable[[float], bool]) -> bool:
    """Move a file away, unless somebody needs it.

    Args:
        path: of the file.
        trash: its new name, in a directory on the same file system that nobody else looks into.
        condemned: whether it goes, by its modification time; asked again after it moved, because a writer may have
            found it, and made it young, a moment before. Then it goes back.

    Returns:
        Whether it is gone. OSError passes through.
    """
    status = plain_status(path)
    if status is None or not condemned(status.st_mtime):
        return False
    try:
        os.rename(path, trash)
    except FileNotFoundError:
        return False
    if condemned(os.lstat(trash).st_mtime):
        return True
    restore(trash, path)
    return False


def sweep_abandoned(places: Iterable[Path], *, dry_run: bool) -> list[str]:
    """Remove the temporary files in some directories whose writers are gone; gives their paths, and never raises."""
    if not dry_run:
        return [str(path) for place in places for path in remove_abandoned(place)]
    found = []
    for place in places:
        with contextlib.suppress(OSError):
            names = sorted(filter(is_temporary, os.listdir(place)))
            found += [str(place / name) for name in names if is_abandoned(place / name)]
    return found
