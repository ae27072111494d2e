"""`eroseal verify`: a whole image, every block of every blob, and then its structure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import Layer, Opened, open_trusted
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
    from eroseal.format.digest import Digest, TreeParams
    from eroseal.image.check import CheckResult
    from eroseal.report.digest import BlobVerdict
    from eroseal.store.protocol import OpenBlob
    from eroseal.store.remote import RemoteOptions
    from eroseal.trust.blob import SelfConsistentBlob
    from eroseal.trust.policy import TrustDecision
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
    run = _Run(keep_going=keep_going, jobs=jobs, parallel=remote.parallel, as_json=as_json)
    if blob is not None:
        if reference is not None or devices:
            raise UsageError("--blob FILE takes the place of REF")
        return run.report(lambda: run.lone_blob(blob, trust))
    if reference is None:
        raise UsageError("nothing to verify", hint="give REF, or --blob FILE")
    return run.report(lambda: run.image(reference, trust, devices, remote))


class _Run:
    """One verification: what was found so far."""

    def __init__(self, *, keep_going: bool, jobs: int | None, parallel: int, as_json: bool) -> None:
        self._keep_going = keep_going
        self._jobs = jobs
        self._parallel = parallel
        self._as_json = as_json
        self._trusted_by: str | None = None
        self._verdicts: list[BlobVerdict] = []
        self._judged: dict[tuple[Digest, int, TreeParams], BlobVerdict] = {}
        self._scanned: dict[Digest, BlobVerdict] = {}
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

        with open_trusted(reference, trust, devices=devices, remote=remote) as opened:
            if opened.stored is None:
                raise FormatError("not sealed: there is nothing to verify", where=reference, hint="eroseal seal")
            self._opened = True
            decision = opened.decision
            if decision is not None:
                self._trusted_by = decision.trusted_by
            layers = opened.layers
            for layer in layers:
                self._blobs(layer)
            if not self._errors:
                self._structure(opened)
                by = "whole, but unverified" if decision is None else f"trusted by {_grounds(decision)}"
                blobs = output.counted(len(self._verdicts), "blob")
                if opened.is_stack:
                    blobs = f"{output.counted(len(layers), 'layer')}, {output.counted(len(self._scanned), 'blob')}"
                self._summary = f"ok: {opened.image.digest}, {by}; {blobs}, {size_text(self._bytes)}"

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

    def _blobs(self, layer: Layer) -> None:
        """The meta blob, then the data blobs; one that serves as several devices or layers is read once."""
        from eroseal.trust.blob import SelfConsistentBlob

        stored, meta = layer.stored, layer.image.meta
        assert isinstance(meta, SelfConsistentBlob)
        if not self._known(meta):
            self._scan(stored.meta, meta)
        for number, device in enumerate(layer.image.devices):
            digest = device.digest
            assert digest is not None
            # What is asked of a blob differs between layers that share it, not only its digest.
            demand = (digest, device.size, meta.params)
            if demand in self._judged:
                self._verdicts.append(self._judged[demand])
                continue
            before = len(self._verdicts)
            try:
                blob = layer.image.device(number)
                assert isinstance(blob, SelfConsistentBlob)
                if not self._known(blob):
                    with contextlib.closing(stored.open_data(digest)) as source:
                        self._scan(source, blob)
            except (VerificationError, FormatError, NotFoundError) as error:
                if len(self._verdicts) == before:
                    self._judge(str(digest), ok=False)
                if not self._keep_going:
                    raise
                self._errors.append(error)
            self._judged[demand] = self._verdicts[-1]

    def _known(self, blob: SelfConsistentBlob) -> bool:
        """Whether a blob was scanned before; if so, what was found is said again."""
        verdict = self._scanned.get(blob.digest)
        if verdict is not None:
            self._verdicts.append(verdict)
        return verdict is not None

    def _threads(self, source: OpenBlob) -> int | None:
        """What is read from a disk is a matter of processors, what comes from afar of latency."""
        return self._jobs if self._jobs is not None or hasattr(source, "fileno") else self._parallel

    def _scan(self, source: OpenBlob, blob: SelfConsistentBlob) -> None:
        from eroseal.trust.scan import scan_blob

        with output.Progress("verifying", total=blob.size, quiet=self._as_json) as progress:
            try:
                bad = scan_blob(
                    source, blob, jobs=self._threads(source), keep_going=self._keep_going, progress=progress.add
                )
            except IntegrityError as error:
                self._judge(str(blob.digest), ok=False, bad=_blamed(error, blob))
                raise
        self._bytes += blob.size
        self._judge(str(blob.digest), ok=not bad, bad=[(block.level, block.index, block.offset) for block in bad])
        self._scanned[blob.digest] = self._verdicts[-1]
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
        compressed = total = 0
        texts: list[str] = []
        with output.Progress("checking", unit="files", quiet=self._as_json) as progress:
            for label, found in _checked(opened, progress):
                texts += [label + text for text in found.warnings]
                total += found.warnings_total
                compressed += found.compressed
        warnings = output.Warnings()
        for text in texts:
            warnings(text)
        warnings.finish(total)
        if compressed:
            output.warn(f"{output.counted(compressed, 'compressed file')}: where the data lies was not checked")


def _checked(opened: Opened, progress: output.Progress) -> Iterator[tuple[str, CheckResult]]:
    """The structure of each image, with what to call it, and of the tree that a stack's layers make together."""
    from eroseal.image.check import check_image

    if not opened.is_stack:
        yield "", check_image(opened.layers[0].reader(), progress=progress.set)
        return
    done = 0
    layers = {layer.image.digest: (number, layer) for number, layer in enumerate(opened.layers, 1)}
    for number, layer in layers.values():

        def advance(count: int, before: int = done) -> None:
            progress.set(before + count)

        try:
            found = check_image(layer.reader(), progress=advance)
        except (FormatError, UnsupportedError) as error:
            where = f"layer {number}" + (f", {error.where}" if error.where else "")
            raise type(error)(error.what, where=where, hint=error.hint) from error
        done += found.inodes
        yield f"layer {number}: ", found
    for _ in opened.reader().walk():
        progress.add(1)


def _grounds(decision: TrustDecision) -> str:
    """Who vouches for an image, in a few words."""
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
