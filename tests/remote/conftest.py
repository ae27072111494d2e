"""Servers for the tests of remote stores: real registries on loopback, started once for each test process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.support.nginx import Nginx
from tests.support.registry import Registry
from tests.support.s3 import S3Server


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
