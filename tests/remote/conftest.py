"""Servers for the tests of remote stores: real registries on loopback, started once for each test process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import stamina
from tests.support.nginx import Nginx
from tests.support.registry import Registry
from tests.support.s3 import S3Server
from tests.support.tokens import TokenServer


@pytest.fixture(scope="session")
def registry(require_peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Give a registry that anybody may write to; tests use repositories of their own names."""
    server = Registry(require_peer("docker-registry"), tmp_path_factory.mktemp("registry"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def basic_registry(require_peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Give a registry that wants a user's name and password."""
    server = Registry(require_peer("docker-registry"), tmp_path_factory.mktemp("basic-registry"), auth="the realm")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Give an S3 server; tests make buckets of their own."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def web_server(require_peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """Give a web server; tests make directories of their own below its `site`."""
    server = Nginx(require_peer("nginx"), tmp_path_factory.mktemp("nginx"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    """Give a server that gives tokens to one user."""
    with TokenServer(tmp_path_factory.mktemp("tokens")) as server:
        yield server


@pytest.fixture(scope="session")
def token_registry(
    require_peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory, token_server: TokenServer
) -> Iterator[Registry]:
    """Give a registry that wants a token of `token_server`."""
    place = tmp_path_factory.mktemp("token-registry")
    server = Registry(require_peer("docker-registry"), place, auth=token_server.auth())
    yield server
    server.stop()


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Try again at once; as often as otherwise."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield
