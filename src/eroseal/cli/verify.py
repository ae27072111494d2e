"""`eroseal verify`: a whole image, every block of every blob, and then its structure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import Opened, open_trusted
from eroseal.cli.params import FILE, REFERENCE, device_option, jobs_option, json_option, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.errors import (
    ErosealError,
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from eroseal.report.digest import BlobVerdict
    from eroseal.store.protocol import OpenBlob
    from eroseal.store.remote import RemoteOptions
    from eroseal.trust.blob import SelfConsistentBlob
    from eroseal.trust.scan import BadBlock

_SHOWN = 20
"""Bad blocks of one blob that are shown as text; the document has all."""


@verb("verify", "Verify a whole image, every block of it.")
@click.argument("reference", metavar="REF", type=REFERENCE, required=False)
@click.option("--blob", type=FILE, metavar="FILE", help="Verify this lone blob, under its --digest.")
@click.option("--keep-going", is_flag=True, help="List every bad block instead of stopping at the first.")
@device_option
@jobs_option
@json_option
@trust_options
@remote_options
def command(
    reference: str | None,
    blob: Path | None,
    keep_going: bool,
    devices: tuple[Path, ...],
    jobs: int | None,
    as_json: bool,
    trust: Trust,
    remote: RemoteOptions,
) -> int:
    """Verify the image REF: who vouches for it, every block of every blob, and its structure.

    Exit code 3 means that the image is refused, 1 that something is missing or cannot be checked.
    """
    run = _Run(keep_going=keep_going, jobs=jobs, as_json=as_json)
    if blob is not None:
        if reference is not None or devices:
            raise UsageError("--blob FILE takes the place of REF")
        return run.report(lambda: run.lone_blob(blob, trust))
    if reference is None:
        raise UsageError("nothing to verify", hint="give REF, or --blob FILE")
    return run.report(lambda: run.image(reference, trust, devices, remote))


class _Run:
    """One verification: what was found so far."""

    def __init__(self, *, keep_going: bool, jobs: int | None, as_json: bool) -> None:
        self._keep_going = keep_going
        self._jobs = jobs
        self._as_json = as_json
        self._trusted_by: str | None = None
        self._verdicts: list[BlobVerdict] = []
        self._errors: list[ErosealError] = []
        self._bytes = 0
        self._opened = False
        self._started = time.monotonic()
        self._summary = ""

    def report(self, work: Callable[[], None]) -> int:
        """Verify, and say what came out; gives the exit code."""
        try:
            work()
        except (VerificationError, FormatError) as error:
            self._errors.append(error)
        except (NotFoundError, UnsupportedError) as error:
            if not self._opened:  # there is nothing that a verdict could be about
                raise
            self._errors.append(error)
        code = max((found.exit_code for found in self._errors), default=0)
        seconds = time.monotonic() - self._started
        if self._as_json:
            from eroseal.report.digest import VerifyDocument

            output.document(
                VerifyDocument(
                    ok=code == 0, trusted_by=self._trusted_by, blobs=self._verdicts, seconds=round(seconds, 6)
                )
            )
        elif code == 0:
            output.result(self._summary)
        for found in self._errors:
            output.error(str(found))
        return code

    def image(self, reference: str, trust: Trust, devices: Sequence[Path], remote: RemoteOptions) -> None:
        """A whole image."""
        from eroseal.report.document import size_text
        from eroseal.trust.image import VerifiedImage

        with open_trusted(reference, trust, devices=devices, remote=remote) as opened:
            if opened.stored is None:
                raise FormatError("not sealed: there is nothing to verify", where=reference, hint="eroseal seal")
            self._opened = True
            image = opened.image
            if isinstance(image, VerifiedImage):
                self._trusted_by = image.trusted_by
            self._blobs(opened)
            if not self._errors:
                self._structure(opened)
                by = f"trusted by {_grounds(image)}" if isinstance(image, VerifiedImage) else "whole, but unverified"
                blobs = output.counted(len(self._verdicts), "blob")
                self._summary = f"ok: {image.digest}, {by}; {blobs}, {size_text(self._bytes)}"

    def lone_blob(self, path: Path, trust: Trust) -> None:
        """One blob, under a digest."""
        from eroseal.format.digest import Digest
        from eroseal.report.document import size_text
        from eroseal.store.single import open_sealed
        from eroseal.trust.image import open_blob

        if len(trust.digest) != 1 or trust != Trust(digest=trust.digest):
            raise UsageError("a lone blob is verified under one --digest and nothing else")
        expected = Digest.parse(trust.digest[0])
        with open_sealed(path) as source:
            self._opened = True
            self._trusted_by = "digest"
            self._scan(source, open_blob(source, expected))
        self._summary = f"ok: {expected}, trusted by digest; 1 blob, {size_text(self._bytes)}"

    def _blobs(self, opened: Opened) -> None:
        """The meta blob, then the data blobs; one that serves as several devices is read once."""
        from eroseal.trust.blob import SelfConsistentBlob

        stored, image = opened.stored, opened.image
        assert stored is not None
        assert isinstance(image.meta, SelfConsistentBlob)
        self._scan(stored.meta, image.meta)
        seen: dict[str, BlobVerdict] = {}
        for number, device in enumerate(image.devices):
            assert device.digest is not None
            name = str(device.digest)
            if name in seen:
                self._verdicts.append(seen[name])
                continue
            try:
                blob = image.device(number)
                assert isinstance(blob, SelfConsistentBlob)
                with contextlib.closing(stored.open_data(device.digest)) as source:
                    self._scan(source, blob)
            except (VerificationError, FormatError, NotFoundError) as error:
                if not self._verdicts or self._verdicts[-1].digest != name:
                    self._judge(name, ok=False)
                if not self._keep_going:
                    raise
                self._errors.append(error)
            seen[name] = self._verdicts[-1]

    def _scan(self, source: OpenBlob, blob: SelfConsistentBlob) -> None:
        from eroseal.trust.scan import scan_blob

        with output.Progress("verifying", total=blob.size, quiet=self._as_json) as progress:
            try:
                bad = scan_blob(source, blob, jobs=self._jobs, keep_going=self._keep_going, progress=progress.add)
            except IntegrityError as error:
                self._judge(str(blob.digest), ok=False, bad=_blamed(error, blob))
                raise
        self._bytes += blob.size
        self._judge(str(blob.digest), ok=not bad, bad=[(block.level, block.index, block.offset) for block in bad])
        if bad:
            self._list(blob, bad)

    def _list(self, blob: SelfConsistentBlob, bad: list[BadBlock]) -> None:
        """With --keep-going: each bad block on a line, and one error for the blob."""
        if not self._as_json:
            for block in bad[:_SHOWN]:
                output.result(f"bad: {blob.digest} level {block.level} byte {block.offset}: {block.what}")
            if len(bad) > _SHOWN:
                output.result(f"bad: {blob.digest} and {len(bad) - _SHOWN} more blocks")
        first = min(bad, key=lambda block: block.offset)
        count = output.counted(len(bad), "bad block")
        self._errors.append(IntegrityError(f"{count}, the first one here", step=5, blob=blob.name, offset=first.offset))

    def _judge(self, digest: str, *, ok: bool, bad: Sequence[tuple[int, int, int]] = ()) -> None:
        from eroseal.report.digest import BadBlockEntry, BlobVerdict

        entries = [BadBlockEntry(level=level, index=index, offset=offset) for level, index, offset in bad]
        self._verdicts.append(BlobVerdict(digest=digest, ok=ok, bad_blocks=entries))

    def _structure(self, opened: Opened) -> None:
        """What integrity does not say: that the image is one that a kernel may be shown."""
        from eroseal.image.check import check_image

        reader = opened.reader()
        with output.Progress("checking", unit="files", quiet=self._as_json) as progress:
            found = check_image(reader, progress=progress.set)
        warnings = output.Warnings()
        for text in found.warnings:
            warnings(text)
        warnings.finish(found.warnings_total)
        if found.compressed:
            output.warn(f"{output.counted(found.compressed, 'compressed file')}: where the data lies was not checked")


def _grounds(image: object) -> str:
    """Who vouches for an image, in a few words."""
    from eroseal.trust.image import VerifiedImage

    assert isinstance(image, VerifiedImage)
    decision = image.decision
    text = decision.trusted_by + (f" {decision.signer}" if decision.signer else "")
    if decision.statement is not None:
        text += f" as {decision.statement.name!r} version {decision.statement.version}"
    return text


def _blamed(error: IntegrityError, blob: SelfConsistentBlob) -> list[tuple[int, int, int]]:
    """The one bad block that an error names, as (level, index, offset)."""
    from eroseal.format.digest import BLOCK

    if error.offset is None or error.level is None:
        return []
    start = blob.seal.shape.level_offset(error.level) if error.level else 0
    return [(error.level, (error.offset - start) // BLOCK, error.offset)]
