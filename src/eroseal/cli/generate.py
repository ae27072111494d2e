"""Manual pages, shell completion and JSON schemas, made from the commands and types themselves.

``python -m eroseal.cli.generate docs/`` writes them; the same code gives the same bytes everywhere, and a test holds
what is committed against it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import click

from eroseal import __version__
from eroseal.cli.main import VERBS, cli

_NO_DATE: Final = " "
_EXIT_STATUS: Final = r"""
.SH EXIT STATUS
.TP
\fB0\fP
Done.
.TP
\fB1\fP
Failed: something is missing, cannot be read or written, or is in the way.
.TP
\fB2\fP
Wrong usage.
.TP
\fB3\fP
Not verified: bytes that are not what they should be, or nobody who is trusted vouches for them.
.TP
\fB4\fP
A key is not available, or its use is not authorised.
""".lstrip()
_REFERENCES: Final = r"""
.SH REFERENCES
An image REF is \fBdir:STORE:NAME\fP, an image in the store in the directory STORE, or the path of a single sealed file.
.SH TRUST
Whoever reads an image says on what grounds: a digest (\fB\-\-digest\fP), a signer's certificate (\fB\-\-cert\fP), a CA
(\fB\-\-ca\fP), an Ed25519 key (\fB\-\-ed25519\fP), a policy file (\fB\-\-policy\fP), or none (\fB\-\-insecure\fP).
""".lstrip()


def generate() -> Iterator[tuple[str, str]]:
    """Every file as (path below the documents' directory, text)."""
    root = click.Context(cli, info_name="eroseal")
    commands = {verb: _command(root, verb) for verb in VERBS}
    # The program's own group imports verbs one by one; the page about it needs them all.
    group = click.Group("eroseal", commands=commands, params=list(cli.params), help=cli.help)
    page = _man_page(click.Context(group, info_name="eroseal"))
    yield "man/eroseal.1", page + _REFERENCES + _EXIT_STATUS
    for verb, command in commands.items():
        yield f"man/eroseal-{verb}.1", _man_page(click.Context(command, info_name=verb, parent=root))
    yield from _completions()
    for name, schema in _schemas().items():
        yield f"schemas/{name}.json", json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write all files below a directory; gives the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m eroseal.cli.generate DIRECTORY\n")
        return 2
    for name, text in generate():
        path = Path(arguments[0], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def _command(root: click.Context, verb: str) -> click.Command:
    command = cli.get_command(root, verb)
    assert command is not None
    return command


def _man_page(context: click.Context) -> str:
    # A tool of development without type information, so it is not imported by name.
    generate_man_page: Any = importlib.import_module("click_man.core").generate_man_page
    # Taken as it is: a command without one would get it from a function that click no longer wants to be called.
    context.command.short_help = context.command.short_help or context.command.help
    context.command.help = inspect.cleandoc(context.command.help or "")
    page: str = generate_man_page(context, version=__version__, date=_NO_DATE)
    return page


def _completions() -> Iterator[tuple[str, str]]:
    from click.shell_completion import get_completion_class

    for shell in ("bash", "zsh", "fish"):
        kind = get_completion_class(shell)
        assert kind is not None
        script = kind(cli, {}, "eroseal", "_EROSEAL_COMPLETE")
        # Not source(): bash's runs bash, to see that it is new enough.
        yield f"completion/eroseal.{shell}", (script.source_template % script.source_vars()).strip() + "\n"


def _schemas() -> dict[str, dict[str, Any]]:
    import msgspec

    from eroseal.report.schemas import DOCUMENTS
    from eroseal.store.document import ImageJson
    from eroseal.store.fsck import StoreReport
    from eroseal.store.lease_places import LeaseJson

    kinds: list[Any] = [*DOCUMENTS, StoreReport, ImageJson, LeaseJson]
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {_schema_name(kind): {**dialect, **msgspec.json.schema(kind)} for kind in kinds}


def _schema_name(kind: Any) -> str:
    """`digest` of the type whose field `schema` is always `eroseal.digest/1`."""
    (schema,) = get_args(get_type_hints(kind)["schema"])
    return str(schema).removeprefix("eroseal.").partition("/")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
