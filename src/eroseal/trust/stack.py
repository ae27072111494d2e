"""Opening stacks of images: one digest vouches for all layers and their order.

Whoever knows a stack lists its layers with their digests, and is not believed: the stack digest is computed from that
list and judged by the policy as an image digest is; then each layer must have the digest that the list gave it. So a
layer can be neither left out nor doubled, swapped or altered, and what vouches for a layer does not vouch for a stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from eroseal.errors import FormatError, UsageError
from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.format.statement import StackDigest, Statement
from eroseal.readat import ReadAt
from eroseal.trust.image import OpenData, UnverifiedImage, VerifiedImage, open_blob, open_named_image

if TYPE_CHECKING:
    from eroseal.trust.policy import Policy, TrustDecision

_TOKEN: Final = object()

_Image = TypeVar("_Image", VerifiedImage, UnverifiedImage)


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer as a place offers it; nothing of it is trusted.

    Args:
        digest: the image digest that it is said to have.
        meta: the sealed meta blob; stays open as long as the stack is used, and is the caller's to close.
        open_data: finds a data blob by its digest.
    """

    digest: Digest
    meta: ReadAt
    open_data: OpenData


class _Stack(Generic[_Image]):
    """Images, the lowest first, and the digest of them all; a context manager that lets go of the data blobs."""

    def __init__(self, layers: Sequence[_Image], digest: StackDigest) -> None:
        self.layers: tuple[_Image, ...] = tuple(layers)
        self.digest = digest

    def close(self) -> None:
        """Let go of the data blobs; each is closed when nobody reads it any more."""
        for layer in self.layers:
            layer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class VerifiedStack(_Stack[VerifiedImage]):
    """Images whose order and contents are vouched for as one.

    Made by `open_stack` only. Safe for use by several threads.

    Attributes:
        layers: the images, the lowest first; each carries the stack's decision.
        digest: the stack digest.
        decision: why the stack is trusted.
    """

    def __init__(
        self, layers: Sequence[VerifiedImage], digest: StackDigest, decision: TrustDecision, *, token: object
    ) -> None:
        if token is not _TOKEN:
            raise UsageError("a verified stack is made by open_stack alone")
        super().__init__(layers, digest)
        self.decision = decision

    @property
    def trusted_by(self) -> str:
        """The option or form that decided."""
        return self.decision.trusted_by

    @property
    def statement(self) -> Statement | None:
        """What the signer stated, where a statement took part."""
        return self.decision.statement


class UnverifiedStack(_Stack[UnverifiedImage]):
    """Images that nobody vouches for, read because the caller asked for that by name.

    Attributes:
        layers: the images, the lowest first.
        digest: the stack digest that follows from the images' own seals.
    """

    def __init__(self, layers: Sequence[UnverifiedImage]) -> None:
        digests = [layer.digest for layer in layers]
        known = [digest for digest in digests if digest is not None]
        if len(known) != len(digests):
            raise FormatError("an image without a seal cannot be a layer of a stack")
        super().__init__(layers, StackDigest.of(known))


def open_stack(layers: Sequence[LayerSource], *, policy: Policy, record: Sequence[RecordEntry] = ()) -> VerifiedStack:
    """Open a stack that a policy accepts (step 3 for the stack digest, then steps 1 to 4, 6 and 7 for each layer).

    Args:
        layers: the lowest first.
        policy: what the caller accepts.
        record: entries of the stack's image record.

    Raises:
        FormatError: no layers, or too many.
        AuthenticityError: nothing that the policy accepts vouches for these layers in this order.
        IntegrityError: a step refused a layer; names blob, offset and level.
    """
    from eroseal.trust.policy import authenticate  # noqa: PLC0415 - loads cryptography, which builds never need

    digest = StackDigest.of([layer.digest for layer in layers])
    decision = authenticate(policy, digest, record)
    images = [
        open_named_image(layer.meta, layer.digest, decision=decision, open_data=layer.open_data) for layer in layers
    ]
    return VerifiedStack(images, digest, decision, token=_TOKEN)


def open_self_consistent_stack(layers: Sequence[LayerSource]) -> UnverifiedStack:
    """Open a stack whose layers are the ones that they are said to be: every block is checked, but nobody vouches.

    Args:
        layers: the lowest first.

    Raises:
        FormatError: no layers, or too many.
        IntegrityError: a step refused a layer; names blob, offset and level.
    """
    return UnverifiedStack([UnverifiedImage(open_blob(layer.meta, layer.digest), layer.open_data) for layer in layers])
