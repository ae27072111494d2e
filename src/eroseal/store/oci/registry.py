"""A repository of a registry, spoken to as the OCI distribution specification says.

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md, version 1.1, whose older deployments
know no referrers and no deletion of tags: both are worked around as it says.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import msgspec

from eroseal.errors import ErosealError, FormatError, NotFoundError, OutputError, RemoteError, UnsupportedError
from eroseal.limits import MAX_MANIFEST, MAX_REFERRERS, MAX_TAGS
from eroseal.readat import ReadAt
from eroseal.store.http import Answer
from eroseal.store.http_blob import HttpBlob
from eroseal.store.http_rules import clean, content_length, joined, origin
from eroseal.store.oci.content import digest_of, verified, whole
from eroseal.store.oci.documents import (
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    check_digest,
    parse,
)
from eroseal.store.oci.endpoint import Endpoint
from eroseal.store.oci.referrers import artifact_descriptor, fallback_tag, of_type, with_referrer
from eroseal.store.oci.repository import Repository
from eroseal.store.oci.unfinished import Unfinished
from eroseal.store.oci.upload import Upload, own_location
from eroseal.store.protocol import Progress
from eroseal.store.reference import check_tag, is_tag
from eroseal.store.remote import RemoteOptions

_ACCEPT: Final = ", ".join(sorted(MANIFESTS | INDEXES))
_PAGE: Final = 1000
"""Tags asked for at once; registries may give fewer."""
_NEXT: Final = re.compile(r'<([^<>]{1,4096})>[^,<]*;[ \t]*rel="?next"?', re.ASCII | re.IGNORECASE)
_MAX_LINK: Final = 16 << 10
_UNTYPED: Final = ("application/json", "application/octet-stream", "text/plain")
"""Types that servers give to what they know nothing about."""
_NO_DELETE: Final = (400, 403, 404, 405, 501)
_NO_REFERRERS: Final = (400, 404, 405, 501)
_REFERRER_TRIES: Final = 5
"""Times that a list of referrers is written again because somebody else wrote it meanwhile."""


class _Typed(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


class _Tags(msgspec.Struct, frozen=True):
    tags: list[str] | None = None


class RegistryRepository:
    """One repository of a registry; implements `Repository`. Nothing is asked before the first method is called.

    Args:
        host: as in references, with its port if it has one; `docker.io` is Docker's own registry.
        name: of the repository.
        options: how servers are spoken to.
    """

    def __init__(self, host: str, name: str, options: RemoteOptions) -> None:
        self.host = host
        self.name = name
        self._options = options
        self._endpoint = Endpoint(host, name, options)

    @property
    def where(self) -> str:
        return f"docker://{self.host}/{self.name}"

    def manifest(self, reference: str) -> tuple[bytes, Descriptor]:
        where = f"{self.where}{'@' if ':' in reference else ':'}{reference}"
        if ":" in reference:
            _check_digest(reference, self.where)
        else:
            check_tag(reference)
        answer = self._request("GET", f"manifests/{reference}", headers={"Accept": _ACCEPT}, limit=MAX_MANIFEST)
        named = reference if ":" in reference else answer.headers.get("docker-content-digest", "")
        digest = digest_of(answer.body, like=_check_digest(named, where)) if named else digest_of(answer.body)
        if named and digest != named:
            raise FormatError(f"has the digest {digest}, not {named}", where=where)
        return answer.body, Descriptor(media_type=_media_type(answer, where), digest=digest, size=len(answer.body))

    def put_manifest(self, data: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        return self._put_manifest(data, media_type, tag)[0]

    def tags(self) -> list[str]:
        found: set[str] = set()
        path: str | None = f"tags/list?n={_PAGE}"
        while path is not None:
            answer = self._request("GET", path, expect=(200, 404))
            if answer.status == 404:
                break
            page = _decode_tags(answer.body, self.where)
            if len(found) + len(page) > MAX_TAGS:
                raise RemoteError(f"lists more than {MAX_TAGS} tags", where=self.where)
            # A server whose pages bring nothing new would keep us here for ever.
            path = self._next(answer) if set(page) - found else None
            found.update(page)
        return sorted(found)

    def delete_tag(self, tag: str) -> None:
        """Remove a tag, where possible without its manifest; where only manifests can go, it must be its only tag."""
        digest = self._digest(tag)
        if self._request("DELETE", f"manifests/{tag}", expect=(202, 204, *_NO_DELETE)).status not in _NO_DELETE:
            return
        others = [other for other in self.tags() if other != tag and self._has_digest(other, digest)]
        if others:
            raise UnsupportedError(
                f"the registry only deletes manifests, and this one is also tagged {', '.join(others[:5])}",
                where=f"{self.where}:{tag}",
                hint="delete those tags' image, too, or keep it",
            )
        if self._request("DELETE", f"manifests/{digest}", expect=(202, 204, *_NO_DELETE)).status in _NO_DELETE:
            raise UnsupportedError("the registry does not delete", where=f"{self.where}:{tag}")

    def has_blob(self, descriptor: Descriptor) -> bool:
        answer = self._request("HEAD", f"blobs/{descriptor.digest}", expect=(200, 404))
        return answer.status == 200 and content_length(answer.headers) in (None, descriptor.size)

    def open_blob(self, descriptor: Descriptor) -> HttpBlob:
        if not self.has_blob(descriptor):
            raise NotFoundError(f"blob {descriptor.digest} is not there", where=self.where)
        url = self._endpoint.url(f"blobs/{descriptor.digest}")
        return HttpBlob(self._endpoint.client, url, size=descriptor.size, name=f"{self.where}@{descriptor.digest}")

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        url = self._endpoint.url(f"blobs/{descriptor.digest}")
        pieces = self._endpoint.client.stream(url, size=descriptor.size)
        return verified(pieces, descriptor, where=self.where)

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        return whole(self.stream_blob(descriptor), descriptor, limit=limit, where=self.where)

    def put_blob(self, descriptor: Descriptor, source: ReadAt, *, progress: Progress | None = None) -> None:
        if self.has_blob(descriptor):
            if progress is not None:
                progress(descriptor.size)
            return
        with Unfinished(self._options.state, self.where, descriptor.digest) as unfinished:
            Upload(
                self._endpoint.client,
                self._endpoint.base,
                descriptor,
                source,
                unfinished=unfinished,
                progress=progress,
            ).run()

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:
        if not isinstance(origin, RegistryRepository) or origin.host != self.host:
            return False
        query = f"mount={quote(descriptor.digest, safe='')}&from={quote(origin.name, safe='')}"
        answer = self._request("POST", f"blobs/uploads/?{query}", expect=(201, 202, *_NO_DELETE), retry=False)
        if answer.status == 202:
            # It began an upload instead; the registry forgets it some day if it does not take this.
            with contextlib.suppress(ErosealError):
                location = own_location(self._endpoint.base, answer.url, answer.headers.get("location", ""))
                self._request("DELETE", location, expect=(200, 202, 204), retry=False)
        return answer.status == 201

    def referrers(self, subject: str, *, artifact_type: str) -> list[Descriptor]:
        path: str | None = f"referrers/{subject}?artifactType={quote(artifact_type, safe='')}"
        found: dict[str, Descriptor] = {}
        while path is not None:
            answer = self._request("GET", path, expect=(200, *_NO_REFERRERS), limit=MAX_MANIFEST)
            if answer.status != 200:
                return of_type(self._fallback(subject), artifact_type, where=self.where)
            page = of_type(answer.body, artifact_type, where=self.where)
            if len(found) + len(page) > MAX_REFERRERS:
                raise FormatError(f"has more than {MAX_REFERRERS} referrers", where=f"{self.where}@{subject}")
            path = self._next(answer) if {item.digest for item in page} - found.keys() else None
            found.update({item.digest: item for item in page})
        return list(found.values())

    def put_referrer(self, data: bytes, subject: str, *, artifact_type: str, replaces: str | None = None) -> Descriptor:
        """Store a referrer; where the registry keeps no list of referrers, under the tag that stands for one."""
        stored, listed = self._put_manifest(data, OCI_MANIFEST, None)
        descriptor = artifact_descriptor(data, stored, artifact_type)
        if not listed:
            self._list_referrer(descriptor, subject, replaces)
        if replaces not in (None, descriptor.digest):
            # Where nothing can be deleted the old one stays, and readers take the newer.
            self._request("DELETE", f"manifests/{replaces}", expect=(202, 204, *_NO_DELETE))
        return descriptor

    def close(self) -> None:
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _request(self, method: str, path: str, *, expect: Collection[int] = (200,), **more: Any) -> Answer:
        return self._endpoint.client.request(method, self._endpoint.url(path), expect=expect, **more)

    def _put_manifest(self, data: bytes, media_type: str, tag: str | None) -> tuple[Descriptor, bool]:
        """Store a manifest; also says whether the registry lists it among its subject's referrers."""
        if len(data) > MAX_MANIFEST:
            raise OutputError(f"a manifest of {len(data)} bytes: registries take {MAX_MANIFEST}", where=self.where)
        descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
        path = f"manifests/{descriptor.digest if tag is None else check_tag(tag)}"
        headers = {"Content-Type": media_type}
        answer = self._request("PUT", path, headers=headers, content=data, expect=(200, 201, 202))
        stored = answer.headers.get("docker-content-digest", descriptor.digest)
        if stored != descriptor.digest and stored.startswith("sha256:"):
            raise RemoteError(f"stored {stored[:80]} in place of {descriptor.digest}", where=self.where)
        return descriptor, "oci-subject" in answer.headers

    def _digest(self, tag: str) -> str:
        """The digest of a tag's manifest; raises NotFoundError."""
        return self.manifest(tag)[1].digest

    def _has_digest(self, tag: str, digest: str) -> bool:
        answer = self._request("HEAD", f"manifests/{tag}", headers={"Accept": _ACCEPT}, expect=(200, 404))
        if answer.status == 404:
            return False
        return answer.headers.get("docker-content-digest") == digest or self._digest(tag) == digest

    def _list_referrer(self, descriptor: Descriptor, subject: str, replaces: str | None) -> None:
        """Write the fallback tag, and again if another writer came between."""
        tag = fallback_tag(subject)
        for _ in range(_REFERRER_TRIES):
            self.put_manifest(
                with_referrer(self._fallback(subject), descriptor, replaces, where=self.where), OCI_INDEX, tag=tag
            )
            if any(item.digest == descriptor.digest for item in self._listed(subject)):
                return
        raise OutputError("other writers change its referrers all the time", where=f"{self.where}:{tag}")

    def _listed(self, subject: str) -> list[Descriptor]:
        data = self._fallback(subject)
        return [] if data is None else parse(data, Index, where=self.where).manifests

    def _fallback(self, subject: str) -> bytes | None:
        """The index under the tag that stands for the referrers API."""
        try:
            return self.manifest(fallback_tag(subject))[0]
        except NotFoundError:
            return None

    def _next(self, answer: Answer) -> str | None:
        """The address of the next page, on the same server; None after the last one."""
        match = _NEXT.search(answer.headers.get("link", "")[:_MAX_LINK])
        if match is None:
            return None
        here, onward = joined(answer.url, ""), joined(answer.url, match[1])
        if (origin(onward), onward.path) != (origin(here), here.path):
            raise RemoteError("continues a list somewhere else", where=self.where)
        return str(onward)


def _check_digest(digest: str, where: str) -> str:
    try:
        return check_digest(digest)
    except ValueError as error:
        raise FormatError(str(error), where=where) from error


def _media_type(answer: Answer, where: str) -> str:
    """What a manifest is, by its own words and the server's, which must agree."""
    try:
        inside = msgspec.json.decode(answer.body, type=_Typed).media_type
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("is not a manifest", where=where) from error
    outside = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if inside and outside not in ("", inside, *_UNTYPED):
        raise FormatError(f"is sent as {clean(outside)!r}, but says it is {clean(inside)!r}", where=where)
    if not inside and outside in ("", *_UNTYPED):
        raise FormatError("does not say what kind of manifest it is", where=where)
    return inside or outside


def _decode_tags(body: bytes, where: str) -> list[str]:
    try:
        tags = msgspec.json.decode(body, type=_Tags).tags or []
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RemoteError("gives something else than a list of tags", where=where) from error
    wrong = next((tag for tag in tags if not is_tag(tag)), None)
    if wrong is not None:
        raise RemoteError(f"lists {clean(wrong)!r}, which is no tag", where=where)
    return tags
