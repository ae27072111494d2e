"""Web servers that say less than they could."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.web import Handler, Server
from tests.unit.store_samples import add_image

from eroseal.errors import AccessError
from eroseal.store.local import LocalStore
from eroseal.store.reference import WebReference
from eroseal.store.remote import RemoteOptions
from eroseal.store.web import open_web_store


def bucket(root: Path) -> type[Handler]:
    """A bucket that anybody may read and nobody may list: it forbids what is not there."""

    class Bucket(Handler):
        def do_GET(self) -> None:
            path = root / self.path.lstrip("/")
            if path.is_file():
                self.answer(200, {}, path.read_bytes())
            else:
                self.answer(403, {})

    return Bucket


def test_an_unsigned_image_in_a_bucket_that_cannot_be_listed(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "store")
    document = add_image(store, "app")
    with Server(bucket(tmp_path)) as server:
        reference = WebReference(f"{server.url}/store", "app")
        with open_web_store(reference, RemoteOptions(attempts=1)) as web:
            assert web.image("app") == (document, [])
            with pytest.raises(AccessError):
                web.image("other")
