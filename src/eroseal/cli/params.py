"""What the options of several verbs share: kinds of values, and options that look the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

_SIZE: Final = re.compile(r"(\d{1,15})([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(slots=True)
class Settings:
    """What holds for the whole run.

    Args:
        debug: show tracebacks.
    """

    debug: bool = False


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, with binary units: 4096, 64K, 1M."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value)
        if match is None:
            self.fail(f"not a size: {value!r}, write bytes or 64K, 1M", param, ctx)
        return int(match[1]) << _UNITS[match[2].upper()]


class _Time(click.ParamType[int]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Unix seconds, or an ISO 8601 date and time, in UTC unless it says otherwise."""
        if isinstance(value, int):
            return value
        import datetime

        if value.isascii() and value.isdigit() and len(value) < 16:
            return int(value)
        try:
            parsed = datetime.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"not a time: {value!r}, write Unix seconds or 2026-01-31T12:00:00Z", param, ctx)
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=datetime.UTC)
        seconds = int(parsed.timestamp())
        if seconds < 0:
            self.fail(f"before 1970: {value!r}", param, ctx)
        return seconds


class _Hex(click.ParamType[bytes]):
    name = "hex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Bytes in hexadecimal digits."""
        if isinstance(value, bytes):
            return value
        try:
            return bytes.fromhex(value)
        except ValueError:
            self.fail(f"not hexadecimal digits: {value!r}", param, ctx)


class _Uuid(click.ParamType[bytes]):
    name = "uuid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The 16 bytes of a UUID in its usual spelling."""
        if isinstance(value, bytes):
            return value
        digits = value.replace("-", "")
        if len(digits) != 32 or not re.fullmatch(r"[0-9A-Fa-f-]+", value):
            self.fail(f"not a UUID: {value!r}", param, ctx)
        return bytes.fromhex(digits)


class _Reference(click.ParamType[str]):
    name = "ref"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is: the store package knows what references look like."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """File names, which single files are."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


REFERENCE: Final = _Reference()
SIZE: Final = _Size()
TIME: Final = _Time()
HEX: Final = _Hex()
UUID: Final = _Uuid()
FILE: Final = click.Path(path_type=Path, dir_okay=True)
"""A path as it is: whether it is there is for whoever opens it to say, in our words."""


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).debug = True


def debug_option(function: _F) -> _F:
    """`--debug`, which the program takes before the verb and after it."""
    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_debug,
        help="Show a traceback with an error.",
    )(function)


def verb(name: str, summary: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a verb of the program.

    Args:
        name: of the verb.
        summary: one sentence for the list of verbs; the function's docstring is the help text.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        settings = {"help_option_names": ["-h", "--help"]}
        command = click.command(name, short_help=summary, context_settings=settings)(debug_option(function))
        command.params.append(command.params.pop(0))  # what every verb has comes last
        return command

    return decorate


def gathered(
    function: _F,
    options: Sequence[Callable[[Any], Any]],
    *,
    argument: str,
    fields: Iterable[str],
    make: Callable[..., Any],
) -> _F:
    """Put a group of options on a verb, which gets them as one value.

    Args:
        function: of the verb.
        options: click's decorators, in the order in which the help shows them.
        argument: of the function, that takes the value.
        fields: names under which click gives what these options hold; those that it does not give are left out.
        make: makes the value; called with what was given by name.
    """

    def verb_function(**arguments: Any) -> Any:
        given = {field: arguments.pop(field) for field in fields if field in arguments}
        return function(**{argument: make(**given)}, **arguments)

    verb_function.__name__, verb_function.__doc__ = function.__name__, function.__doc__
    # Options that the verb itself has were put on its function before.
    verb_function.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        option(verb_function)
    return verb_function  # type: ignore[return-value]


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Work in N threads or processes.  [default: the number of processors]",
)
sync_option = click.option("--no-sync", is_flag=True, help="Do not wait until the disk has what was written.")
device_option = click.option(
    "--device",
    "devices",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="A data blob of an image in a single file; may repeat, in any order.",
)
reference_argument = click.argument("reference", metavar="REF", type=REFERENCE)
