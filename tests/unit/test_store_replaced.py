"""An image that is replaced while somebody is about to sign it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.store_samples import add_image, meta_region, sealed_bytes, signature

from eroseal.errors import OutputError
from eroseal.store.local import LocalStore
from eroseal.store.resolve import resolve


def test_in_a_store_the_new_image_does_not_get_the_old_ones_signature(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "store", durable=False)
    add_image(store, "x", seeds=())
    with resolve(f"dir:{store.path}:x") as image:
        new = add_image(store, "x", seeds=(), label=1, replace=True)
        with pytest.raises(OutputError, match="replaced meanwhile"):
            image.update_record(lambda old: [*old, signature("a")])
    assert store.image("x") == (new, [])


def test_nor_does_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(sealed_bytes(meta_region())[1])
    with resolve(str(path)) as image:
        new = sealed_bytes(meta_region(label=1))[1]
        (tmp_path / "new").write_bytes(new)
        os.rename(tmp_path / "new", path)
        with pytest.raises(OutputError, match="replaced meanwhile"):
            image.update_record(lambda old: [*old, signature("a")])
    assert path.read_bytes() == new
