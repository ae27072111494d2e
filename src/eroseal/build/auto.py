"""Finding a base without being told: the newest image of the same name.

The image that a target itself names comes first, as it is about to be replaced. Next come its other versions. In a
native store these are the images with the same *stem*: the name up to a suffix that looks like a version (`app-1.2.3`,
`app@2`, `app_v7`). In a registry's repository or an image layout every tag is one. The newest version wins, and names
without a version come last. What does not open as a sealed image is passed over.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final

from eroseal.errors import FormatError, NotFoundError, UnsupportedError, VerificationError
from eroseal.format.digest import TreeParams
from eroseal.store.open import open_store
from eroseal.store.protocol import Store
from eroseal.store.reference import LayoutReference, NamedReference, RegistryReference
from eroseal.store.remote import RemoteOptions
from eroseal.store.single import read_layout

_TRIES: Final = 8
"""Images that are looked at: a store full of what does not open must not keep a build waiting."""
_EARLY: Final = ("alpha", "beta", "dev", "pre", "rc", "snapshot")
_LATE: Final = ("build", "final", "post", "rev")
_VERSION: Final = rf"v?[0-9][0-9a-z]*(?:[-_.+](?:[0-9]|{'|'.join(_EARLY + _LATE)})[0-9a-z]*)*"
_WHOLE: Final = re.compile(_VERSION, re.ASCII | re.IGNORECASE)
_SUFFIX: Final = re.compile(rf"[-_.@+]({_VERSION})$", re.ASCII | re.IGNORECASE)
_PARTS: Final = re.compile(r"[0-9]+|[a-z]+", re.ASCII)

VersionKey = tuple[tuple[int, int, str], ...]


def split_version(name: str) -> tuple[str, str | None]:
    """(stem, version) of an image's name or tag: `app-1.2.3` is ("app", "1.2.3"), `app` is ("app", None)."""
    if _WHOLE.fullmatch(name):
        return "", name
    suffix = _SUFFIX.search(name)
    return (name, None) if suffix is None else (name[: suffix.start()], suffix[1])


def version_key(version: str) -> VersionKey:
    """What versions are sorted by: numbers as numbers; a release comes behind its `rc` and before its `post`."""
    parts = _PARTS.findall(version.lower().removeprefix("v"))
    return (*(_part_key(part) for part in parts), (1, 0, ""))


def _part_key(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return 3, int(part), ""
    return (0 if part in _EARLY else 2), 0, part


def newest_first(names: Iterable[str]) -> list[str]:
    """Names or tags by their versions, the newest first; those without a version come last."""

    def key(name: str) -> tuple[bool, VersionKey, str]:
        version = split_version(name)[1]
        return version is not None, version_key(version or ""), name

    return sorted(names, key=key, reverse=True)


def newest_base(target: NamedReference, remote: RemoteOptions, *, params: TreeParams | None = None) -> str | None:
    """The newest image of the same name as a target, to build on; None if there is none.

    Args:
        target: that is going to be built; it and its store need not exist.
        remote: how servers are spoken to.
        params: hash and salt that a base must have; None takes any.

    Raises:
        RemoteError, AccessError: of a server.
    """
    with contextlib.ExitStack() as stack:
        return Neighbours.of(target, remote, stack).newest(target, params=params)


class Neighbours:
    """The images of one store, listed once.

    Args:
        store: None where there is no store yet.
        names: of its images.
    """

    def __init__(self, store: Store | None, names: Collection[str]) -> None:
        self._store = store
        self._names = names

    @classmethod
    def of(cls, target: NamedReference, remote: RemoteOptions, stack: contextlib.ExitStack) -> Neighbours:
        """Those of a target's store, which `stack` closes; raises RemoteError, AccessError."""
        try:
            store = stack.enter_context(open_store(target, remote))
        except NotFoundError:
            return cls(None, ())
        try:
            return cls(store, store.list_images())
        except (NotFoundError, UnsupportedError):
            return cls(store, ())

    def newest(
        self,
        target: NamedReference,
        *,
        params: TreeParams | None = None,
        coming: Collection[str] = (),
        without: Collection[str] = (),
    ) -> str | None:
        """As `newest_base`.

        Args:
            target: in this store.
            params: as there.
            coming: names that will have images of ours by then.
            without: names that do not count, unless they are coming.
        """
        there = [name for name in self._names if name not in without]
        versions = newest_first({*_same_kind(target, there), *_same_kind(target, coming)} - {target.name})
        # Also where a store cannot list: it can be asked for one image.
        itself = [] if target.name in without else [target.name]
        for name in [*itself, *versions][:_TRIES]:
            if name in coming or self._opens(name, params):
                return str(replace(target, name=name))
        return None

    def _opens(self, name: str, params: TreeParams | None) -> bool:
        """Whether this is a sealed image or stack with such trees."""
        if self._store is None:
            return False
        try:
            document, _ = self._store.image(name)
            with contextlib.closing(self._store.open_blob(document.layers[0].image)) as meta:
                found = read_layout(meta, name=name).descriptor.params
        except (NotFoundError, UnsupportedError, FormatError, VerificationError):
            return False
        return params is None or found == params


def _same_kind(target: NamedReference, names: Iterable[str]) -> list[str]:
    if isinstance(target, LayoutReference | RegistryReference):
        return list(names)
    stem = split_version(target.name)[0]
    return [name for name in names if split_version(name)[0] == stem]
