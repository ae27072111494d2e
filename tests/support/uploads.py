"""The uploading half of a registry that keeps every byte that reached it, as Debian's does not."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qs, urlsplit

from tests.support.web import Handler, Server


class Uploads(Server):
    """Takes blobs into `blobs`; of each chunk at most `take` bytes."""

    def __init__(self, *, take: int | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self._started: list[bytearray] = []
        outer = self

        class Registry(Handler):
            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def session(self) -> tuple[str, bytearray]:
                number = urlsplit(self.path).path.rpartition("/")[2]
                return number, outer._started[int(number)]

            def state(self, status: int, number: str, data: bytearray) -> None:
                # Relative addresses, and the state in a query, as registries may have it.
                place = f"/v2/any/blobs/uploads/{number}?_state={len(data)}"
                self.answer(status, {"Location": place, "Range": f"0-{max(len(data) - 1, 0)}"})

            def do_HEAD(self) -> None:
                data = outer.blobs.get(self.path.rpartition("/")[2])
                self.answer(404 if data is None else 200, {}, data or b"")

            def do_GET(self) -> None:
                if "/uploads/" in self.path:
                    self.state(204, *self.session())
                else:
                    self.answer(200, {})

            def do_POST(self) -> None:
                outer._started.append(bytearray())
                self.state(202, str(len(outer._started) - 1), outer._started[-1])

            def do_PATCH(self) -> None:
                number, data = self.session()
                begin = int(re.match(r"(\d+)-", self.headers["Content-Range"])[1])  # type: ignore[index]
                body = self.body()
                if begin != len(data):
                    self.answer(416, {"Range": f"0-{len(data) - 1}"})
                    return
                data += body[:take]
                self.state(202, number, data)

            def do_PUT(self) -> None:
                _, data = self.session()
                data += self.body()
                digest = parse_qs(urlsplit(self.path).query)["digest"][0]
                if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
                    self.answer(400, {}, b'{"errors":[{"code":"DIGEST_INVALID","message":"not that"}]}')
                    return
                outer.blobs[digest] = bytes(data)
                self.answer(201, {})

        super().__init__(Registry)
