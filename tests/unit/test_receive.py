"""Blobs from places whose answers change between requests: nothing enters a store that was not verified."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.sealing import Changeable, seal_bytes

from eroseal.errors import IntegrityError
from eroseal.format.digest import Digest
from eroseal.store.lanes import Lanes
from eroseal.store.oci.layout import LayoutRepository
from eroseal.store.oci.store import OciStore
from eroseal.store.partial import receive_blob
from eroseal.trust.image import open_blob

BLOCKS = 3000


class TwoFaced(Changeable):
    """A source that has other bytes once it is fetched as a whole."""

    def __init__(self, first: bytes, then: bytes) -> None:
        super().__init__(first)
        self._then = then

    def read_at(self, offset: int, length: int) -> bytes:
        if length > 1 << 18:
            self.data = bytearray(self._then)
        return super().read_at(offset, length)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Digest, bytes, bytes]:
    """A blob's digest, the blob with a long record, and with a short one and other bytes behind it."""
    place, data = tmp_path_factory.mktemp("faces"), bytes(range(256)) * 16 * BLOCKS
    short = seal_bytes(place, data)
    long = seal_bytes(place, data, chunk_blocks=[1, 2] * (BLOCKS // 3))
    assert short.sealed.digest == long.sealed.digest
    assert len(short.blob) < len(long.blob)
    return long.sealed.digest, long.blob, short.blob + b"!" * (len(long.blob) - len(short.blob))


def test_a_record_that_shrinks_leaves_no_room_in_a_store(tmp_path: Path, faces: tuple[Digest, bytes, bytes]) -> None:
    digest, long, then = faces
    final = tmp_path / "store" / "00" / "final"
    (tmp_path / "store").mkdir()

    def receive(source: Changeable) -> int:
        return receive_blob(tmp_path / "store", final, digest, source, Lanes(2), durable=False, jobs=1)

    with pytest.raises(IntegrityError, match="sealed blob has"):
        receive(TwoFaced(long, then))
    assert not final.exists()
    assert receive(Changeable(long)) == len(long)
    assert open_blob(Changeable(final.read_bytes()), digest).seal.sealed_size == len(long)


def test_a_record_that_shrinks_leaves_no_room_in_a_layout(tmp_path: Path, faces: tuple[Digest, bytes, bytes]) -> None:
    digest, long, then = faces
    with OciStore(LayoutRepository(tmp_path / "layout", create=True), architecture="amd64") as store:
        with pytest.raises(IntegrityError, match="sealed blob has"):
            store.put_blob(digest, TwoFaced(long, then), jobs=1)
        assert store.put_blob(digest, Changeable(long), jobs=1) == len(long)
