"""Layers that are read side by side: the first that is refused ends all others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eroseal.build.options import BuildOptions
from eroseal.build.sources import Context, _Layers
from eroseal.errors import FormatError
from eroseal.store.oci.documents import OCI_LAYER, Descriptor
from eroseal.store.oci.select import SourceImage, SourceLayer


def test_a_refused_layer_ends_those_before_it(tmp_path: Path) -> None:
    given = 0

    def slow() -> Iterator[bytes]:
        nonlocal given
        for _ in range(2000):
            given += 1
            time.sleep(0.01)
            yield b""
        yield bytes(1024)

    def refused() -> Iterator[bytes]:
        yield b"no archive" * 200

    descriptor = Descriptor(media_type=OCI_LAYER, digest="sha256:" + "0" * 64, size=0)
    layers = tuple(SourceLayer(descriptor, None, start) for start in (slow, refused))
    image = SourceImage("test", "sha256:" + "0" * 64, b"{}", layers, lambda: None)
    with contextlib.ExitStack() as stack:
        context = Context(BuildOptions(jobs=2), tmp_path, stack, warn=lambda text: None)
        fds = [context.spool(), context.spool()]
        with pytest.raises(FormatError, match="layer 2"):
            _Layers(image, fds, context).read()
    assert given < 2000
