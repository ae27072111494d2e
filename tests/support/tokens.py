"""A token server, as registries send their clients to: it knows one user, and signs what docker-registry accepts."""

from __future__ import annotations

import base64
import datetime
import json
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from tests.support.registry import PASSWORD, USER, TokenAuth
from tests.support.web import Handler, Server

SERVICE = "registry for tests"
ISSUER = "issuer for tests"
IDENTITY = "identity-of-carol"


class TokenServer(Server):
    """Gives tokens for what is asked, to `USER`; to others for pulls of `public/` only.

    `requests` keeps what it was asked: method, fields, Authorization. `life` is what it says of a token's life.
    """

    def __init__(self, place: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = make_certificate(self._key)
        self._bundle = place / "tokens.pem"
        self._bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self.requests: list[tuple[str, dict[str, list[str]], str | None]] = []
        self.life: int | None = 300
        self.spoiled = 0
        outer = self

        class Tokens(Handler):
            def do_GET(self) -> None:
                self.give(parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                self.give(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

            def give(self, fields: dict[str, list[str]]) -> None:
                authorization = self.headers.get("Authorization")
                outer.requests.append((self.command, fields, authorization))
                user = outer.user_of(fields, authorization)
                if user is None:
                    # A server that repeats what it was sent: nobody must see it in a message.
                    self.answer(401, {}, f"not you: {authorization} {fields}".encode())
                    return
                scopes = " ".join(fields.get("scope", [])).split()
                token = outer.sign(user, [scope for scope in scopes if user or scope.startswith("repository:public/")])
                answer = {"access_token" if self.command == "POST" else "token": token, "expires_in": outer.life}
                self.answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

        super().__init__(Tokens)

    def auth(self) -> TokenAuth:
        """What a registry has to know."""
        return TokenAuth(f"{self.url}/token", SERVICE, ISSUER, self._bundle)

    def user_of(self, fields: dict[str, list[str]], authorization: str | None) -> str | None:
        if "refresh_token" in fields:
            return USER if fields["refresh_token"] == [IDENTITY] else None
        if authorization is None:
            return ""
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return USER if authorization == expected else None

    def sign(self, user: str, scopes: list[str]) -> str:
        chain = base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":", 2)
            access.append({"type": kind, "name": name, "actions": actions.split(",") if user else ["pull"]})
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": user, "aud": SERVICE, "exp": now + 600, "nbf": now - 60, "iat": now,
                  "jti": f"{now}-{len(self.requests)}", "access": access}  # fmt: skip
        if self.spoiled:
            self.spoiled -= 1
            claims["exp"] = now - 3000
        signed = f"{encoded({'typ': 'JWT', 'alg': 'ES256', 'x5c': [chain]})}.{encoded(claims)}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        signature = base64.urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).rstrip(b"=").decode()
        return f"{signed}.{signature}"


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def make_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
