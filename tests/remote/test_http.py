"""The HTTP client against servers and networks that fail, lie and lead astray."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stamina
from tests.support.proxy import Fault, FaultProxy
from tests.support.web import Handler, Server, WebServer, make_certificate, with_tls

from eroseal.errors import AccessError, ErosealError, FormatError, NotFoundError, RemoteError, UsageError
from eroseal.store.http import HttpClient
from eroseal.store.http_blob import HttpBlob
from eroseal.store.http_rules import (
    MAX_ERROR_TEXT,
    MAX_RETRY_AFTER,
    TransientError,
    clean,
    parse_address,
    retry_after,
    shown,
)
from eroseal.store.http_settings import proxy_for
from eroseal.store.remote import RemoteOptions

DATA = random.Random(1).randbytes(3 << 20)
OPTIONS = RemoteOptions(attempts=4, parallel=4)


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with WebServer({"/data": DATA, "/small": b"hello", "/empty": b""}) as server:
        yield server


@pytest.fixture
def proxy(web: WebServer) -> Iterator[FaultProxy]:
    with FaultProxy(web.host) as server:
        yield server


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with HttpClient(OPTIONS) as made:
        yield made


def refused(kind: type[ErosealError], words: str, work: Callable[[], object]) -> ErosealError:
    with pytest.raises(kind, match=words) as caught:
        work()
    return caught.value


class TestReading:
    def test_whole_objects_and_parts(self, web: WebServer, client: HttpClient) -> None:
        assert client.get_bytes(f"{web.url}/small", limit=5) == b"hello"
        assert client.get_bytes(f"{web.url}/empty", limit=0) == b""
        assert client.head(f"{web.url}/data").size == len(DATA)
        assert client.read_range(f"{web.url}/data", 1000, 70_000) == DATA[1000:71_000]
        assert client.read_range(f"{web.url}/data", 5, 0) == b""
        assert b"".join(client.stream(f"{web.url}/data")) == DATA
        assert b"".join(client.stream(f"{web.url}/data", size=len(DATA), start=1 << 20)) == DATA[1 << 20 :]
        assert b"".join(client.stream(f"{web.url}/empty", size=0)) == b""

    def test_connections_are_used_again(self, client: HttpClient) -> None:
        with WebServer({"/data": DATA}) as server:
            for number in range(20):
                client.read_range(f"{server.url}/data", number, 100)
                client.head(f"{server.url}/data")
            assert b"".join(client.stream(f"{server.url}/data")) == DATA
            with pytest.raises(NotFoundError):
                client.get_bytes(f"{server.url}/missing", limit=10)
            client.head(f"{server.url}/data")
            assert len(server.connections) == 1

    def test_threads_share_the_client(self) -> None:
        options = RemoteOptions(parallel=8)
        with WebServer({"/data": DATA}) as server, HttpClient(options) as client, ThreadPoolExecutor(8) as pool:
            places = [(number * 7919) % (len(DATA) - 5000) for number in range(200)]
            found = pool.map(lambda place: client.read_range(f"{server.url}/data", place, 5000), places)
            assert all(data == DATA[place : place + 5000] for place, data in zip(places, found, strict=True))
            assert len(server.connections) <= 8 + 2

    def test_small_reads_near_each_other_cost_one_request(self, web: WebServer, proxy: FaultProxy) -> None:
        with HttpClient(OPTIONS) as client, HttpBlob(client, f"{proxy.url}/data") as blob:
            assert blob.size == len(DATA)
            for offset in range(0, 60_000, 1000):
                assert blob.read_at(offset, 100) == DATA[offset : offset + 100]
            assert len(proxy.of("GET")) == 1
            assert blob.read_at(65_500, 100) == DATA[65_500:65_600]
            assert blob.read_at(len(DATA) - 10, 10) == DATA[-10:]
            assert blob.read_at(100_000, 500_000) == DATA[100_000:600_000]
            assert len(proxy.of("GET")) == 4
            refused(FormatError, "truncated", lambda: blob.read_at(len(DATA) - 10, 11))

    def test_a_server_without_ranges_is_never_drained(self, client: HttpClient) -> None:
        with WebServer({"/data": bytes(20 << 20)}, ranges=False) as server:
            assert client.read_range(f"{server.url}/data", 0, 100) == bytes(100)
            assert client.read_range(f"{server.url}/data", 1 << 20, 100) == bytes(100)
            refused(RemoteError, "does not send parts", lambda: client.read_range(f"{server.url}/data", 10 << 20, 100))


class TestResuming:
    def test_a_cut_stream_goes_on_where_it_broke(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /data", Fault(cut=1_000_000), Fault(cut=1), Fault(cut=700_001))
        assert b"".join(client.stream(f"{proxy.url}/data")) == DATA
        assert sum(exchange.sent for exchange in proxy.of("GET")) == len(DATA)

    def test_a_cut_range_goes_on_where_it_broke(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /data", Fault(cut=99_999))
        assert client.read_range(f"{proxy.url}/data", 100, 200_000) == DATA[100:200_100]
        assert [exchange.sent for exchange in proxy.of("GET")] == [99_999, 100_001]

    def test_progress_resets_the_count(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /data", *[Fault(cut=200_000)] * 12)
        assert b"".join(client.stream(f"{proxy.url}/data")) == DATA
        assert len(proxy.of("GET")) == 13

    def test_a_stream_that_stands_still_ends(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /data", Fault(cut=1000), *[Fault(cut=0)] * 20)
        refused(RemoteError, "broke|ended", lambda: list(client.stream(f"{proxy.url}/data")))
        assert len(proxy.of("GET")) == 1 + OPTIONS.attempts - 1

    def test_a_stream_that_crawls_ends(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /data", *[Fault(cut=1)] * 1000)
        refused(RemoteError, "again and again", lambda: list(client.stream(f"{proxy.url}/data")))
        assert len(proxy.of("GET")) == 4 * OPTIONS.attempts + 1

    def test_the_object_must_stay_the_same(self, web: WebServer, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /data", Fault(cut=1000), Fault(headers={"ETag": '"other"'}))
        refused(FormatError, "changed while", lambda: list(client.stream(f"{proxy.url}/data")))
        proxy.script("GET /data", Fault(cut=1000), Fault(headers={"Content-Range": f"bytes 1000-9999/{len(DATA) - 1}"}))
        refused(FormatError, "bytes, not", lambda: list(client.stream(f"{proxy.url}/data", size=len(DATA))))

    def test_an_object_of_another_size_is_refused(self, web: WebServer, client: HttpClient) -> None:
        url = f"{web.url}/data"
        refused(FormatError, "has 3145728 bytes, not 3145729", lambda: list(client.stream(url, size=len(DATA) + 1)))
        refused(FormatError, "not 4000000", lambda: client.read_range(url, 0, 100, size=4_000_000))
        refused(FormatError, "has no bytes", lambda: client.read_range(url, len(DATA), 100))
        refused(FormatError, "has 3145728 bytes", lambda: client.read_range(url, len(DATA) - 5, 10))


class TestLies:
    @pytest.mark.parametrize(
        "answer",
        [
            Fault(headers={"Content-Range": "bytes 0-99/3145728"}),
            Fault(headers={"Content-Range": "bytes 100-199/*, bytes 3-4/9"}),
            Fault(headers={"Content-Range": "bytes 199-100/3145728"}),
            Fault(headers={"Content-Range": "bytes 100-300/3145728"}),
            Fault(headers={"Content-Range": None}),
            Fault(headers={"Content-Encoding": "gzip"}),
            Fault(extra=b"more"),
        ],
    )
    def test_a_wrong_part_is_refused(self, proxy: FaultProxy, client: HttpClient, answer: Fault) -> None:
        proxy.script("GET /data", answer)
        refused(RemoteError, "part|encoding|more bytes", lambda: client.read_range(f"{proxy.url}/data", 100, 100))

    def test_a_short_part_is_asked_for_again(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /data", Fault(short=10))
        assert client.read_range(f"{proxy.url}/data", 100, 100) == DATA[100:200]

    def test_bodies_have_bounds(self, web: WebServer, client: HttpClient) -> None:
        refused(RemoteError, "more than 4 bytes", lambda: client.get_bytes(f"{web.url}/small", limit=4))

    def test_endless_bodies_have_bounds(self, client: HttpClient) -> None:
        class Endless(Handler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/ok" else 500)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while True:
                    self.wfile.write(b"10000\r\n" + bytes(65_536) + b"\r\n")

        with Server(Endless) as server:
            refused(RemoteError, "more than 1000000 bytes", lambda: client.get_bytes(f"{server.url}/ok", limit=10**6))
            refused(RemoteError, "answered 500", lambda: client.get_bytes(f"{server.url}/no", limit=10))
            refused(RemoteError, "how many bytes", lambda: list(client.stream(f"{server.url}/ok")))

    def test_what_is_no_http_is_an_error(self, client: HttpClient) -> None:
        class Garbage(Handler):
            def do_GET(self) -> None:
                self.wfile.write(b"SSH-2.0-nothing\r\n\r\n")
                self.close_connection = True

        with Server(Garbage) as server:
            refused(RemoteError, "connection broke", lambda: client.get_bytes(server.url, limit=10))


class TestTrying:
    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_what_may_pass_is_tried_again(self, proxy: FaultProxy, client: HttpClient, status: int) -> None:
        proxy.script("GET /small", Fault(status=status), Fault(status=status, headers={"Retry-After": "1"}))
        assert client.get_bytes(f"{proxy.url}/small", limit=10) == b"hello"
        assert len(proxy.exchanges) == 3

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(400, RemoteError), (401, AccessError), (403, AccessError), (404, NotFoundError), (410, NotFoundError),
         (416, RemoteError), (501, RemoteError), (304, RemoteError), (204, RemoteError)],
    )  # fmt: skip
    def test_what_lasts_is_not(
        self, proxy: FaultProxy, client: HttpClient, status: int, kind: type[ErosealError]
    ) -> None:
        proxy.script("GET /small", Fault(status=status))
        error = refused(kind, str(status), lambda: client.get_bytes(f"{proxy.url}/small", limit=10))
        assert len(proxy.exchanges) == 1
        assert error.exit_code == (4 if kind is AccessError else 1)

    def test_tries_have_a_bound(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /small", *[Fault(status=503)] * 100)
        refused(RemoteError, "answered 503", lambda: client.get_bytes(f"{proxy.url}/small", limit=10))
        assert len(proxy.exchanges) == OPTIONS.attempts

    def test_requests_that_must_not_arrive_twice_do_not(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("POST", Fault(lose_answer=True))
        refused(TransientError, "broke", lambda: client.request("POST", f"{proxy.url}/x", content=b"x", retry=False))
        assert len(proxy.exchanges) == 1

    def test_a_lost_connection_is_tried_again(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET /small", Fault(lose_answer=True), Fault(cut=2))
        assert client.get_bytes(f"{proxy.url}/small", limit=10) == b"hello"

    def test_nobody_there(self) -> None:
        with WebServer({}) as server:
            url = server.url
        with HttpClient(RemoteOptions(attempts=1)) as client:
            refused(RemoteError, "cannot be reached", lambda: client.get_bytes(url, limit=10))
            refused(RemoteError, "no such host", lambda: client.get_bytes("https://nowhere.invalid/", limit=10))

    def test_a_silent_server_is_given_up(self) -> None:
        done = threading.Event()

        class Silent(Handler):
            def do_GET(self) -> None:
                done.wait(10)

        with Server(Silent) as server, HttpClient(RemoteOptions(attempts=1, timeout=0.1)) as client:
            refused(RemoteError, "in time", lambda: client.get_bytes(server.url, limit=10))
            done.set()

    @pytest.mark.parametrize("status", [200, 500])
    def test_a_server_that_drips_is_given_up(self, status: int) -> None:
        done = threading.Event()

        class Dripping(Handler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while not done.wait(0.02):
                    self.wfile.write(b".")

        with Server(Dripping) as server, HttpClient(RemoteOptions(attempts=1, timeout=0.3)) as client:
            words = "next to nothing" if status == 200 else "answered 500"
            refused(RemoteError, words, lambda: client.get_bytes(server.url, limit=1000))
            done.set()

    def test_retry_after_counts_within_bounds(self) -> None:
        assert retry_after({"retry-after": "7"}) == 7
        assert retry_after({"retry-after": "999999"}) == MAX_RETRY_AFTER
        assert retry_after({"retry-after": "-3"}) is None
        assert retry_after({"retry-after": "soon"}) is None
        assert retry_after({}) is None
        dates = {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT", "date": "Fri, 31 Dec 1999 23:59:49 GMT"}
        assert retry_after(dates) == 10
        assert retry_after(dates | {"date": "Sat, 01 Jan 2000 23:59:49 GMT"}) == 0
        assert retry_after({"retry-after": dates["date"]}, now=946684789.0) == 0


class TestLeadingAstray:
    def test_redirects_are_followed_for_reading(self, web: WebServer, proxy: FaultProxy, client: HttpClient) -> None:
        for status in (301, 302, 303, 307, 308):
            proxy.script("GET /away", Fault(status=status, headers={"Location": f"{web.url}/small?signed=yes"}))
            assert client.get_bytes(f"{proxy.url}/away", limit=10) == b"hello"
        proxy.script("GET /away", Fault(status=302, headers={"Location": "/small"}))
        assert client.get_bytes(f"{proxy.url}/away", limit=10) == b"hello"
        proxy.script("GET /away", *[Fault(status=307, headers={"Location": f"{web.url}/data"})] * 9)
        assert client.read_range(f"{proxy.url}/away", 100, 100) == DATA[100:200]

    def test_circles_end(self, proxy: FaultProxy, client: HttpClient) -> None:
        proxy.script("GET", *[Fault(status=302, headers={"Location": "/round"})] * 50)
        refused(RemoteError, "redirects more than 5", lambda: client.get_bytes(f"{proxy.url}/round", limit=10))
        assert len(proxy.exchanges) == 6

    @pytest.mark.parametrize(
        ("location", "words"),
        [
            ("http://example.org/x", "plain HTTP"),
            ("ftp://127.0.0.1/x", "not an address"),
            ("file:///etc/passwd", "not an address"),
            ("http://user:secret@127.0.0.1/", "do not carry passwords"),
            ("http://[::1", "no address"),
        ],
    )
    def test_redirects_to_elsewhere_are_refused(
        self, proxy: FaultProxy, client: HttpClient, location: str, words: str
    ) -> None:
        proxy.script("GET", Fault(status=302, headers={"Location": location}))
        error = refused(RemoteError, words, lambda: client.get_bytes(f"{proxy.url}/x", limit=10))
        assert "secret" not in str(error)

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_writes_are_not_redirected(
        self, web: WebServer, proxy: FaultProxy, client: HttpClient, method: str
    ) -> None:
        proxy.script(method, Fault(status=307, headers={"Location": f"{web.url}/small"}))
        refused(RemoteError, f"redirects a {method}", lambda: client.request(method, f"{proxy.url}/x", content=b"x"))

    def test_authorization_stays_with_its_host(self, web: WebServer, proxy: FaultProxy, client: HttpClient) -> None:
        with FaultProxy(web.host) as other:
            proxy.script("GET /away", Fault(status=302, headers={"Location": f"{other.url}/small"}))
            proxy.script("GET /near", Fault(status=302, headers={"Location": "/small"}))
            headers = {"Authorization": "Bearer secret"}
            assert client.get_bytes(f"{proxy.url}/away", limit=10, headers=headers) == b"hello"
            assert client.get_bytes(f"{proxy.url}/near", limit=10, headers=headers) == b"hello"
            assert "Authorization" not in other.exchanges[0].headers
            assert [item.headers.get("Authorization") for item in proxy.exchanges] == ["Bearer secret"] * 3

    def test_addresses_without_tls_or_with_passwords_are_refused(self, client: HttpClient) -> None:
        for url in (
            "http://example.org/x",
            "http://192.0.2.1/",
            "ftp://h/",
            "https://u:p@example.org/",
            "nonsense",
            "http://",
        ):
            refused(UsageError, "address|plain HTTP", lambda url=url: client.get_bytes(url, limit=1))


class TestWords:
    def test_errors_are_cleaned_and_short(self, proxy: FaultProxy, client: HttpClient) -> None:
        body = b"\x1b[31mboo\r\n\x00\x07 \xff" + b"x" * 10_000
        proxy.script("GET", Fault(status=400, body=body))
        error = refused(RemoteError, "boo", lambda: client.get_bytes(f"{proxy.url}/x", limit=10))
        assert str(error).isprintable()
        assert len(error.what) < MAX_ERROR_TEXT + 50

    def test_a_secret_that_is_repeated_is_not_shown(self, proxy: FaultProxy, client: HttpClient) -> None:
        secret = "Basic dXNlcjpodW50ZXIyIQ=="
        proxy.script("GET", Fault(status=403, body=f"{secret} means user:hunter2! or hunter2! alone".encode()))
        work = lambda: client.get_bytes(f"{proxy.url}/x?sig=hidden", limit=10, headers={"Authorization": secret})  # noqa: E731
        error = refused(AccessError, "means", work)
        assert not any(word in str(error) for word in ("hunter2", "dXNl", "hidden"))

    def test_addresses_are_shown_without_queries(self) -> None:
        assert shown("https://u:p@h/x?sig=1#f") == "https://h/x"
        assert clean("a\tb\u202e\x00c" + "d" * 500) == "a b c" + "d" * (MAX_ERROR_TEXT - 5)


@pytest.fixture(scope="module")
def tls_place(tmp_path_factory: pytest.TempPathFactory, require_peer: Callable[[str], str]) -> Path:
    place = tmp_path_factory.mktemp("tls")
    make_certificate(require_peer("openssl"), place)
    return place


@pytest.fixture(scope="module")
def tls(tls_place: Path) -> Iterator[Server]:

    class Hello(Handler):
        def do_GET(self) -> None:
            if self.path == "/plain":
                self.answer(302, {"Location": "http://127.0.0.1:1/x"})
            else:
                self.answer(200, {}, b"hello")

    with with_tls(Server(Hello), tls_place) as server:
        yield server


class TestTls:
    def test_certificates_are_checked(self, tls: Server, client: HttpClient) -> None:
        refused(RemoteError, "not trusted", lambda: client.get_bytes(f"https://{tls.host}/", limit=10))
        with HttpClient(RemoteOptions(tls_verify=False, attempts=1)) as trusting:
            assert trusting.get_bytes(f"https://{tls.host}/", limit=10) == b"hello"
            refused(RemoteError, "plain HTTP", lambda: trusting.get_bytes(f"https://{tls.host}/plain", limit=10))

    def test_what_speaks_no_tls(self, web: WebServer, client: HttpClient) -> None:
        refused(RemoteError, "does not speak TLS", lambda: client.get_bytes(f"https://{web.host}/small", limit=10))


class TestSettings:
    def test_proxies_are_used_for_other_hosts_only(self, web: WebServer) -> None:
        with WebServer({"http://example.test/x": b"by proxy"}) as proxy:
            settings = {"http_proxy": proxy.host, "NO_PROXY": "other.test, .inner.test"}
            options = RemoteOptions(tls_verify=False, attempts=1, environment=tuple(settings.items()))
            with HttpClient(options) as client:
                assert client.get_bytes("http://example.test/x", limit=10) == b"by proxy"
                assert client.get_bytes(f"{web.url}/small", limit=10) == b"hello"
                refused(RemoteError, "no such host", lambda: client.get_bytes("http://other.test/x", limit=10))

    @pytest.mark.parametrize(
        ("settings", "address", "expected"),
        [
            ({}, "https://h.test/", None),
            ({"https_proxy": "p:1"}, "https://h.test/", "http://p:1"),
            ({"HTTPS_PROXY": "https://p:1"}, "https://h.test/", "https://p:1"),
            ({"ALL_PROXY": "p:1"}, "https://h.test/", "http://p:1"),
            ({"HTTP_PROXY": "p:1"}, "http://h.test/", None),
            ({"https_proxy": "p:1"}, "http://h.test/", None),
            ({"https_proxy": "p:1", "no_proxy": "x,h.test"}, "https://h.test/", None),
            ({"https_proxy": "p:1", "no_proxy": ".test"}, "https://h.test/", None),
            ({"https_proxy": "p:1", "no_proxy": "test"}, "https://h.test/", None),
            ({"https_proxy": "p:1", "no_proxy": "*"}, "https://h.test/", None),
            ({"https_proxy": "p:1", "no_proxy": "h.test:443"}, "https://h.test/", None),
            ({"https_proxy": "p:1", "no_proxy": "h.test:80,.test:9,est,,"}, "https://h.test/", "http://p:1"),
            ({"https_proxy": "p:1"}, "https://localhost:5000/", None),
        ],
    )
    def test_variables(self, settings: dict[str, str], address: str, expected: str | None) -> None:
        assert proxy_for(parse_address(address), RemoteOptions(environment=tuple(settings.items()))) == expected

    def test_a_proxy_that_makes_no_sense(self) -> None:
        options = RemoteOptions(attempts=1, environment=(("https_proxy", "gopher://u:secret@p/"),))
        with HttpClient(options) as client:
            error = refused(UsageError, "proxy", lambda: client.get_bytes("https://h.test/", limit=1))
        assert "secret" not in str(error)

    def test_authorities_of_the_users_own(self, tls: Server, tls_place: Path) -> None:
        options = RemoteOptions(attempts=1, environment=(("SSL_CERT_FILE", str(tls_place / "cert.pem")),))
        with HttpClient(options) as client:
            assert client.get_bytes(f"https://{tls.host}/", limit=10) == b"hello"
        missing = RemoteOptions(environment=(("SSL_CERT_FILE", str(tls_place / "none.pem")),))
        refused(UsageError, "authorities", lambda: HttpClient(missing))
