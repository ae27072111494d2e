"""`eroseal demo`: the whole story on a real directory, each step by the program itself.

Every command that is shown is run, in a process of its own, and what is shown below it is what it printed. A step that
does not end as it should ends the demo with exit code 1.
"""

from __future__ import annotations

import filecmp
import os
import shlex
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

from eroseal.cli import output
from eroseal.cli.params import FILE, verb
from eroseal.errors import ErosealError, SourceError

_EXCLUDED = ("site-packages", "dist-packages", "__pycache__", "test")
_NAME = "demo"


@verb("demo", "Show it all on a directory of this machine.")
@click.option(
    "--source",
    type=FILE,
    metavar="DIR",
    help="What to build an image of.  [default: this Python's standard library]",
)
def command(source: Path | None) -> None:
    """Build, sign, verify, unpack and mount an image, damage it, and see it refused.

    Everything happens in a temporary directory, which is removed at the end.
    """
    excluded = () if source is not None else _EXCLUDED
    source = source or Path(sysconfig.get_path("stdlib"))
    if not source.is_dir():
        raise SourceError("is not a directory", where=str(source))
    with tempfile.TemporaryDirectory(prefix="eroseal-demo-") as directory:
        _Demo(Path(directory), source.resolve(), excluded).run()


class _Demo:
    """The steps, in one temporary directory that is the commands' working directory."""

    def __init__(self, place: Path, source: Path, excluded: Sequence[str]) -> None:
        self._place = place
        self._source = source
        self._excluded = excluded
        self._reference = f"dir:store:{_NAME}"
        self._trust = ["--cert", "cert.pem", "--name", _NAME, "--min-version", "1"]

    def run(self) -> None:
        """All steps; raises ErosealError when one does not end as it should."""
        from eroseal.crypto.signers import make_throwaway_identity

        self._say("a key and a certificate to try things with, valid for a day: key.pem, cert.pem")
        make_throwaway_identity(self._place, "eroseal demo", time=int(time.time()))
        exclude = [part for name in self._excluded for part in ("--exclude", name)]
        self._say("a directory becomes a sealed image: a meta blob and a data blob, each with its Merkle tree")
        digest = self._run(["build", str(self._source), self._reference, *exclude])[-1]
        self._say("sign it: the statement names the image by its digest, with a name and a version")
        signing = ["--key", "key.pem", "--cert", "cert.pem", "--name", _NAME, "--version", "1"]
        self._run(["sign", self._reference, *signing, "--expect", digest])
        self._say("verify it: the signer, every block of every blob, and the structure")
        self._run(["verify", self._reference, *self._trust])
        self._say("read a part of it: only the blocks that are needed, each verified first")
        self._run(["ls", self._reference, *self._trust, "--long"], lines=5)
        self._say("unpack it, and compare with the source")
        self._run(["unpack", self._reference, "unpacked", *self._trust])
        self._compare(self._place / "unpacked")
        self._mount()
        self._damage(digest)
        output.result("the demo went as it should")

    def _say(self, text: str) -> None:
        output.result(f"\n# {text}")
        sys.stdout.flush()

    def _run(self, arguments: list[str], *, code: int = 0, lines: int | None = None) -> list[str]:
        """Run the program, show the command and what it printed; gives the lines on stdout."""
        output.result(f"$ eroseal {shlex.join(arguments)}")
        done = subprocess.run(
            [sys.executable, "-m", "eroseal", *arguments],
            cwd=self._place,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="backslashreplace",
        )
        found = done.stdout.splitlines()
        shown = found if lines is None else found[:lines]
        for line in [*shown, *([f"... and {len(found) - len(shown)} more lines"] if len(shown) < len(found) else [])]:
            output.result(output.printable(line))
        for line in done.stderr.splitlines():
            output.result(output.printable(line))
        if done.returncode != code:
            raise ErosealError(f"eroseal {arguments[0]} ended with exit code {done.returncode}, not {code}")
        if code:
            output.result(f"(exit code {code})")
        sys.stdout.flush()
        return found

    def _compare(self, tree: Path) -> None:
        """Hold every file of a tree against the source."""
        count = 0
        for directory, _, names in os.walk(tree):
            for name in names:
                path = Path(directory, name)
                original = self._source / path.relative_to(tree)
                if path.is_symlink():
                    same = original.is_symlink() and path.readlink() == original.readlink()
                else:
                    same = not stat.S_ISREG(path.stat().st_mode) or filecmp.cmp(path, original, shallow=False)
                if not same:
                    raise ErosealError("differs from the source", where=str(path))
                count += 1
        output.result(f"{count} files are the same")

    def _mount(self) -> None:
        """Have the kernel mount the blobs as they are, where it can and may."""
        from eroseal.cli.demo_mount import Mounted, obstacle

        self._say("the kernel mounts the sealed blobs as they are")
        reason = obstacle()
        meta, *devices = self._blobs()
        if reason is None:
            try:
                with Mounted(meta, devices, self._place / "mounted") as tree:
                    output.result(f"mounted with {len(devices)} data blob as device")
                    self._compare(tree)
                return
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
        output.result(f"skipped: {reason}")

    def _blobs(self) -> list[Path]:
        """The files of the meta blob and the data blobs."""
        from eroseal.store.local import LocalStore

        store = LocalStore.open(self._place / "store")
        document, _ = store.image(_NAME)
        return [store.blob_path(blob.digest) for blob in document.blobs]

    def _damage(self, digest: str) -> None:
        blob = self._blobs()[-1]
        offset = blob.stat().st_size // 2
        self._say(f"flip one bit in the middle of the data blob (byte {offset}): it is refused")
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        self._run(["verify", self._reference, *self._trust], code=3)
        self._say("whoever pins another digest is refused before anything is read")
        wrong = digest[:-1] + ("0" if digest[-1] != "0" else "1")
        self._run(["ls", self._reference, "--digest", wrong], code=3)
        output.result()
