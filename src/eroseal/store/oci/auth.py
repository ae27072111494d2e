"""Logging in to a registry: what it asks for, with what the user has, and to nobody else.

Nothing is sent unasked: the registry's 401 says whether it wants a password or a token, and where tokens are given.
A token covers all that was asked for so far, so that reads and writes of one repository do not take turns. It is
renewed before it expires, and once when the registry refuses it; of several threads that are refused, one renews.

Source: the distribution project's token authentication specification; RFC 6750; RFC 7617.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

import msgspec

from eroseal.errors import AccessError, ErosealError, RemoteError
from eroseal.limits import MAX_TOKEN
from eroseal.store.http import HttpClient
from eroseal.store.http_rules import LOG_IN, shown
from eroseal.store.oci.challenge import Challenge, parse_challenges
from eroseal.store.oci.credentials import Credential
from eroseal.store.remote import RemoteOptions

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
_CLIENT: Final = "eroseal"
_DEFAULT_LIFE: Final = 60
"""Seconds that a token lasts if its server does not say: the specification's own default."""
_LONGEST_LIFE: Final = 24 * 3600
_MARGIN: Final = 0.25
"""Part of a token's life in which it is renewed, for requests that take their time."""
_MAX_SCOPES: Final = 64
"""Scopes in one token: a push that mounts from other repositories needs one for each."""
_SCOPE: Final = re.compile(r"([a-z]+(?:\([a-z]+\))?):([^ \s]{1,300}):([A-Za-z*,]{1,100})", re.ASCII)


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class RegistryLogin:
    """An `Authenticator` for one registry; safe for use by several threads, and its text form shows no secret.

    Args:
        origin: scheme, host and port of the registry.
        options: for the requests to its token server.
        find: gives the user's credential when it is first needed, or None.
    """

    def __init__(
        self, origin: tuple[str, str, int], options: RemoteOptions, find: Callable[[], Credential | None]
    ) -> None:
        self._origin = origin
        self._options = options
        self._find = find
        self._lock = threading.Lock()
        self._found: list[Credential | None] = []
        self._header: str | None = None
        self._expires = float("inf")
        self._asked: tuple[str, str] = ("", "")
        self._scopes: dict[tuple[str, str], set[str]] = {}
        self._client: HttpClient | None = None

    @property
    def origin(self) -> tuple[str, str, int]:
        return self._origin

    def authorization(self) -> str | None:
        with self._lock:
            if self._header is not None and time.monotonic() >= self._expires:
                self._renew()
            return self._header

    def challenged(self, challenges: list[str], used: str | None) -> bool:
        with self._lock:
            if self._header != used:
                # Another thread has logged in since that request was sent.
                return True
            offered = {challenge.scheme: challenge for challenge in reversed(parse_challenges(challenges))}
            if "bearer" in offered:
                self._answer_bearer(offered["bearer"])
                return True
            if "basic" not in offered or used is not None:
                return False
            credential = self._credential()
            if credential is None or not credential.password:
                return False
            self._header, self._expires = credential.basic, float("inf")
            return True

    def close(self) -> None:
        """Close connections to the token server; closing twice does no harm."""
        if self._client is not None:
            self._client.close()

    def _credential(self) -> Credential | None:
        if not self._found:
            self._found.append(self._find())
        return self._found[0]

    def _answer_bearer(self, challenge: Challenge) -> None:
        realm = challenge.parameters.get("realm", "")
        if self._origin[0] == "https" and not realm.lower().startswith("https://"):
            raise RemoteError("wants passwords sent to a token server without TLS", where=shown(realm) or None)
        self._asked = (realm, challenge.parameters.get("service", ""))
        self._add_scopes(challenge.parameters.get("scope", ""))
        self._renew()

    def _add_scopes(self, text: str) -> None:
        for scope in text.split():
            match = _SCOPE.fullmatch(scope)
            if match is None or len(self._scopes) >= _MAX_SCOPES:
                raise RemoteError("asks for a token with a malformed scope")
            self._scopes.setdefault((match[1], match[2]), set()).update(match[3].split(","))

    def _renew(self) -> None:
        """Ask the token server; the lock is held, so that other threads wait for its answer."""
        realm, service = self._asked
        scopes = [f"{kind}:{name}:{','.join(sorted(actions))}" for (kind, name), actions in self._scopes.items()]
        credential = self._credential()
        self._client = self._client or HttpClient(self._options)
        try:
            body = _ask(self._client, realm, service, scopes, credential)
            answer = msgspec.json.decode(body, type=_TokenAnswer)
        except AccessError:
            hint = LOG_IN if credential is None else "log in anew"
            raise AccessError("its token server refuses", where=shown(realm), hint=hint) from None
        except ErosealError as error:
            # What the server said is left out: it may repeat what it was sent.
            said = error.what.partition(":")[0]
            raise RemoteError(f"cannot get a token: {said}", where=shown(realm), hint=error.hint) from None
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise RemoteError("its token server gives something else than a token", where=shown(realm)) from None
        token = answer.token or answer.access_token
        if len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
            raise RemoteError("its token server gives something else than a token", where=shown(realm))
        life = min(max(answer.expires_in or _DEFAULT_LIFE, 1), _LONGEST_LIFE)
        self._header, self._expires = f"Bearer {token}", time.monotonic() + life * (1 - _MARGIN)


def _ask(client: HttpClient, realm: str, service: str, scopes: list[str], credential: Credential | None) -> bytes:
    named = {"service": service} if service else {}
    if credential is not None and credential.identity_token:
        form = {
            "grant_type": "refresh_token",
            **named,
            "client_id": _CLIENT,
            "scope": " ".join(scopes),
            "refresh_token": credential.identity_token,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return client.request("POST", realm, headers=headers, content=urlencode(form).encode()).body
    fields = [*named.items(), *(("scope", scope) for scope in scopes)]
    headers = {}
    if credential is not None and credential.password:
        fields.insert(0, ("account", credential.username))
        headers["Authorization"] = credential.basic
    address = realm + ("&" if "?" in realm else "?") + urlencode(fields) if fields else realm
    return client.request("GET", address, headers=headers).body
