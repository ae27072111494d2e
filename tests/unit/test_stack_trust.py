"""A stack opens under its own digest only: not under a layer's, not with other layers, not in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.unit.sealing import SHA512, Changeable, Sample, meta_region, noise, seal_bytes

from eroseal.crypto.signers import Ed25519Signer
from eroseal.errors import AuthenticityError, FormatError, IntegrityError, NotFoundError, UsageError
from eroseal.format.digest import Digest, TreeParams
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest, StackDigest, Statement
from eroseal.limits import MAX_STACK_LAYERS
from eroseal.readat import ReadAt
from eroseal.seal.sign import sign_image
from eroseal.trust.image import UnverifiedImage
from eroseal.trust.policy import Policy
from eroseal.trust.stack import LayerSource, UnverifiedStack, VerifiedStack, open_self_consistent_stack, open_stack

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class Layers:
    """Three sealed images in memory, the first two of which share a data blob."""

    def __init__(self, directory: Path) -> None:
        self.data = seal_bytes(directory, noise(3))
        tag = self.data.sealed.digest.tag(), 3
        self.metas = [
            seal_bytes(directory, meta_region([tag])),
            seal_bytes(directory, meta_region([tag], blocks=3)),
            seal_bytes(directory, meta_region([])),
        ]
        self.opened: list[Changeable] = []

    @property
    def digests(self) -> list[Digest]:
        return [meta.sealed.digest for meta in self.metas]

    @property
    def digest(self) -> StackDigest:
        return StackDigest.of(self.digests)

    def sources(self, order: Sequence[int] = (0, 1, 2)) -> list[LayerSource]:
        return [self.source(self.metas[number]) for number in order]

    def source(self, meta: Sample, claimed: Digest | None = None) -> LayerSource:
        return LayerSource(claimed or meta.sealed.digest, meta.source("meta"), self.open_data)

    def open_data(self, digest: Digest) -> ReadAt:
        if digest != self.data.sealed.digest:
            raise NotFoundError("no such blob", where=str(digest))
        self.opened.append(self.data.source("data"))
        return self.opened[-1]


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def pinned(*digests: ImageDigest) -> Policy:
    return Policy(time=0, digests=digests)


def signed_about(digest: ImageDigest, name: str = "app") -> list[RecordEntry]:
    return sign_image(Statement(digest, name, 3, 0), [Ed25519Signer(KEY)])


def by_key(**more: object) -> Policy:
    return Policy(time=0, ed25519_keys=(KEY.public_key(),), **more)  # type: ignore[arg-type]


def test_a_pinned_stack_opens(layers: Layers) -> None:
    with open_stack(layers.sources(), policy=pinned(layers.digest)) as stack:
        assert stack.digest == layers.digest
        assert (stack.trusted_by, stack.statement) == ("digest", None)
        assert [layer.digest for layer in stack.layers] == layers.digests
        assert all(layer.decision is stack.decision for layer in stack.layers)
        assert layers.opened == []
        for layer in stack.layers[:2]:
            assert layer.device(0).read_at(0, len(layers.data.data)) == layers.data.data
        assert len(layers.opened) == 2
    assert all(source.closed for source in layers.opened)


def test_a_signed_stack_opens(layers: Layers) -> None:
    record = signed_about(layers.digest)
    with open_stack(layers.sources(), policy=by_key(name="app", min_version=3), record=record) as stack:
        assert stack.trusted_by == "ed25519"
        assert stack.statement is not None
        assert stack.statement.digest == layers.digest
    with pytest.raises(AuthenticityError, match="required is 'other'"):
        open_stack(layers.sources(), policy=by_key(name="other"), record=record)


@pytest.mark.parametrize(
    "order",
    [(1, 0, 2), (2, 1, 0), (0, 2, 1), (0, 1), (1, 2), (0, 2), (0,), (0, 0, 1, 2), (0, 1, 2, 2), (0, 1, 1), (2, 0, 1)],
)
def test_other_layers_or_another_order_are_refused(layers: Layers, order: tuple[int, ...]) -> None:
    with pytest.raises(AuthenticityError, match="is pinned") as caught:
        open_stack(layers.sources(order), policy=pinned(layers.digest))
    assert caught.value.step == 3
    with pytest.raises(AuthenticityError, match="about another image"):
        open_stack(layers.sources(order), policy=by_key(), record=signed_about(layers.digest))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_vouches_for_a_layer_does_not_vouch_for_a_stack(layers: Layers, number: int) -> None:
    layer = layers.digests[number]
    for order in ((0, 1, 2), (number,)):
        with pytest.raises(AuthenticityError, match="is pinned"):
            open_stack(layers.sources(order), policy=pinned(layer))
        with pytest.raises(AuthenticityError, match="about another image"):
            open_stack(layers.sources(order), policy=by_key(), record=signed_about(layer))


def test_a_digest_of_the_other_kind_with_the_same_bytes_is_another_one(layers: Layers) -> None:
    disguised = Digest(layers.digests[0].algorithm, layers.digest.value)
    with pytest.raises(AuthenticityError):
        open_stack(layers.sources(), policy=pinned(disguised))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_layer_must_be_the_one_that_it_is_said_to_be(layers: Layers, number: int) -> None:
    """The digests are right, the blobs behind them are not."""
    sources = layers.sources()
    other = layers.metas[(number + 1) % 3]
    sources[number] = layers.source(other, layers.digests[number])
    with pytest.raises(IntegrityError, match="is expected") as caught:
        open_stack(sources, policy=pinned(layers.digest))
    assert caught.value.step == 3
    with pytest.raises(IntegrityError, match="is expected"):
        open_self_consistent_stack(sources)


def test_altered_layers_are_refused(layers: Layers) -> None:
    sources = layers.sources()
    assert isinstance(sources[1].meta, Changeable)
    sources[1].meta.flip(1024)
    with pytest.raises(IntegrityError):
        open_stack(sources, policy=pinned(layers.digest))


def test_a_layer_without_a_seal_is_refused(layers: Layers) -> None:
    sources = layers.sources()
    sources[2] = replace(sources[2], meta=Changeable(noise(4)))
    with pytest.raises(IntegrityError):
        open_stack(sources, policy=pinned(layers.digest))
    with pytest.raises(IntegrityError):
        open_self_consistent_stack(sources)


def test_a_sealed_layer_that_is_no_image_is_refused(layers: Layers, tmp_path: Path) -> None:
    layers.metas[1] = seal_bytes(tmp_path, noise(2))
    with pytest.raises(IntegrityError) as caught:
        open_stack(layers.sources(), policy=pinned(layers.digest))
    assert caught.value.step == 6


def test_a_shared_blob_must_suit_every_layer(layers: Layers, tmp_path: Path) -> None:
    layers.metas[1] = seal_bytes(tmp_path, meta_region([(layers.data.sealed.digest.tag(), 2)]))
    with open_stack(layers.sources(), policy=pinned(layers.digest)) as stack:
        assert stack.layers[0].device(0).size == len(layers.data.data)
        with pytest.raises(IntegrityError):
            stack.layers[1].device(0)


def test_layers_may_have_different_algorithms(layers: Layers, tmp_path: Path) -> None:
    layers.metas[2] = seal_bytes(tmp_path, meta_region([]), TreeParams(SHA512, b"salt"))
    with open_stack(layers.sources(), policy=pinned(layers.digest)) as stack:
        assert stack.layers[2].digest.algorithm is SHA512


def test_the_number_of_layers_is_bounded(layers: Layers) -> None:
    most = layers.sources([2] * MAX_STACK_LAYERS)
    digest = StackDigest.of([source.digest for source in most])
    assert len(open_stack(most, policy=pinned(digest)).layers) == MAX_STACK_LAYERS
    for sources in ([], [*most, most[0]]):
        with pytest.raises(FormatError, match="1 to 127 layers"):
            open_stack(sources, policy=pinned(digest))
        with pytest.raises(FormatError, match="1 to 127 layers"):
            open_self_consistent_stack(sources)


def test_nobody_else_makes_a_verified_stack(layers: Layers) -> None:
    stack = open_stack(layers.sources(), policy=pinned(layers.digest))
    with pytest.raises(UsageError, match="made by open_stack alone"):
        VerifiedStack(stack.layers, stack.digest, stack.decision, token=object())


def test_a_self_consistent_stack_has_the_digest_of_its_layers(layers: Layers) -> None:
    with open_self_consistent_stack(layers.sources((2, 0))) as stack:
        assert stack.digest == StackDigest.of([layers.digests[2], layers.digests[0]])
        assert not hasattr(stack, "decision")
        assert stack.layers[1].device(0).read_at(0, 4096) == layers.data.data[:4096]
    assert all(source.closed for source in layers.opened)


def test_images_without_seals_are_no_layers() -> None:
    with pytest.raises(FormatError, match="without a seal"):
        UnverifiedStack([UnverifiedImage(Changeable(meta_region([])))])
