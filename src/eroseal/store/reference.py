"""References: how a user names an image, spelled as container tools do.

========================== =====================================================================
``dir:PATH:NAME``          an image of a native store
``oci:PATH:TAG``           an image of an OCI image layout
``docker://HOST/REPO:TAG`` an image of a registry; ``@sha256:…`` in place of the tag names a manifest
``s3://BUCKET/PREFIX:NAME`` an image of a native store in an object store (also ``gs://``, ``az://``)
``https://HOST/PATH:NAME`` an image of a native store behind a web server, read only
anything else              the path of a single sealed file
========================== =====================================================================

In paths and addresses the last colon splits, because they may hold colons and names cannot. A path that looks like a
prefix is written with ``./``.

Parsing does no I/O: whether the thing exists is for `resolve` to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eroseal.errors import UsageError

# No slash, no leading dot or dash; with a record's suffix a name fits into 255 bytes.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}", re.ASCII)
RECORD_SUFFIX: Final = ".record"
"""Reserved ending: an image called so could take the place of another image's record."""

_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\])"
    r"(?::[0-9]{1,5})?",
    re.ASCII,
)
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_MAX_REPOSITORY: Final = 255
DEFAULT_HOST: Final = "docker.io"
"""Where names without a host live, for container tools."""
_DEFAULT_TAG: Final = "latest"
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
OBJECT_SCHEMES: Final = ("s3", "gs", "az")
_WEB_SCHEMES: Final = ("https", "http")
_KINDS: Final = "dir:PATH:NAME, oci:PATH:TAG, docker://HOST/REPO:TAG, s3://BUCKET/PREFIX:NAME, https://HOST/PATH:NAME"


@dataclass(frozen=True, slots=True)
class StoreReference:
    """An image in a native store.

    Args:
        store: path of the store's directory.
        name: of the image, as `check_name` accepts it.
    """

    store: Path
    name: str

    def __str__(self) -> str:
        return f"dir:{self.store}:{self.name}"


@dataclass(frozen=True, slots=True)
class FileReference:
    """A single sealed file.

    Args:
        path: of the file.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An image in an OCI image layout.

    Args:
        store: path of the layout's directory.
        name: its tag (`org.opencontainers.image.ref.name`).
    """

    store: Path
    name: str

    def __str__(self) -> str:
        return f"oci:{self.store}:{self.name}"


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry.

    Args:
        host: name or address, with its port if it has one.
        repository: below the host.
        name: a tag, or a manifest's digest (`sha256:…`).
    """

    host: str
    repository: str
    name: str

    @property
    def is_digest(self) -> bool:
        """Whether it names a manifest by its digest."""
        return ":" in self.name

    def __str__(self) -> str:
        return f"docker://{self.host}/{self.repository}{'@' if self.is_digest else ':'}{self.name}"


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """An image of a native store in an object store.

    Args:
        scheme: one of OBJECT_SCHEMES.
        bucket: or container.
        prefix: of all keys, without slashes at its ends; may be empty.
        name: of the image, as `check_name` accepts it.
    """

    scheme: str
    bucket: str
    prefix: str
    name: str

    @property
    def url(self) -> str:
        """Where the store is."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def __str__(self) -> str:
        return f"{self.url}:{self.name}"


@dataclass(frozen=True, slots=True)
class WebReference:
    """An image of a native store behind a web server.

    Args:
        url: of the store, without a slash at its end.
        name: of the image, as `check_name` accepts it.
    """

    url: str
    name: str

    def __str__(self) -> str:
        return f"{self.url}:{self.name}"


Reference = StoreReference | FileReference | LayoutReference | RegistryReference | ObjectReference | WebReference
"""What a reference can name."""
RemoteReference = RegistryReference | ObjectReference | WebReference
"""What is not on this machine."""
NamedReference = StoreReference | LayoutReference | RemoteReference
"""What names an image in a store."""


def parse_reference(text: str) -> Reference:
    """Read a reference as the user typed it.

    Raises:
        UsageError: empty, malformed, or of an unknown kind.
    """
    _refuse_unusable(text)
    if text.startswith("dir:"):
        path, name = _split(text, text[4:], "dir:PATH:NAME")
        return StoreReference(Path(path), check_name(name))
    if text.startswith("oci:"):
        path, tag = _split(text, text[4:], "oci:PATH:TAG")
        return LayoutReference(Path(path), check_tag(tag))
    scheme = _SCHEME.match(text)
    if scheme is None:
        return FileReference(Path(text))
    rest = text[scheme.end() :]
    kind = scheme[1].lower()
    if kind == "docker":
        return _registry(text, rest)
    if kind in OBJECT_SCHEMES:
        place, name = _split(text, rest, f"{kind}://BUCKET/PREFIX:NAME")
        bucket, prefix = _bucket(text, place)
        return ObjectReference(kind, bucket, prefix, check_name(name))
    if kind in _WEB_SCHEMES:
        place, name = _split(text, rest, f"{kind}://HOST/PATH:NAME")
        return WebReference(f"{kind}://{_web_place(text, place)}", check_name(name))
    raise UsageError(f"unknown kind of reference: {text!r}", hint=f"use {_KINDS} or a file's path")


@dataclass(frozen=True, slots=True)
class Place:
    """A whole store, without an image's name.

    Args:
        reference: of an image in it, whose name means nothing.
    """

    reference: NamedReference

    def __str__(self) -> str:
        return str(self.reference).removesuffix(f":{self.reference.name}")


def parse_store(text: str) -> Place:
    """A whole store: ``dir:PATH``, plain ``PATH``, ``oci:PATH``, ``docker://HOST/REPO`` or an address.

    Raises:
        UsageError: empty, malformed, or of an unknown kind.
    """
    _refuse_unusable(text)
    name = "x"
    scheme = _SCHEME.match(text)
    if text.startswith("oci:"):
        return Place(LayoutReference(Path(_not_empty(text, text[4:])), name))
    if scheme is None:
        return Place(StoreReference(Path(_not_empty(text, text.removeprefix("dir:"))), name))
    if scheme[1].lower() == "docker":
        registry = _registry(text, text[scheme.end() :])
        return Place(RegistryReference(registry.host, registry.repository, name))
    reference = parse_reference(f"{text.rstrip('/')}:{name}")
    if isinstance(reference, FileReference):
        raise UsageError(f"not a store: {text!r}", hint=f"use one of {_KINDS}, without the name")
    return Place(reference)


def check_name(name: str) -> str:
    """The name itself, if an image may be called so.

    Raises:
        UsageError: characters that are not allowed, too long, or a reserved ending.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not an image name: {name!r}",
            hint="1 to 128 letters, digits and . _ + @ -, beginning with a letter or digit",
        )
    if name.endswith(RECORD_SUFFIX):
        raise UsageError(
            f"not an image name: {name!r}",
            hint=f"names that end in {RECORD_SUFFIX} are kept for image records",
        )
    return name


def check_tag(tag: str) -> str:
    """The tag itself, if an image of a registry or layout may be called so; raises UsageError."""
    if not _TAG.fullmatch(tag):
        raise UsageError(f"not a tag: {tag!r}", hint="1 to 128 letters, digits and . _ -, not beginning with . or -")
    return tag


def is_image_name(name: str) -> bool:
    """Whether an image may be called so."""
    return _NAME.fullmatch(name) is not None and not name.endswith(RECORD_SUFFIX)


def is_tag(name: str) -> bool:
    """Whether a tag may be called so."""
    return _TAG.fullmatch(name) is not None


def _registry(text: str, rest: str) -> RegistryReference:
    """HOST/REPO:TAG as container tools read it: a first part with a dot, a colon or `localhost` is a host."""
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise UsageError(f"not a digest: {digest!r} in {text!r}", hint="write @sha256: and 64 hex digits")
    host, slash, path = rest.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = DEFAULT_HOST, rest
    path, colon, tag = path.partition(":")
    if host == DEFAULT_HOST and "/" not in path:
        path = f"library/{path}"
    if not _HOST.fullmatch(host) or len(path) > _MAX_REPOSITORY or not _REPOSITORY.fullmatch(path):
        raise UsageError(f"not a registry reference: {text!r}", hint="write docker://HOST/REPO:TAG, REPO in lower case")
    return RegistryReference(host, path, digest if at else check_tag(tag if colon else _DEFAULT_TAG))


def _bucket(text: str, place: str) -> tuple[str, str]:
    bucket, _, prefix = place.rstrip("/").partition("/")
    if not bucket or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise UsageError(f"not a place in an object store: {text!r}", hint="write s3://BUCKET/PREFIX:NAME")
    return bucket, prefix


def _web_place(text: str, place: str) -> str:
    host, _, path = place.rstrip("/").partition("/")
    if not _HOST.fullmatch(host) or any(character in path for character in "?#\\ \n") or ".." in path.split("/"):
        raise UsageError(f"not an address of a store: {text!r}", hint="write https://HOST/PATH:NAME")
    return f"{host}/{path}" if path else host


def _split(text: str, rest: str, form: str) -> tuple[str, str]:
    place, colon, name = rest.rpartition(":")
    if not colon or not place:
        raise UsageError(f"not a store reference: {text!r}", hint=f"write {form}")
    return place, name


def _not_empty(text: str, path: str) -> str:
    if not path:
        raise UsageError(f"not a store: {text!r}", hint="write dir:PATH or PATH")
    return path


def _refuse_unusable(text: str) -> None:
    if not text or "\0" in text:
        raise UsageError("a reference is empty or holds a NUL byte", hint="write dir:PATH:NAME or a file's path")
