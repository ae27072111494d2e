"""What the reader needs of an image: its meta blob, and its data blobs one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eroseal.readat import ReadAt


class Sized(Protocol):
    """Something with a length."""

    @property
    def size(self) -> int:
        """Bytes of the data region."""
        ...


class ImageSource(Protocol):
    """A meta blob and its data blobs; VerifiedImage and UnverifiedImage have this shape."""

    @property
    def meta(self) -> ReadAt:
        """The meta blob's data region."""
        ...

    @property
    def devices(self) -> Sequence[Sized]:
        """What is known of each data blob without opening it."""
        ...

    def device(self, index: int) -> ReadAt:
        """Data blob `index`, counting from 0, opened when first asked for."""
        ...
