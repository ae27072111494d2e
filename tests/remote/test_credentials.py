"""Credentials from docker's and containers' files and from helpers, in every form that they have."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import ErosealError, KeyMaterialError, RemoteError
from eroseal.store.oci.challenge import MAX_CHALLENGE, Challenge, parse_challenges
from eroseal.store.oci.credentials import Credential, find_credential
from eroseal.store.remote import RemoteOptions


def basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


class Files:
    """Files of credentials and helpers below a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.paths: list[Path] = []

    def add(self, content: object) -> Path:
        path = self.place / f"config{len(self.paths)}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        self.paths.append(path)
        return path

    def helper(self, name: str, script: str) -> None:
        program = self.place / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def find(self, host: str, repository: str = "ns/repo", **environment: str) -> Credential | None:
        pairs = {"PATH": f"{self.place}:/usr/bin:/bin", **environment}
        options = RemoteOptions(auth_files=tuple(self.paths), environment=tuple(pairs.items()), timeout=5)
        return find_credential(options, host, repository)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class TestFiles:
    def test_the_first_file_that_knows_a_host_decides(self, files: Files, tmp_path: Path) -> None:
        files.paths.append(tmp_path / "missing.json")
        files.add({})
        files.add({"auths": {"other.example": basic("u", "0")}})
        files.add({"auths": {"registry.example": basic("u", "1")}})
        files.add({"auths": {"registry.example": basic("u", "2")}})
        assert files.find("registry.example") == Credential("u", "1")
        assert files.find("nobody.example") is None

    @pytest.mark.parametrize(
        ("key", "host"),
        [
            ("registry.example", "registry.example"),
            ("registry.example:5000", "registry.example:5000"),
            ("https://registry.example", "registry.example"),
            ("https://registry.example/v1/", "registry.example"),
            ("http://registry.example/v2/", "registry.example"),
            ("registry.example/", "registry.example"),
            ("Registry.Example", "registry.example"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
        ],
    )
    def test_keys_in_all_their_spellings(self, files: Files, key: str, host: str) -> None:
        files.add({"auths": {key: basic("u", "p")}})
        assert files.find(host) == Credential("u", "p")
        assert files.find("sub." + host) is None
        assert files.find("evil" + host) is None

    def test_the_most_specific_key_wins(self, files: Files) -> None:
        files.add({"auths": {"h.example": basic("u", "host"), "h.example/ns": basic("u", "ns"),
                             "h.example/ns/repo": basic("u", "repo")}})  # fmt: skip
        assert files.find("h.example", "ns/repo") == Credential("u", "repo")
        assert files.find("h.example", "ns/repo/deeper") == Credential("u", "repo")
        assert files.find("h.example", "ns/other") == Credential("u", "ns")
        assert files.find("h.example", "nsother/x") == Credential("u", "host")

    def test_entries_in_all_their_forms(self, files: Files) -> None:
        files.add({"auths": {
            "token.example": {"auth": base64.b64encode(b"u:").decode(), "identitytoken": "idt"},
            "bare.example": {"identitytoken": "idt"},
            "plain.example": {"username": "u", "password": "p:q"},
            "colon.example": basic("u", "p:q:r"),
            "nul.example": {"auth": base64.b64encode(b"u:p\0\0").decode()},
            "empty.example": {},
            "null.example": None,
        }, "HttpHeaders": {"X": "y"}, "credsStore": ""})  # fmt: skip
        assert files.find("token.example") == Credential("u", "", "idt")
        assert files.find("bare.example") == Credential("", "", "idt")
        assert files.find("plain.example") == Credential("u", "p:q")
        assert files.find("colon.example") == Credential("u", "p:q:r")
        assert files.find("nul.example") == Credential("u", "p")
        assert files.find("empty.example") is None
        assert files.find("null.example") is None

    @pytest.mark.parametrize(
        "content",
        ["no json hunter2", "[]", '{"auths": {"h.example": {"auth": "hunter2!"}}}', '{"auths": {"h.example": 7}}',
         '{"auths": {"h.example": {"auth": "aHVudGVyMg=="}}}', '{"auths": "hunter2"}', "{" * 100_000],
    )  # fmt: skip
    def test_malformed_files_are_refused_without_a_word_of_them(self, files: Files, content: str) -> None:
        path = files.add(content)
        with pytest.raises(KeyMaterialError) as caught:
            files.find("h.example")
        assert caught.value.where == str(path)
        assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)

    def test_text_forms_show_nothing(self) -> None:
        credential = Credential("user", "hunter2", "hunter3")
        assert "hunter" not in f"{credential!r} {credential}"


class TestHelpers:
    ECHO = (
        'read server; echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"$server\\",\\"Secret\\":\\"s:$EXTRA\\"}"'
    )

    def test_helpers_are_asked_for_the_host(self, files: Files) -> None:
        files.helper("echo", f'[ "$1" = get ] || exit 3; {self.ECHO}')
        files.add({"auths": {"h.example": {}}, "credHelpers": {"h.example": "echo", "docker.io": "echo"}})
        assert files.find("h.example", EXTRA="x") == Credential("h.example", "s:x")
        assert files.find("docker.io") == Credential("https://index.docker.io/v1/", "s:")
        assert files.find("other.example") is None

    def test_the_store_is_asked_for_all_others(self, files: Files) -> None:
        files.helper("one", 'echo "{\\"Username\\":\\"one\\",\\"Secret\\":\\"s\\"}"')
        files.helper("all", self.ECHO)
        files.add(
            {"credsStore": "all", "credHelpers": {"h.example": "one"}, "auths": {"h.example/ns": basic("u", "p")}}
        )
        assert files.find("h.example", "x/y") == Credential("one", "s")
        assert files.find("h.example", "ns/y") == Credential("u", "p")
        assert files.find("g.example") == Credential("g.example", "s:")

    def test_an_identity_token(self, files: Files) -> None:
        files.helper("token", 'echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"idt\\"}"')
        files.add({"credsStore": "token"})
        assert files.find("h.example") == Credential("", "", "idt")

    def test_a_helper_that_has_nothing(self, files: Files) -> None:
        files.helper("none", "echo credentials not found in native keychain; exit 1")
        files.add({"credsStore": "none", "auths": {"h.example": basic("u", "p")}})
        assert files.find("h.example") == Credential("u", "p")
        assert files.find("g.example") is None

    @pytest.mark.parametrize(
        ("name", "script", "words"),
        [
            ("bad", "echo hunter2; exit 1", "failed with status 1"),
            ("bad", "echo hunter2", "no credentials"),
            ("bad", "exec sleep 30", "does not end"),
            ("bad", "exec cat /dev/zero", "more than [0-9]+ bytes"),
            ("missing", "", "no program"),
            ("../bad", "echo hunter2", "no program"),
            ("", "", ""),
        ],
    )
    def test_helpers_that_fail(self, files: Files, tmp_path: Path, name: str, script: str, words: str) -> None:
        files.helper("bad", script or "exit 0")
        files.add({"credHelpers": {"h.example": name}})
        options = RemoteOptions(auth_files=tuple(files.paths), environment=(("PATH", f"{tmp_path}:/bin"),), timeout=0.3)
        if not name:
            assert find_credential(options, "h.example", "r") is None
            return
        with pytest.raises(KeyMaterialError, match=words) as caught:
            find_credential(options, "h.example", "r")
        assert "hunter2" not in str(caught.value)


class TestChallenges:
    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            (['Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
            (["Basic"], [Challenge("basic", {})]),
            (
                ['Bearer realm="https://t/x",service="s",scope="repository:a/b:pull,push"'],
                [Challenge("bearer", {"realm": "https://t/x", "service": "s", "scope": "repository:a/b:pull,push"})],
            ),
            (
                ['Basic realm="a, b", Bearer realm=t , error="x"'],
                [Challenge("basic", {"realm": "a, b"}), Challenge("bearer", {"realm": "t", "error": "x"})],
            ),
            (["NTLM", 'Basic realm="x"'], [Challenge("ntlm", {}), Challenge("basic", {"realm": "x"})]),
            (['Basic realm="a\\"b\\\\c"'], [Challenge("basic", {"realm": 'a"b\\c'})]),
            (["Negotiate YII+/=="], [Challenge("negotiate", {})]),
            (['BEARER REALM="x", realm="y"'], [Challenge("bearer", {"realm": "x"})]),
            ([], []),
            ([" , ,"], []),
        ],
    )
    def test_forms(self, headers: list[str], expected: list[Challenge]) -> None:
        assert parse_challenges(headers) == expected

    @pytest.mark.parametrize("header", ['Basic realm="x', 'Basic a="x"b', "=x", "Basic a=b c=d", "B\u00e9arer x=y"])
    def test_malformed(self, header: str) -> None:
        with pytest.raises(RemoteError, match="malformed"):
            parse_challenges([header])

    def test_too_long(self) -> None:
        with pytest.raises(RemoteError, match="more than"):
            parse_challenges(["Basic realm=x, " * 2000])
        assert MAX_CHALLENGE < 15 * 2000

    @given(st.lists(st.text(alphabet='BasicReal m="\\,=/x:é\t', max_size=60), max_size=3))
    def test_anything_parses_or_is_refused(self, headers: list[str]) -> None:
        try:
            found = parse_challenges(headers)
        except ErosealError:
            return
        assert all(challenge.scheme == challenge.scheme.lower() for challenge in found)
