"""Running the real program in a process of its own, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 120
ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
"""Runs a command as an ordinary user who owns what root owns: an interpreter below /root stays readable."""
NO_OVERRIDE = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)
"""Runs a command as a root whom file permissions bind."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave.

    Args:
        code: exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def last(self) -> str:
        """The last line on standard output."""
        return self.text.splitlines()[-1]

    @property
    def document(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says why it failed."""
        lines = [line for line in self.err.splitlines() if line.startswith("eroseal: error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("eroseal: error: ")


def command(*arguments: str | os.PathLike[str]) -> list[str]:
    return [sys.executable, "-m", "eroseal", *map(os.fspath, arguments)]


def eroseal(
    *arguments: str | os.PathLike[str],
    cwd: Path,
    code: int = 0,
    wrapper: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Outcome:
    """Run the program; fails the test unless it ends with `code`, and when it breaks the rules of its stderr."""
    done = subprocess.run(
        [*wrapper, *command(*arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONWARNINGS": "error"} | dict(environment or {}),
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        check=False,
        timeout=TIMEOUT,
        **options,
    )
    outcome = Outcome(done.returncode, done.stdout or b"", done.stderr.decode(errors="backslashreplace"))
    assert outcome.code == code, f"exit code {outcome.code}, not {code}: {outcome.err}\n{outcome.out[-2000:]!r}"
    check_manners(outcome)
    return outcome


def check_manners(outcome: Outcome) -> None:
    """Everything on stderr is the program's own, in lower case, without a full stop or a traceback."""
    assert "Traceback" not in outcome.err
    for line in outcome.err.splitlines():
        assert line.startswith("eroseal: "), line
        assert not line.endswith("."), line
        assert line.isprintable(), line
    if outcome.code:
        assert "eroseal: error: " in outcome.err or outcome.code == 1
