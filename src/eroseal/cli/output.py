r"""What goes where: results on stdout, everything else on stderr.

Lines on stderr begin with ``eroseal:``, are in lower case and have no full stop. What comes from images or file names
cannot drive the terminal: control characters are shown as ``\xNN``.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    import msgspec

_PATIENCE: Final = 0.5
"""Seconds that a command may take before a progress display is worth its start-up time."""
_INTERVAL: Final = 0.1
MAX_WARNINGS: Final = 20
"""Warnings of one kind that are shown; the rest is counted."""


def printable(text: str) -> str:
    """Text of unknown origin as it may be printed on a terminal."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in text
    )


def counted(number: int, what: str) -> str:
    """A number of things: "1 blob", "2 blobs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def result(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(text + "\n")


def document(struct: msgspec.Struct) -> None:
    """The result as one JSON document."""
    import json

    import msgspec

    # Not msgspec's own encoder: it refuses the lone surrogates that stand for bytes which are not UTF-8.
    result(json.dumps(msgspec.to_builtins(struct)))


def binary(data: bytes) -> None:
    """A piece of a result that is no text."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def note(text: str) -> None:
    """Something that is not the result."""
    sys.stdout.flush()
    sys.stderr.write(f"eroseal: {printable(text)}\n")


def warn(text: str) -> None:
    """Something that the user should look at."""
    note(f"warning: {text}")


def error(text: str) -> None:
    """Why the command failed."""
    sys.stderr.write(f"eroseal: error: {printable(text)}\n")


class Warnings:
    """Shows warnings up to a number, then counts them."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, text: str) -> None:
        self._count += 1
        if self._count <= MAX_WARNINGS:
            warn(text)

    def finish(self, total: int | None = None) -> None:
        """Say how many more there were.

        Args:
            total: of warnings, if some were left out before they came here.
        """
        more = (total or self._count) - MAX_WARNINGS
        if more > 0:
            note(f"and {more} more warnings")


class Progress:
    """A line about what is going on, on a terminal, once a command has taken a moment.

    Args:
        what: is being done.
        total: bytes or things that there are; None where nobody knows.
        unit: "bytes" or "files".
        quiet: show nothing.
    """

    def __init__(self, what: str, *, total: int | None = None, unit: str = "bytes", quiet: bool = False) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._shown = not quiet and sys.stderr.isatty()
        self._started = time.monotonic()
        self._next = self._started + _PATIENCE
        self._done = 0
        self._display: Any = None  # rich's Progress, whose name must not be imported here

    def add(self, amount: int) -> None:
        """So much more is done."""
        self.set(self._done + amount)

    def set(self, done: int, more: str = "") -> None:
        """So much is done in all.

        Args:
            done: bytes or things.
            more: shown behind it.
        """
        self._done = done
        if not self._shown or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _INTERVAL
        if self._display is None:
            self._display = self._start()
        self._display.update(self._display.task_ids[0], completed=done, more=more)

    def _start(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

        amount: Any = DownloadColumn(binary_units=True) if self._unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("eroseal: {task.description}"), BarColumn(), amount, TextColumn("{task.fields[more]}"))
        display = Progress(*columns, console=Console(stderr=True), transient=True)
        display.add_task(self._what, total=self._total, more="")
        display.start()
        return display

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._display is not None:
            self._display.stop()
