"""Opening images for verbs: a reference and the grounds for trust in, a reader of verified bytes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from eroseal.cli import output
from eroseal.cli.trust import Trust
from eroseal.errors import AuthenticityError, FormatError, IntegrityError
from eroseal.readat import FileAt
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    from eroseal.format.record import RecordEntry
    from eroseal.image.reader import ImageReader
    from eroseal.image.view import TreeView
    from eroseal.store.protocol import StoredImage
    from eroseal.store.resolve import StoredStack
    from eroseal.trust.image import UnverifiedImage, VerifiedImage
    from eroseal.trust.policy import Policy, TrustDecision
    from eroseal.trust.stack import LayerSource, UnverifiedStack, VerifiedStack

_DEFAULTS: Final = RemoteOptions()


@dataclass(frozen=True, slots=True)
class Layer:
    """One image that was opened: all that there is, or a layer of a stack.

    Args:
        stored: where it lies.
        image: verified, or unverified because the user said so.
    """

    stored: StoredImage
    image: VerifiedImage | UnverifiedImage

    def reader(self) -> ImageReader:
        """A reader of this image alone; raises FormatError, UnsupportedError."""
        from eroseal.image.reader import ImageReader

        return ImageReader(self.image)


@dataclass(frozen=True, slots=True)
class Opened:
    """An image or stack that a verb reads.

    Args:
        reference: as the user wrote it.
        image: verified, or unverified because the user said so.
        stored: where it lies; None for an image without a seal.
    """

    reference: str
    image: VerifiedImage | UnverifiedImage | VerifiedStack | UnverifiedStack
    stored: StoredStack | None

    @property
    def is_stack(self) -> bool:
        """Whether it has a stack digest, be it of a single layer."""
        return self.stored is not None and self.stored.is_stack

    @property
    def record(self) -> tuple[RecordEntry, ...]:
        """Entries of its image record."""
        return () if self.stored is None else self.stored.record

    @property
    def decision(self) -> TrustDecision | None:
        """Why it is trusted; None if it is not verified."""
        from eroseal.trust.image import VerifiedImage
        from eroseal.trust.stack import VerifiedStack

        return self.image.decision if isinstance(self.image, VerifiedImage | VerifiedStack) else None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The images that it consists of, the lowest first; one unless it is a stack.

        Raises:
            FormatError: it is not sealed.
        """
        if self.stored is None:
            raise FormatError("not sealed", where=self.reference, hint="eroseal seal")
        return tuple(map(Layer, self.stored.layers, self._images))

    def reader(self) -> TreeView:
        """A reader of the files, of a stack as a mount shows them; raises FormatError, UnsupportedError."""
        if self.is_stack:
            from eroseal.image.stack import StackReader

            return StackReader(self._images)
        from eroseal.image.reader import ImageReader

        return ImageReader(self._images[0])

    @property
    def _images(self) -> tuple[VerifiedImage | UnverifiedImage, ...]:
        from eroseal.trust.image import UnverifiedImage, VerifiedImage

        image = self.image
        return (image,) if isinstance(image, VerifiedImage | UnverifiedImage) else image.layers


@contextlib.contextmanager
def open_trusted(
    reference: str, trust: Trust, *, devices: Sequence[Path] = (), remote: RemoteOptions = _DEFAULTS
) -> Iterator[Opened]:
    """Open an image or stack that the trust options accept; with `--insecure`, any.

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
    from eroseal.store.resolve import resolve_layers

    with (
        resolve_layers(reference, data_files=devices, remote=remote) as stored,
        _vouched(reference, stored, policy) as image,
    ):
        yield Opened(reference, image, stored)


def _vouched(reference: str, stored: StoredStack, policy: Policy) -> VerifiedImage | VerifiedStack:
    """The image or stack if the policy accepts it; a refusal names it as the user did."""
    from eroseal.trust.image import open_image
    from eroseal.trust.stack import open_stack

    try:
        if stored.is_stack:
            return open_stack(_sources(stored), policy=policy, record=stored.record)
        (only,) = stored.layers
        return open_image(only.meta, policy=policy, record=stored.record, open_data=only.open_data)
    except AuthenticityError as error:
        raise AuthenticityError(error.what, where=error.where or reference, hint=error.hint) from error


@contextlib.contextmanager
def open_consistent(
    reference: str, *, devices: Sequence[Path] = (), durable: bool = True, remote: RemoteOptions = _DEFAULTS
) -> Iterator[Opened]:
    """Open an image or stack that agrees with itself: every blob is the one that its name says, but nobody vouches.

    Raises:
        ErosealError: there is no such image, or it is not sealed.
    """
    from eroseal.store.resolve import resolve_layers

    with (
        resolve_layers(reference, data_files=devices, durable=durable, remote=remote) as stored,
        _consistent(stored) as image,
    ):
        yield Opened(reference, image, stored)


def _consistent(stored: StoredStack) -> UnverifiedImage | UnverifiedStack:
    from eroseal.trust.image import open_self_consistent_image
    from eroseal.trust.stack import open_self_consistent_stack

    if stored.is_stack:
        return open_self_consistent_stack(_sources(stored))
    (only,) = stored.layers
    return open_self_consistent_image(only.meta, open_data=only.open_data)


def _sources(stored: StoredStack) -> list[LayerSource]:
    """The layers as the document lists them, which the opener does not believe."""
    from eroseal.trust.stack import LayerSource

    found = []
    for layer in stored.layers:
        assert layer.document is not None
        found.append(LayerSource(layer.document.image, layer.meta, layer.open_data))
    return found


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
    with open_consistent(reference, devices=devices, remote=remote) as opened:
        yield opened


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
