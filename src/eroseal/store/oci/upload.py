"""Uploads of blobs to a registry: small ones at once, large ones in chunks that need not be sent twice.

After a cut the registry is asked how far it has got, and the upload goes on there. Where it has forgotten, as
docker-registry 2.8 does if a connection breaks within a chunk, the blob starts again. The source is hashed while it
is sent, and the registry is told to keep it only if it was what it should be.

Source: the OCI distribution specification, "Pushing blobs".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from eroseal.errors import ErosealError, FormatError, RemoteError
from eroseal.limits import IO_CHUNK
from eroseal.readat import ReadAt
from eroseal.store.http import Answer, HttpClient
from eroseal.store.http_retry import retried, tries
from eroseal.store.http_rules import TransientError, joined, shown
from eroseal.store.oci.content import check_made, new_hash
from eroseal.store.oci.documents import Descriptor
from eroseal.store.oci.unfinished import Unfinished
from eroseal.store.protocol import Progress

SMALL: Final = 8 << 20
"""Bytes of a blob that is sent in one request: to ask how far it got costs as much as to send the rest."""
CHUNK: Final = 32 << 20
"""Bytes of one request of a large blob: what is lost at most where registries keep whole requests only."""
_LARGEST_CHUNK: Final = 1 << 30
"""Bytes of a chunk that a registry may ask for as its least."""

_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,19})", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,12}", re.ASCII)


@dataclass(slots=True)
class _Session:
    """An upload as the registry knows it.

    Args:
        location: where it goes on.
        offset: bytes that the registry has.
        chunk: bytes of one request.
        unsure: whether the registry has to be asked for the other two.
    """

    location: str
    offset: int = 0
    chunk: int = CHUNK
    unsure: bool = False


class Upload:
    """One blob on its way into a repository.

    Args:
        client: with the registry's credentials.
        base: address of the repository, `https://HOST/v2/NAME`.
        descriptor: of the blob.
        source: its first `descriptor.size` bytes are the blob.
        unfinished: remembers how far it got.
        progress: told the bytes that the registry has taken.
    """

    def __init__(
        self,
        client: HttpClient,
        base: str,
        descriptor: Descriptor,
        source: ReadAt,
        *,
        unfinished: Unfinished,
        progress: Progress | None,
    ) -> None:
        self._client = client
        self._base = base
        self._where = shown(base)
        self._descriptor = descriptor
        self._source = source
        self._unfinished = unfinished
        self._progress = progress
        self._told = 0
        self._restarts = 0
        self._hash = new_hash(descriptor.digest)
        self._hashed = 0

    def run(self) -> None:
        """Send it.

        Raises:
            FormatError: the source is not what the descriptor says; nothing is stored.
            RemoteError, AccessError: the registry fails or refuses.
        """
        if self._descriptor.size <= SMALL:
            self._send_small()
        else:
            self._send_large()
        self._tell(self._descriptor.size)

    def _send_small(self) -> None:
        data = self._source.read_at(0, self._descriptor.size)
        self._hash.update(data)
        check_made(self._hash, self._descriptor.digest, where=self._where)
        first = True
        for attempt in tries(self._client.options.attempts):
            with attempt:
                # The answer alone may have been lost.
                if first or not self._is_stored():
                    first = False
                    self._put(self._start().location, data)

    def _send_large(self) -> None:
        session = self._resumed()
        while session.offset < self._descriptor.size:
            before = session.offset
            for attempt in tries(self._client.options.attempts):
                with attempt:
                    if session.unsure:
                        self._find(session)
                    if session.offset <= before:
                        self._send_chunk(session)
            # A try failed only if the registry took nothing new meanwhile, so a long upload over a bad line ends.
            self._unfinished.save(session.location)
            self._tell(session.offset)
        self._finish(session)

    def _resumed(self) -> _Session:
        """The upload that another process left unfinished, or a new one."""
        location = self._unfinished.load()
        if location is not None:
            session = _Session(location)
            with contextlib.suppress(RemoteError):
                session.location = self._own(self._base, location)
                if self._ask(session):
                    return session
        return retried(self._client.options.attempts, self._start)

    def _find(self, session: _Session) -> None:
        """Learn how far the registry has got; start again where it does not know."""
        if not self._ask(session):
            self._restarts += 1
            if self._restarts > self._client.options.attempts:
                raise RemoteError(f"has lost an upload {self._restarts} times", where=self._where)
            fresh = self._start()
            session.location, session.chunk, session.offset = fresh.location, fresh.chunk, 0
        session.unsure = False

    def _ask(self, session: _Session) -> bool:
        """Ask for an upload's offset and new address; False if the registry does not know it."""
        answer = self._client.request("GET", session.location, expect=(200, 202, 204, 400, 404, 410), retry=False)
        reached = _reached(answer.headers) if answer.status < 400 else None
        if reached is None or reached > self._descriptor.size:
            return False
        session.offset = reached
        if "location" in answer.headers:
            session.location = self._location(answer)
        return True

    def _send_chunk(self, session: _Session) -> None:
        begin, end = session.offset, min(session.offset + session.chunk, self._descriptor.size)
        self._hash_until(begin)
        made = self._hash

        def pieces() -> Iterator[bytes]:
            nonlocal made
            made = self._hash.copy()
            for offset in range(begin, end, IO_CHUNK):
                piece = self._source.read_at(offset, min(IO_CHUNK, end - offset))
                made.update(piece)
                yield piece

        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - begin),
            "Content-Range": f"{begin}-{end - 1}",
        }
        session.unsure = True
        expect = (200, 201, 202, 204, 404, 410, 416)
        answer = self._client.request(
            "PATCH", session.location, headers=headers, content=pieces, expect=expect, retry=False
        )
        if answer.status >= 400:
            raise TransientError(f"does not take the next part of an upload ({answer.status})", where=self._where)
        session.location = self._location(answer)
        reached = _reached(answer.headers) if "range" in answer.headers else end
        if reached is None or not begin < reached <= end:
            raise TransientError("does not say which part of an upload it took", where=self._where)
        session.offset, session.unsure = reached, False
        if reached == end:
            self._hash, self._hashed = made, end

    def _finish(self, session: _Session) -> None:
        self._hash_until(self._descriptor.size)
        # Whatever comes of it, there is nothing left to go on with.
        self._unfinished.forget()
        try:
            check_made(self._hash, self._descriptor.digest, where=self._where)
        except FormatError:
            with contextlib.suppress(ErosealError):
                self._client.request("DELETE", session.location, expect=(200, 202, 204), retry=False)
            raise
        first = True
        for attempt in tries(self._client.options.attempts):
            with attempt:
                if first or not self._is_stored():
                    first = False
                    self._put(session.location, b"")

    def _start(self) -> _Session:
        answer = self._client.request("POST", f"{self._base}/blobs/uploads/", expect=(202,), retry=False)
        least = answer.headers.get("oci-chunk-min-length", "")
        chunk = max(CHUNK, int(least)) if _NUMBER.fullmatch(least) else CHUNK
        return _Session(self._location(answer), chunk=min(chunk, _LARGEST_CHUNK))

    def _put(self, location: str, data: bytes) -> None:
        joint = "&" if "?" in location else "?"
        self._client.request(
            "PUT",
            f"{location}{joint}digest={quote(self._descriptor.digest, safe='')}",
            headers={"Content-Type": "application/octet-stream"},
            content=data,
            expect=(201, 204),
            retry=False,
        )

    def _is_stored(self) -> bool:
        url = f"{self._base}/blobs/{self._descriptor.digest}"
        return self._client.request("HEAD", url, expect=(200, 404), retry=False).status == 200

    def _hash_until(self, offset: int) -> None:
        """Bring the hash to where the registry is, which may be ahead (another process) or behind (a restart)."""
        if self._hashed > offset:
            self._hash, self._hashed = new_hash(self._descriptor.digest), 0
        while self._hashed < offset:
            piece = self._source.read_at(self._hashed, min(IO_CHUNK, offset - self._hashed))
            self._hash.update(piece)
            self._hashed += len(piece)

    def _tell(self, offset: int) -> None:
        if self._progress is not None and offset > self._told:
            self._progress(offset - self._told)
            self._told = offset

    def _location(self, answer: Answer) -> str:
        return self._own(answer.url, answer.headers.get("location", ""))

    def _own(self, here: str, location: str) -> str:
        return own_location(self._base, here, location)


def own_location(base: str, here: str, location: str) -> str:
    """Where an upload goes on: on the registry's own host, by its own scheme, whatever a proxy made of it.

    Args:
        base: address of the repository.
        here: address that gave the location.
        location: as it was given.

    Raises:
        RemoteError: it is on another host.
    """
    ours, theirs = joined(base, ""), joined(here, location)
    if theirs.netloc != ours.netloc or theirs.userinfo:
        raise RemoteError(f"wants an upload to go on at {shown(theirs)}", where=shown(base))
    return str(theirs.copy_with(scheme=ours.scheme))


def _reached(headers: Mapping[str, str]) -> int | None:
    """Bytes that a registry has of an upload; None if it says nonsense.

    An upload without a byte is at `0-0`, too; nobody sends a single one.
    """
    match = _RANGE.fullmatch(headers.get("range", "0-0").strip())
    if match is None:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0
