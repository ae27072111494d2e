"""The program: its verbs, its errors and its exit codes.

Verbs are imported when they are called, and import what they need in turn, so that a short command is quick. Whatever
goes wrong ends here: one line on stderr that says what, where, why and what to do; a traceback only with `--debug`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not verified, 4 key not available or not authorised; 128 and the
signal's number when a signal ended it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

import click

from eroseal import __version__
from eroseal.cli import output
from eroseal.cli.params import Settings, debug_option
from eroseal.errors import ErosealError

VERBS: Final = (
    "build",
    "build-many",
    "seal",
    "sign",
    "export",
    "verify",
    "digest",
    "ls",
    "cat",
    "stat",
    "unpack",
    "inspect",
    "diff",
    "copy",
    "fsck",
    "gc",
    "demo",
)
"""Every verb; `eroseal.cli.VERB.command` does it, with underscores for hyphens."""
_COMPLETE: Final = "_EROSEAL_COMPLETE"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE: Final = 3
"""Signals that the clean-up after a first one sits out: an impatient second Ctrl-C must not leave files behind."""


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Verbs(click.Group):
    """The table of verbs, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the manual."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"eroseal.cli.{cmd_name.replace('-', '_')}").command
        return command


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    output.result(f"eroseal {__version__}")
    if ctx.params.get("verbose"):
        from eroseal.crypto.blocks import native_kernel

        kernel = native_kernel()
        output.result(f"hashing: {kernel + ' (native)' if kernel else 'hashlib (no native core)'}")
        output.result(f"python: {sys.version.split()[0]}")
    ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--verbose", is_flag=True, is_eager=True, expose_value=True, help="With --version: what it runs on.")
@click.option("--version", is_flag=True, expose_value=False, callback=_show_version, help="Show the version.")
@debug_option
def cli(verbose: bool) -> None:
    """Sealed EROFS images: verified, signed, deduplicated."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; gives its exit code.

    Args:
        arguments: without the program's name; None takes the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = Settings()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names are bytes, and come out as they are
    try:
        _handle_signals()
        code = _run(arguments, settings)
        sys.stdout.flush()
        gc.freeze()  # the process ends: the collector need not walk the tree of a whole image once more
    except BaseException as error:  # nothing is lost: everything is either reported or raised again
        with contextlib.suppress(KeyboardInterrupt):  # the message may be lost, the exit code not
            _remove_unfinished()
            if settings.debug and not isinstance(error, SystemExit):
                import traceback

                traceback.print_exc()
            return _report(error)
        return 130
    return code


def _run(arguments: Sequence[str], settings: Settings) -> int:
    if _COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "eroseal", _COMPLETE, os.environ[_COMPLETE])
    try:
        with cli.make_context("eroseal", list(arguments), obj=settings) as ctx:
            code = cli.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return code if isinstance(code, int) else 0


def _remove_unfinished() -> None:
    """Remove files that were made a moment before a signal came, when nothing was in charge of them yet."""
    atomic = sys.modules.get("eroseal.store.atomic")
    if atomic is not None:
        atomic.remove_unfinished()


def _report(error: BaseException) -> int:
    """Say what went wrong; gives the exit code."""
    match error:
        case Stopped():
            for number in _SIGNALS:  # all is cleaned up: one more must not change the exit code
                signal.signal(number, signal.SIG_IGN)
            output.error("interrupted" if error.number == signal.SIGINT else "terminated")
            code = 128 + error.number
        case KeyboardInterrupt() | click.exceptions.Abort():
            output.error("interrupted")
            code = 130
        case BrokenPipeError():
            _forget_output()
            code = 128 + signal.SIGPIPE
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.ctx.get_help(), err=True)
            code = 2
        case click.ClickException():
            output.error(_click_text(error))
            code = error.exit_code
        case ErosealError():
            output.error(str(error))
            code = error.exit_code
        case OSError():
            _forget_output()
            where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            output.error(f"{where}{(error.strerror or str(error)).lower()}")
            code = 1
        case MemoryError():
            output.error("out of memory")
            code = 1
        case SystemExit():
            raise error
        case _:
            output.error(f"internal error: {type(error).__name__}: {error} (run it again with --debug and report it)")
            code = 1
    return code


def _click_text(error: click.ClickException) -> str:
    """Click's message in our words: lower case, no full stop, and where to look."""
    text = error.format_message().rstrip(".").replace("\n", " ")
    if text[1:2].islower() or text[1:2] == " ":
        text = text[:1].lower() + text[1:]
    ctx = getattr(error, "ctx", None)
    return f"{text} (see {ctx.command_path} --help)" if ctx is not None else text


def _forget_output() -> None:
    """Nobody reads stdout, or it cannot be written: the flush at exit must not complain about it again."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _handle_signals() -> None:
    """SIGTERM and SIGHUP end the program as Ctrl-C does: by an exception, so that temporary files go."""
    received = 0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1 or received > _PATIENCE:
            raise Stopped(number)

    for number in _SIGNALS:
        # Where the caller ignores a signal (nohup, background jobs of scripts), so do we.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
