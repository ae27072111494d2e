"""Logging in to real registries: with a password, with tokens, with nothing; and that no secret goes astray."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.oci import descriptor_of, put, put_image
from tests.support.proxy import Fault, FaultProxy
from tests.support.registry import PASSWORD, USER, Registry
from tests.support.tokens import IDENTITY, TokenServer
from tests.support.web import Handler, Server

from eroseal.errors import AccessError, ErosealError, RemoteError
from eroseal.readat import BytesAt
from eroseal.store.oci.auth import RegistryLogin
from eroseal.store.oci.credentials import Credential
from eroseal.store.oci.registry import RegistryRepository
from eroseal.store.remote import RemoteOptions

pytestmark = pytest.mark.usefixtures("no_waiting")

SECRET = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture(autouse=True)
def _no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert not any(secret in logged for secret in (PASSWORD, SECRET, IDENTITY))


Open = Callable[..., RegistryRepository]


@pytest.fixture
def open_as(tmp_path: Path) -> Iterator[Open]:
    """Give a function that opens a repository with an entry of a credentials file."""
    opened: list[RegistryRepository] = []

    def make(host: str, name: str, entry: dict[str, str] | None = None, *, of: str | None = None) -> RegistryRepository:
        path = tmp_path / f"config{len(opened)}.json"
        path.write_text(json.dumps({"auths": {of or host: entry} if entry is not None else {}}))
        opened.append(RegistryRepository(host, name, RemoteOptions(auth_files=(path,), attempts=3)))
        return opened[-1]

    yield make
    for repository in opened:
        repository.close()


def expect_error(kind: type[ErosealError], words: str, work: Callable[[], object]) -> None:
    with pytest.raises(kind, match=words) as caught:
        work()
    error: BaseException | None = caught.value
    while error is not None:
        assert not any(secret in f"{error} {error!r}" for secret in (PASSWORD, SECRET, IDENTITY, "wrong one"))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class TestPasswords:
    def test_the_right_one(self, basic_registry: Registry, open_as: Open) -> None:
        repository = open_as(basic_registry.host, "basic/one", {"auth": SECRET})
        put_image(repository, b"", tag="t")
        assert repository.tags() == ["t"]
        blob = put(repository, b"content")
        assert b"".join(repository.stream_blob(blob)) == b"content"
        assert repository.open_blob(blob).read_at(1, 3) == b"ont"

    def test_none_and_the_wrong_one(self, basic_registry: Registry, open_as: Open) -> None:
        host = basic_registry.host
        expect_error(AccessError, "credentials", open_as(host, "x").tags)
        wrong = open_as(host, "x", {"username": USER, "password": "wrong one"})
        expect_error(AccessError, "credentials", wrong.tags)
        expect_error(AccessError, "credentials", lambda: put(wrong, b"content"))
        other = open_as(host, "x", {"auth": SECRET}, of="other.example")
        expect_error(AccessError, "credentials", other.tags)

    def test_nothing_is_sent_unasked(self, registry: Registry, open_as: Open) -> None:
        with FaultProxy(registry.host) as proxy:
            assert open_as(proxy.host, "unasked", {"auth": SECRET}).tags() == []
            assert not [item for item in proxy.exchanges if "Authorization" in item.headers]

    def test_a_redirect_does_not_take_it_along(
        self, basic_registry: Registry, registry: Registry, open_as: Open
    ) -> None:
        with FaultProxy(basic_registry.host) as proxy, FaultProxy(registry.host) as elsewhere:
            repository = open_as(proxy.host, "redirected", {"auth": SECRET})
            blob = put(repository, b"content")
            anonymous = open_as(registry.host, "redirected")
            put(anonymous, b"content")
            target = f"{elsewhere.url}/v2/redirected/blobs/{blob.digest}"
            proxy.script("GET .*/blobs/", *[Fault(status=307, headers={"Location": target})] * 3)
            assert b"".join(repository.stream_blob(blob)) == b"content"
            assert repository.open_blob(blob).read_at(0, 7) == b"content"
            assert len(elsewhere.exchanges) >= 2
            assert not [item for item in elsewhere.exchanges if "Authorization" in item.headers]

    def test_uploads_do_not_follow_to_elsewhere(self, basic_registry: Registry, open_as: Open) -> None:
        with FaultProxy(basic_registry.host) as proxy, FaultProxy(basic_registry.host) as elsewhere:
            repository = open_as(proxy.host, "astray", {"auth": SECRET})
            proxy.script("POST", Fault(status=202, headers={"Location": f"{elsewhere.url}/v2/upload?_state=1"}))
            expect_error(RemoteError, "go on at", lambda: put(repository, b"content"))
            assert elsewhere.exchanges == []


class TestTokens:
    def test_by_password(self, token_registry: Registry, token_server: TokenServer, open_as: Open) -> None:
        begin = len(token_server.requests)
        repository = open_as(token_registry.host, "team/app", {"auth": SECRET})
        put_image(repository, b"some", b"layers", tag="t")
        assert repository.tags() == ["t"]
        asked = token_server.requests[begin:]
        # One for reading, one for writing as well; not one for each request.
        assert len(asked) == 2
        assert asked[0][:2] == ("GET", {"account": [USER], "service": ["registry for tests"],
                                        "scope": ["repository:team/app:pull"]})  # fmt: skip
        assert asked[1][1]["scope"] == ["repository:team/app:pull,push"]

    def test_by_identity_token(self, token_registry: Registry, token_server: TokenServer, open_as: Open) -> None:
        repository = open_as(token_registry.host, "team/identity", {"identitytoken": IDENTITY})
        put(repository, b"content")
        method, fields, authorization = token_server.requests[-1]
        assert (method, authorization, fields["grant_type"]) == ("POST", None, ["refresh_token"])

    def test_by_nothing(self, token_registry: Registry, token_server: TokenServer, open_as: Open) -> None:
        owner = open_as(token_registry.host, "public/tool", {"auth": SECRET})
        put_image(owner, b"x", tag="t")
        anyone = open_as(token_registry.host, "public/tool")
        assert anyone.tags() == ["t"]
        assert token_server.requests[-1][2] is None
        expect_error(AccessError, "credentials", lambda: put(anyone, b"content"))
        expect_error(AccessError, "credentials", open_as(token_registry.host, "team/app").tags)

    def test_by_what_is_wrong(self, token_registry: Registry, open_as: Open) -> None:
        host = token_registry.host
        for entry in ({"username": USER, "password": "wrong one"}, {"identitytoken": "wrong one"}):
            expect_error(AccessError, "token server refuses.*log in anew", open_as(host, "team/app", entry).tags)

    def test_mounting_needs_rights_on_both(self, token_registry: Registry, open_as: Open) -> None:
        one = open_as(token_registry.host, "team/one", {"auth": SECRET})
        two = open_as(token_registry.host, "team/two", {"auth": SECRET})
        blob = put(one, b"shared content")
        assert two.mount_blob(blob, one)
        assert two.has_blob(blob)

    def test_a_token_that_went_bad_is_renewed_in_mid_work(
        self, token_registry: Registry, token_server: TokenServer, open_as: Open
    ) -> None:
        repository = open_as(token_registry.host, "team/renewed", {"auth": SECRET})
        blob = put(repository, b"content")
        login = repository._endpoint._get()[2]
        login._header = "Bearer stale"
        assert repository.has_blob(blob)
        login._header = "Bearer stale"
        put(repository, b"other content")
        login._expires = 0.0
        begin = len(token_server.requests)
        assert b"".join(repository.stream_blob(blob)) == b"content"
        assert len(token_server.requests) == begin + 1

    def test_a_token_that_stays_bad_is_no_loop(
        self, token_registry: Registry, token_server: TokenServer, open_as: Open
    ) -> None:
        repository = open_as(token_registry.host, "team/loop", {"auth": SECRET})
        token_server.spoiled = 100
        try:
            expect_error(AccessError, "credentials", repository.tags)
            assert token_server.spoiled == 99
        finally:
            token_server.spoiled = 0

    def test_threads_that_are_refused_together_renew_once(
        self, token_registry: Registry, token_server: TokenServer, open_as: Open
    ) -> None:
        repository = open_as(token_registry.host, "team/threads", {"auth": SECRET})
        blob = put(repository, b"content")
        login = repository._endpoint._get()[2]
        login._header = "Bearer stale"
        begin = len(token_server.requests)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: repository.has_blob(blob), range(32)))
        assert len(token_server.requests) == begin + 1


LoginAt = Callable[[str], RegistryLogin]


@pytest.fixture
def login_at() -> Iterator[LoginAt]:
    """Give a function that makes the login of a registry that is never asked."""
    made: list[RegistryLogin] = []

    def make(scheme: str) -> RegistryLogin:
        options = RemoteOptions(attempts=2)
        made.append(RegistryLogin((scheme, "127.0.0.1", 1), options, lambda: Credential(USER, PASSWORD)))
        return made[-1]

    yield make
    for login in made:
        login.close()


class TestTokenServers:
    """Answers of hostile token servers, and hostile challenges."""

    @pytest.mark.parametrize(
        "body",
        [b"", b"no json", b"{}", b'{"token": ""}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b'{"token": 7}',
         b'{"token": "' + b"x" * 70_000 + b'"}', b"[" * 100_000],
    )  # fmt: skip
    def test_what_is_no_token(self, login_at: LoginAt, body: bytes) -> None:
        class Bad(Handler):
            def do_GET(self) -> None:
                self.answer(200, {}, body)

        with Server(Bad) as server:
            login = login_at("http")
            challenge = f'Bearer realm="{server.url}/token",service="s",scope="repository:a:pull"'
            expect_error(RemoteError, "token", lambda: login.challenged([challenge], None))
            assert login.authorization() is None

    @pytest.mark.parametrize(
        ("challenge", "words"),
        [
            ('Bearer realm="http://127.0.0.1:1/token"', "without TLS"),
            ('Bearer realm="ftp://example.org/"', "without TLS"),
            ('Bearer service="x"', "without TLS"),
            ('Bearer realm="https://127.0.0.1:1/t",scope="nonsense"', "malformed scope"),
            ('Bearer realm="https://127.0.0.1:1/t",scope="repository:a b"', "malformed scope"),
        ],
    )
    def test_passwords_go_to_no_realm_without_tls(self, login_at: LoginAt, challenge: str, words: str) -> None:
        expect_error(RemoteError, words, lambda: login_at("https").challenged([challenge], None))

    def test_a_plain_realm_must_be_on_this_machine(self, login_at: LoginAt) -> None:
        challenge = 'Bearer realm="http://example.org/token"'
        expect_error(RemoteError, "plain HTTP", lambda: login_at("http").challenged([challenge], None))

    def test_a_failing_token_server_is_an_error(self, login_at: LoginAt) -> None:
        class Failing(Handler):
            def do_GET(self) -> None:
                self.answer(503, {}, self.headers.get("Authorization", "").encode())

        with Server(Failing) as server:
            challenge = f'Bearer realm="{server.url}/t"'
            expect_error(RemoteError, "answered 503", lambda: login_at("http").challenged([challenge], None))

    def test_a_password_is_not_offered_twice(self, login_at: LoginAt) -> None:
        login = login_at("http")
        assert login.challenged(["Basic realm=x"], None)
        assert not login.challenged(["Basic realm=x"], login.authorization())
        assert not login_at("http").challenged(["Digest realm=x"], None)

    def test_text_forms_show_no_secret(self, login_at: LoginAt) -> None:
        login = login_at("http")
        login.challenged(["Basic realm=x"], None)
        assert PASSWORD not in repr(login)
        assert SECRET not in repr(login)


def test_two_blobs_in_one_push_are_asked_for_once(registry: Registry, open_as: Open) -> None:
    repository = open_as(registry.host, "twice")
    told: list[int] = []
    blob = descriptor_of(b"content")
    repository.put_blob(blob, BytesAt(b"content"), progress=told.append)
    repository.put_blob(blob, BytesAt(b"not looked at"), progress=told.append)
    assert told == [7, 7]
