"""On a terminal: progress while something takes its time, passphrases asked for, and nothing of it elsewhere."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import People, Samples

DEADLINE = 60.0


IMPATIENT = """
import sys
from eroseal.cli import main, output
output._PATIENCE = 0
sys.exit(main.main(sys.argv[1:]))
"""


def on_terminal(place: Path, *arguments: str, answer: bytes = b"") -> tuple[int, bytes, str]:
    """Run the program with a terminal as stdin and stderr; gives exit code, stdout and what the terminal showed."""
    master, slave = pty.openpty()
    program = [sys.executable, "-c", IMPATIENT, *arguments]
    process = subprocess.Popen(program, cwd=place, stdin=slave, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + DEADLINE
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 65536)
                if answer and b"passphrase" in shown:
                    os.write(master, answer)
                    answer = b""
    os.close(master)
    out, _ = process.communicate(timeout=DEADLINE)
    return process.returncode, out, shown.decode()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("build", "{tree}", "new.erofs"), "reading"),
        (("verify", "app.erofs", "--insecure"), "verifying"),
        (("unpack", "app.erofs", "out", "--insecure"), "unpacking"),
        (("fsck", "store"), "checking"),
        (("export", "app.erofs", "out", "--insecure"), "verifying"),
    ],
)
def test_progress_is_shown_and_taken_away(place: Path, samples: Samples, arguments: tuple[str, ...], what: str) -> None:
    code, _, shown = on_terminal(place, *(part.format(tree=samples.tree) for part in arguments))
    assert code == 0, shown
    assert what in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0  # the cursor comes back


def test_documents_come_without_progress(place: Path, samples: Samples) -> None:
    """A script that asks for a document gets nothing else."""
    code, out, shown = on_terminal(place, "verify", "app.erofs", "--digest", samples.file_digest, "--json")
    assert (code, shown) == (0, "")
    assert out.startswith(b"{")


def test_no_archive_is_typed(place: Path, samples: Samples) -> None:
    code, out, shown = on_terminal(place, "build", "-", "dir:new:app")
    assert (code, out) == (2, b"")
    assert "standard input is a terminal, not an archive (send one through a pipe, or name its file)" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("build", "-", "dir:new:app"), "is closed, not an archive"), (("build-many", "-"), "is closed")],
)
def test_a_standard_input_that_is_closed(place: Path, arguments: tuple[str, ...], words: str) -> None:
    script = shlex.join([sys.executable, "-m", "eroseal", *arguments]) + " <&-"
    done = subprocess.run(
        ["sh", "-c", script], cwd=place, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"eroseal: error: standard input {words}")


def test_passphrase_is_asked_for_and_not_shown(place: Path, people: People) -> None:
    arguments = ("sign", "app.erofs", "--ed25519", people.key("locked"))
    code, _, shown = on_terminal(place, *arguments, answer=b"open sesame\n")
    assert code == 0, shown
    assert f"passphrase of {people.key('locked')}: " in shown
    assert "sesame" not in shown
    code, _, shown = on_terminal(place, *arguments, answer=b"let me in\n")
    assert code == 1
    assert "wrong passphrase" in shown
    assert "let me in" not in shown
