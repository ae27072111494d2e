"""`eroseal build` with bases and targets on servers that want options: an endpoint, credentials."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from tests.support.program import eroseal
from tests.support.registry import PASSWORD, USER, Registry
from tests.support.s3 import SECRET, S3Server

S3_KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Give a tree with one file that is long enough for a data blob."""
    tree = tmp_path / "app"
    tree.mkdir()
    (tree / "data").write_bytes(b"some content\n" * 10_000)
    return tree


class TestBasesOnServers:
    def test_a_bucket_at_an_endpoint(self, s3_server: S3Server, app: Path, tmp_path: Path) -> None:
        place = f"s3://{s3_server.new_bucket()}/images"
        given = ("--s3-endpoint", s3_server.url)
        eroseal("build", app, f"{place}:app-1", *given, cwd=tmp_path, environment=S3_KEYS)
        (app / "more").write_bytes(b"more\n" * 3000)
        built = eroseal(
            "build", app, f"{place}:app-2", "--base-auto", "--json", *given, cwd=tmp_path, environment=S3_KEYS
        )
        assert f"base: {place}:app-1" in built.err
        assert built.document["bytes_shared"] == 131_072

    def test_a_registry_behind_a_password(self, basic_registry: Registry, app: Path, tmp_path: Path) -> None:
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {basic_registry.host: {"auth": secret}}}))
        place = f"docker://{basic_registry.host}/bases/app"
        eroseal("build", app, f"{place}:1", "--authfile", auth, cwd=tmp_path)
        (app / "more").write_bytes(b"more\n" * 3000)
        given = ("--base", f"{place}:1", "--authfile", auth, "--json")
        built = eroseal("build", app, f"{place}:2", *given, cwd=tmp_path)
        assert built.document["bytes_shared"] == 131_072
        refused = eroseal("build", app, "dir:store:app", "--base", f"{place}:1", cwd=tmp_path, code=4)
        assert "without the right credentials" in refused.error
