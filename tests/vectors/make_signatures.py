"""Vectors of statements and signatures; openssl makes the certificates and the CMS."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.vectors.inputs import Vector
from tests.vectors.making import KEYS, SHA256, SHA512, TIME, Vectors, tool

from eroseal.crypto import ed25519
from eroseal.format.digest import Digest
from eroseal.format.fsverity import formatted_digest
from eroseal.format.record import (
    ACCESS_TRACE,
    BOOTLOADER_SIGNATURE,
    DATA_BLOB_SIGNATURE,
    DMVERITY_SIGNATURE,
    FSVERITY_SIGNATURE,
    IMAGE_SIGNATURE,
)
from eroseal.format.statement import ImageSignature, SignatureKind, StackDigest, Statement

# --- statements and signatures ---

IMAGE = Digest(SHA256, hashlib.sha256(b"an image").digest())
OTHER = Digest(SHA256, hashlib.sha256(b"another image").digest())


def statements() -> Vectors:
    out = Vectors("statements.json")
    good = {
        "sha256": Statement(IMAGE, "web", 5, TIME),
        "sha512": Statement(Digest(SHA512, bytes(range(64))), "café", 0, 0),
        "stack": Statement(StackDigest(bytes(range(32))), "", (1 << 64) - 1, (1 << 64) - 1),
        "longest-name": Statement(IMAGE, "n" * 255, 1, 1),
    }
    for name, item in good.items():
        fields = {
            "bytes": item.encode().hex(),
            "digest": str(item.digest),
            "name": item.name,
            "version": item.version,
            "created": item.created,
        }
        out.add(name, "a statement", fields)

    def raw(digest: bytes = str(IMAGE).encode(), name: bytes = b"web", prefix: bytes = b"eroseal-image-v1\0") -> bytes:
        texts = b"".join(struct.pack("<H", len(text)) + text for text in (digest, name))
        return prefix + texts + struct.pack("<QQ", 5, TIME)

    if raw() != good["sha256"].encode():
        raise SystemExit("raw statement")
    bad = {
        "other-role": raw(prefix=b"eroseal-image-v2\0"),
        "no-role": raw(prefix=b""),
        "fsverity-form": formatted_digest(IMAGE),
        "uppercase-digest": raw(digest=str(IMAGE)[:-4].encode() + b"ABCD"),
        "no-digest": raw(digest=b""),
        "cut-digest": raw(digest=str(IMAGE).encode()[:-2]),
        "name-not-utf8": raw(name=b"\xff"),
        "name-with-newline": raw(name=b"a\nb"),
        "name-that-turns-the-text-around": raw(name="a\u202eb".encode()),
        "name-of-256-bytes": raw(name=b"n" * 256),
        "name-length-past-the-end": raw()[:102] + b"\xff\xff" + raw()[104:],
        "trailing-byte": raw() + b"\0",
        "cut": raw()[:-1],
        "empty": b"",
        "longer-than-512-bytes": raw() + bytes(400),
    }
    for name, data in bad.items():
        out.add(name, "bytes that are no statement", {"bytes": data.hex()}, layer="parse")
    return out


CONFIG = """
[req]
distinguished_name = dn
[dn]
[ca]
database = {directory}/index.txt
serial = {directory}/serial
new_certs_dir = {directory}
policy = any
default_md = sha256
unique_subject = no
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = codeSigning
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
"""


class Authority:
    """Certificates and signatures by openssl."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "config").write_text(CONFIG.format(directory=directory))
        (directory / "index.txt").touch()
        (directory / "serial").write_text("1000\n")

    def file(self, name: str) -> Path:
        return self.directory / name

    def certificate(self, name: str, section: str, issuer: str = "", *, rsa: bool = False, end: str = "2036") -> None:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        key = ["-newkey", "rsa:2048"] if rsa else curve
        files = ["-keyout", self.file(f"{name}.key"), "-out", self.file(f"{name}.csr")]
        tool("openssl", "req", "-new", "-nodes", *key, *files, "-subj", f"/CN={name}", "-config", self.file("config"))
        command = ["ca", "-batch", "-notext", "-config", self.file("config"), "-name", "ca"]
        command += ["-in", self.file(f"{name}.csr"), "-out", self.file(f"{name}.pem"), "-extensions", section]
        command += ["-startdate", "20260101000000Z", "-enddate", f"{end}0101000000Z"]
        own = ["-selfsign", "-keyfile", self.file(f"{name}.key")]
        other = ["-keyfile", self.file(f"{issuer}.key"), "-cert", self.file(f"{issuer}.pem")]
        tool("openssl", *command, *(other if issuer else own))

    def der(self, name: str) -> bytes:
        out = self.file("der")
        tool("openssl", "x509", "-in", self.file(f"{name}.pem"), "-outform", "DER", "-out", out)
        return out.read_bytes()

    def sign(self, name: str, content: bytes, *options: str, chain: str = "") -> bytes:
        self.file("content").write_bytes(content)
        command = ["cms", "-sign", "-binary", "-outform", "DER", "-in", self.file("content"), "-out", self.file("sig")]
        command += ["-signer", self.file(f"{name}.pem"), "-inkey", self.file(f"{name}.key"), "-nosmimecap", *options]
        tool("openssl", *command, *(["-certfile", self.file(f"{chain}.pem")] if chain else []))
        return self.file("sig").read_bytes()


Entry = tuple[int, bytes]
"""Type and value."""


def image_signature(statement: bytes, signature: bytes, key: Ed25519PrivateKey | None = None) -> Entry:
    kind = SignatureKind.CMS if key is None else SignatureKind.ED25519
    key_id = bytes(32) if key is None else ed25519.key_id(key.public_key())
    return IMAGE_SIGNATURE, ImageSignature(kind, statement, signature, key_id).encode()


def ed_signature(statement: Statement, key: Ed25519PrivateKey = KEYS[0]) -> Entry:
    text = statement.encode()
    return image_signature(text, key.sign(text), key)


def signatures(directory: Path) -> Vectors:
    out = Vectors("signatures.json")
    make = Authority(directory)
    make.certificate("root", "authority")
    make.certificate("intermediate", "authority", "root")
    make.certificate("signer", "leaf", "intermediate")
    make.certificate("rsa", "leaf", "root", rsa=True)
    make.certificate("expired", "leaf", "root", end="2027")
    make.certificate("server", "server", "root")
    make.certificate("other", "authority")
    statement = Statement(IMAGE, "web", 5, TIME)
    text = statement.encode()
    kernel = formatted_digest(IMAGE)
    keys = [key.public_key().public_bytes_raw().hex() for key in KEYS]
    by_signer = image_signature(text, make.sign("signer", text, chain="intermediate"))
    by_rsa = image_signature(text, make.sign("rsa", text, "-noattr", "-md", "sha512"))
    by_expired = image_signature(text, make.sign("expired", text))
    pkcs7 = make.sign("rsa", kernel, "-noattr", "-nocerts")
    root_hash = make.sign("rsa", bytes(range(32)).hex().encode(), "-noattr", "-nocerts")
    bootloader = KEYS[0].sign(kernel)
    ed = ed_signature(statement)
    for name in ("root", "signer", "rsa", "other"):
        out.part(f"certificate-{name}", {"certificate": make.der(name).hex()})
    # What each case accepts, besides the time.
    ca, leaf = {"ca": ["certificate-root"]}, {"certificates": ["certificate-signer"]}
    rsa, raw = {"certificates": ["certificate-rsa"]}, {"ed25519": keys[:1]}
    names: dict[Entry, str] = {}

    def entry_name(entry: Entry) -> str:
        if entry not in names:
            names[entry] = f"entry-{len(names) + 1}"
            out.part(names[entry], {"type": entry[0], "value": entry[1].hex()})
        return names[entry]

    def case(
        key: str, what: str, entries: list[Entry], policy: Vector, result: str = "", origin: str = "openssl"
    ) -> None:
        listed = [entry_name(entry) for entry in entries]
        fields: Vector = {"digest": str(IMAGE), "entries": listed, "policy": {"time": TIME} | policy}
        if result:
            fields["trusted_by"] = result
        out.add(key, what, fields, layer=None if result else "policy", origin=origin)

    case("digest", "a pinned digest", [], {"digests": [str(IMAGE)]}, "digest", "eroseal")
    case("other-digest", "another digest is pinned", [by_signer], ca | {"digests": [str(OTHER)]})
    case("ca", "CMS by ECDSA, a leaf below an intermediate, under its root", [by_signer], ca, "ca")
    case("leaf", "the same signer, pinned", [by_signer], leaf, "cert")
    case("rsa", "CMS by RSA without signed attributes, SHA-512", [by_rsa], rsa, "cert")
    case("other-ca", "another CA", [by_signer], {"ca": ["certificate-other"]})
    case("no-chain", "the intermediate did not travel", [image_signature(text, make.sign("signer", text))], ca)
    case("at-in-the-past", "a time at which the signer was valid", [by_expired], ca | {"time": 1_780_000_000}, "ca")
    case("expired", "an expired certificate", [by_expired], ca)
    case("not-yet-valid", "a time before the certificate's", [by_signer], ca | {"time": 1_700_000_000})
    case("purpose", "a certificate for servers", [image_signature(text, make.sign("server", text))], ca)
    case("name-and-version", "both as required", [by_signer], ca | {"name": "web", "min_version": 5}, "ca")
    case("stale", "a version below the lowest", [by_signer, ed], ca | raw | {"min_version": 6})
    case("other-name", "another name", [by_signer, ed], ca | raw | {"name": "db"})
    moved = Statement(OTHER, "web", 5, TIME).encode()
    case("moved", "a signature of another image", [image_signature(moved, make.sign("rsa", moved))], rsa)
    case("rewritten", "the statement rewritten, the signature kept",
         [image_signature(text, make.sign("rsa", moved))], rsa)  # fmt: skip
    case("second-of-two", "a foreign signature beside a good one", [by_rsa, by_signer], leaf, "cert")
    case(
        "malformed-beside",
        "a malformed signature beside a good one",
        [(IMAGE_SIGNATURE, b"\0"), by_signer],
        leaf,
        "cert",
    )
    broken = by_rsa[1][:-1] + bytes([by_rsa[1][-1] ^ 1])
    case("bit", "the last bit of the signature", [(IMAGE_SIGNATURE, broken)], rsa)
    inside = image_signature(text, make.sign("rsa", text, "-nodetach"))
    case("content-inside", "CMS that carries its content", [inside], rsa)
    sha1 = image_signature(text, make.sign("rsa", text, "-md", "sha1"))
    case("sha1", "CMS with SHA-1", [sha1], rsa)
    case("trailing", "a byte after the CMS", [image_signature(text, make.sign("rsa", text) + b"\0")], rsa)
    case("ed25519", "Ed25519", [ed], raw, "ed25519", "RFC 8032")
    case("other-ed25519", "another Ed25519 key", [ed_signature(statement, KEYS[1])], raw, origin="RFC 8032")
    forged = image_signature(text, KEYS[1].sign(text), KEYS[0])
    case("ed25519-key-id", "the accepted key's id, another key's signature", [forged], raw, origin="RFC 8032")
    fsverity, boot = {"accept": ["fsverity"]}, {"accept": ["bootloader"]}
    case("type-17", "the kernel's form, accepted by name", [(FSVERITY_SIGNATURE, pkcs7)], rsa | fsverity, "fsverity")
    case("type-17-unnamed", "the kernel's form, not named", [(FSVERITY_SIGNATURE, pkcs7)], rsa)
    case("type-17-and-name", "it carries no name", [(FSVERITY_SIGNATURE, pkcs7)], rsa | fsverity | {"name": "web"})
    case("type-17-as-16", "the kernel's form as an image signature",
         [image_signature(kernel, pkcs7)], rsa | fsverity)  # fmt: skip
    case("type-18", "the dm-verity form never counts", [(DMVERITY_SIGNATURE, root_hash)], rsa | fsverity)
    case("type-19", "the bootloaders' form, accepted by name", [(BOOTLOADER_SIGNATURE, bootloader)], raw | boot,
         "bootloader", "RFC 8032")  # fmt: skip
    case("type-19-unnamed", "the bootloaders' form, not named", [(BOOTLOADER_SIGNATURE, bootloader)], raw,
         origin="RFC 8032")  # fmt: skip
    case("type-22", "a data blob's signature", [(DATA_BLOB_SIGNATURE, pkcs7)], rsa | fsverity)
    case("nothing", "no signature", [(ACCESS_TRACE, b"")], rsa, origin="eroseal")
    return out
