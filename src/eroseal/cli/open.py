"""Opening images for verbs: a reference and the grounds for trust in, a reader of verified bytes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from eroseal.cli import output
from eroseal.cli.trust import Trust
from eroseal.errors import AuthenticityError, IntegrityError
from eroseal.readat import FileAt
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    from eroseal.image.reader import ImageReader
    from eroseal.store.protocol import StoredImage
    from eroseal.trust.image import UnverifiedImage, VerifiedImage
    from eroseal.trust.policy import Policy

_DEFAULTS: Final = RemoteOptions()


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that a verb reads.

    Args:
        reference: as the user wrote it.
        image: verified, or unverified because the user said so.
        stored: where it lies; None for an image without a seal.
    """

    reference: str
    image: VerifiedImage | UnverifiedImage
    stored: StoredImage | None

    def reader(self) -> ImageReader:
        """A reader of the image's files; raises FormatError, UnsupportedError."""
        from eroseal.image.reader import ImageReader

        return ImageReader(self.image)


@contextlib.contextmanager
def open_trusted(
    reference: str, trust: Trust, *, devices: Sequence[Path] = (), remote: RemoteOptions = _DEFAULTS
) -> Iterator[Opened]:
    """Open an image that the trust options accept; with `--insecure`, any.

    Args:
        reference: as the user wrote it.
        trust: the options for this reference.
        devices: files that hold data blobs of an image in a single file.
        remote: how servers are spoken to.

    Raises:
        UsageError: no source of trust.
        ErosealError: there is no such image, or it is refused.
    """
    policy = trust.policy_for(reference)
    if policy is None:
        with open_unverified(reference, devices, remote=remote) as opened:
            sealed = opened.stored is not None
            output.warn("not verified: --insecure" if sealed else "not sealed, so nothing is checked: --insecure")
            yield opened
        return
    from eroseal.store.resolve import resolve

    with (
        resolve(reference, data_files=devices, remote=remote) as stored,
        _vouched(reference, stored, policy) as image,
    ):
        yield Opened(reference, image, stored)


def _vouched(reference: str, stored: StoredImage, policy: Policy) -> VerifiedImage:
    """The image if the policy accepts it; a refusal names it as the user did."""
    from eroseal.trust.image import open_image

    try:
        return open_image(stored.meta, policy=policy, record=stored.record, open_data=stored.open_data)
    except AuthenticityError as error:
        raise AuthenticityError(error.what, where=error.where or reference, hint=error.hint) from error


@contextlib.contextmanager
def open_consistent(
    reference: str, *, devices: Sequence[Path] = (), durable: bool = True, remote: RemoteOptions = _DEFAULTS
) -> Iterator[tuple[StoredImage, UnverifiedImage]]:
    """Open an image that agrees with itself: every blob is the one that its name says, but nobody vouches for it.

    Raises:
        ErosealError: there is no such image, or it is not sealed.
    """
    from eroseal.store.resolve import resolve
    from eroseal.trust.image import open_self_consistent_image

    with (
        resolve(reference, data_files=devices, durable=durable, remote=remote) as stored,
        open_self_consistent_image(stored.meta, open_data=stored.open_data) as image,
    ):
        yield stored, image


@contextlib.contextmanager
def open_unverified(
    reference: str, devices: Sequence[Path] = (), *, remote: RemoteOptions = _DEFAULTS
) -> Iterator[Opened]:
    """Open whatever is there: a sealed image as self-consistent, a bare one as it is."""
    if _is_bare(reference):
        with contextlib.ExitStack() as stack:
            from eroseal.trust.image import UnverifiedImage

            files = [stack.enter_context(FileAt(path)) for path in (Path(reference), *devices)]
            yield Opened(reference, stack.enter_context(UnverifiedImage(files[0], files[1:])), None)
        return
    with open_consistent(reference, devices=devices, remote=remote) as (stored, image):
        yield Opened(reference, image, stored)


def _is_bare(reference: str) -> bool:
    """Whether a reference is a file without a seal."""
    from eroseal.store.reference import FileReference, parse_reference
    from eroseal.trust.locate import find_seal

    parsed = parse_reference(reference)
    if not isinstance(parsed, FileReference):
        return False
    with FileAt(parsed.path) as file:
        try:
            find_seal(file)
        except IntegrityError:
            return True
    return False
