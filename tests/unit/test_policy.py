"""The policy: what vouches for an image and what does not, with signatures of our own making."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.peer.certs import (
    END,
    NOW,
    PAST,
    SERVER,
    Identity,
    ec_key,
    intermediate_ca,
    make,
    root_ca,
    rsa_key,
    signer,
    usage,
    write_key,
)

from eroseal.crypto import ed25519
from eroseal.crypto.cms import parse_cms, sign_bare, sign_statement, verify_cms
from eroseal.crypto.keys import (
    check_pair,
    check_signing_pair,
    load_certificates,
    load_ed25519_private_key,
    load_ed25519_public_key,
    load_private_key,
)
from eroseal.errors import AuthenticityError, FormatError, KeyMaterialError, UsageError
from eroseal.format import record
from eroseal.format.digest import Digest, HashAlgorithm
from eroseal.format.fsverity import formatted_digest
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageSignature, SignatureKind, StackDigest, Statement
from eroseal.limits import MAX_CERTIFICATES, MAX_IMAGE_SIGNATURES
from eroseal.trust.policy import Policy, RolelessForm, authenticate
from eroseal.trust.policyfile import load_policy_file, parse_policy_file

DIGEST = Digest(HashAlgorithm.SHA256, b"i" * 32)
OTHER = Digest(HashAlgorithm.SHA256, b"o" * 32)
ROOT = root_ca()
INTERMEDIATE = intermediate_ca(ROOT)
SIGNER = signer(INTERMEDIATE)
ALONE = signer(name="alone")
RSA = signer(key=rsa_key(), name="rsa")
ED_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ED_PUBLIC = ED_KEY.public_key()
STRANGE = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"), True)


def statement(digest: Digest | StackDigest = DIGEST, name: str = "web", version: int = 5) -> Statement:
    return Statement(digest, name, version, NOW)


def cms_entry(by: Identity = SIGNER, what: Statement | None = None, **options: object) -> RecordEntry:
    text = (what or statement()).encode()
    der = sign_statement(text, by.key, by.certificate, chain=by.chain, **options)  # type: ignore[arg-type]
    return RecordEntry(record.IMAGE_SIGNATURE, ImageSignature(SignatureKind.CMS, text, der).encode())


def ed_entry(key: Ed25519PrivateKey = ED_KEY, what: Statement | None = None) -> RecordEntry:
    text = (what or statement()).encode()
    value = ImageSignature(SignatureKind.ED25519, text, ed25519.sign(key, text), ed25519.key_id(key.public_key()))
    return RecordEntry(record.IMAGE_SIGNATURE, value.encode())


def policy(**options: object) -> Policy:
    options.setdefault("time", NOW)
    return Policy(**options)  # type: ignore[arg-type]


def pinning(*identities: Identity, **options: object) -> Policy:
    return policy(certificates=tuple(item.certificate for item in identities), **options)


def under(*identities: Identity, **options: object) -> Policy:
    return policy(ca_certificates=tuple(item.certificate for item in identities), **options)


def refused(rules: Policy, *entries: RecordEntry, digest: Digest | StackDigest = DIGEST) -> str:
    with pytest.raises(AuthenticityError) as caught:
        authenticate(rules, digest, entries)
    assert caught.value.step == 3
    return str(caught.value)


# Pinned digests


def test_a_pinned_digest_needs_nothing_else() -> None:
    decision = authenticate(policy(digests=(OTHER, DIGEST)), DIGEST, [])
    assert (decision.trusted_by, decision.signer, decision.statement) == ("digest", None, None)


def test_the_image_for_another_digest_is_refused_and_both_are_named() -> None:
    message = refused(policy(digests=(OTHER,)))
    assert str(DIGEST) in message
    assert str(OTHER) in message


def test_a_signature_does_not_rescue_an_image_with_another_digest_than_the_pinned_one() -> None:
    rules = replace(pinning(SIGNER), digests=(OTHER,))
    assert "is pinned" in refused(rules, cms_entry())


def test_a_digest_of_another_algorithm_or_kind_with_the_same_bytes_is_another_digest() -> None:
    refused(policy(digests=(DIGEST,)), digest=StackDigest(DIGEST.value))


def test_name_and_version_hold_for_pinned_digests_too() -> None:
    rules = replace(pinning(SIGNER), digests=(DIGEST,), name="web", min_version=5)
    assert "no image signature" in refused(rules)
    decision = authenticate(rules, DIGEST, [cms_entry()])
    assert decision.trusted_by == "digest"
    assert decision.statement == statement()
    assert "version 4" in refused(rules, cms_entry(what=statement(version=4)))


# Signatures


@pytest.mark.parametrize("by", [SIGNER, ALONE, RSA], ids=["ecdsa", "self-signed", "rsa"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_a_pinned_certificate(by: Identity, hash_name: str) -> None:
    decision = authenticate(pinning(ROOT, by), DIGEST, [cms_entry(by, hash_name=hash_name)])
    assert decision.trusted_by == "cert"
    assert decision.signer == by.certificate.subject.rfc4514_string()
    assert decision.statement == statement()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_wider_curves(curve: ec.EllipticCurve, hash_name: str) -> None:
    by = signer(INTERMEDIATE, key=ec_key(curve))
    assert authenticate(under(ROOT), DIGEST, [cms_entry(by, hash_name=hash_name)]).trusted_by == "ca"


@pytest.mark.parametrize("digest", [Digest(HashAlgorithm.SHA512, b"x" * 64), StackDigest(b"s" * 32)])
def test_sha512_images_and_stacks(digest: Digest | StackDigest) -> None:
    rules = replace(pinning(SIGNER), ed25519_keys=(ED_PUBLIC,))
    for entry in (cms_entry(what=statement(digest)), ed_entry(what=statement(digest))):
        assert authenticate(rules, digest, [entry]).statement == statement(digest)


def test_ed25519() -> None:
    decision = authenticate(policy(ed25519_keys=(ED_PUBLIC,)), DIGEST, [ed_entry()])
    assert decision.trusted_by == "ed25519"
    assert decision.signer == f"ed25519:{ed25519.key_id(ED_PUBLIC).hex()}"


def test_a_signature_by_another_key_is_refused() -> None:
    stranger = Ed25519PrivateKey.generate()
    assert "not an accepted" in refused(policy(ed25519_keys=(ED_PUBLIC,)), ed_entry(stranger))
    assert "not an accepted" in refused(pinning(ALONE), cms_entry())
    # The key id of the accepted key over a signature by another one.
    text = statement().encode()
    forged = ImageSignature(SignatureKind.ED25519, text, ed25519.sign(stranger, text), ed25519.key_id(ED_PUBLIC))
    entry = RecordEntry(record.IMAGE_SIGNATURE, forged.encode())
    assert "does not match" in refused(policy(ed25519_keys=(ED_PUBLIC,)), entry)
    # The accepted certificate beside a signature by another key.
    forged = ImageSignature(SignatureKind.CMS, text, sign_statement(text, ec_key(), SIGNER.certificate))
    entry = RecordEntry(record.IMAGE_SIGNATURE, forged.encode())
    assert "does not match" in refused(pinning(SIGNER), entry)


def test_a_replayed_signature_for_another_image_is_refused() -> None:
    for entry in (cms_entry(), ed_entry()):
        rules = replace(pinning(SIGNER), ed25519_keys=(ED_PUBLIC,))
        assert "another image" in refused(rules, entry, digest=OTHER)


@pytest.mark.parametrize("make_entry", [cms_entry, ed_entry])
def test_a_tampered_statement_is_refused(make_entry: Callable[..., RecordEntry]) -> None:
    rules = replace(pinning(SIGNER), ed25519_keys=(ED_PUBLIC,))
    honest = ImageSignature.parse(make_entry(what=statement(OTHER)).value)
    for lie in (statement(), statement(name="db"), statement(version=99)):
        forged = replace(honest, statement=lie.encode())
        refused(rules, RecordEntry(record.IMAGE_SIGNATURE, forged.encode()))


def test_every_bit_of_an_ed25519_entry_counts() -> None:
    rules = policy(ed25519_keys=(ED_PUBLIC,))
    good = ed_entry().value
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        refused(rules, RecordEntry(record.IMAGE_SIGNATURE, bytes(bad)))


def test_a_stale_version_and_another_name_under_a_valid_signature() -> None:
    entry = cms_entry()
    assert authenticate(pinning(SIGNER, name="web", min_version=5), DIGEST, [entry]).trusted_by == "cert"
    assert "name 'web'" in refused(pinning(SIGNER, name="db"), entry)
    assert "version 5" in refused(pinning(SIGNER, min_version=6), entry)


def test_one_good_signature_among_bad_ones_is_found() -> None:
    noise = RecordEntry(record.IMAGE_SIGNATURE, b"noise")
    entries = [noise, cms_entry(ALONE), ed_entry(), cms_entry(), RecordEntry(record.ACCESS_TRACE, b"")]
    assert authenticate(pinning(SIGNER), DIGEST, entries).signer == "CN=signer"


def test_each_refusal_is_named_and_their_number_is_bounded() -> None:
    message = refused(pinning(SIGNER), RecordEntry(record.IMAGE_SIGNATURE, b"noise"), cms_entry(ALONE))
    assert "truncated" in message
    assert "CN=alone" in message
    many = [RecordEntry(record.IMAGE_SIGNATURE, b"noise")] * MAX_IMAGE_SIGNATURES
    assert f"and {MAX_IMAGE_SIGNATURES - 8} more" in refused(pinning(SIGNER), *many)
    assert "more than" in refused(pinning(SIGNER), *many, cms_entry())


# Certificates and paths


def test_a_path_through_the_intermediate_that_travelled() -> None:
    decision = authenticate(under(ROOT), DIGEST, [cms_entry()])
    assert (decision.trusted_by, decision.signer) == ("ca", "CN=signer")


def test_an_intermediate_can_be_the_anchor() -> None:
    assert authenticate(under(INTERMEDIATE), DIGEST, [cms_entry()]).trusted_by == "ca"


def test_no_path_without_the_intermediate() -> None:
    assert "issuer is neither" in refused(under(ROOT), cms_entry(replace(SIGNER, chain=())))


def test_another_ca_with_the_same_name() -> None:
    assert "no valid path" in refused(under(root_ca()), cms_entry())


EARLY = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("by", "rules"),
    [
        (lambda: signer(INTERMEDIATE, end=EARLY), under(ROOT)),
        (lambda: signer(intermediate_ca(ROOT, end=EARLY)), under(ROOT)),
        (lambda: SIGNER, under(root_ca(key=ROOT.key, end=EARLY))),
    ],
    ids=["signer", "intermediate", "root"],
)
def test_expired_anywhere_in_the_path(by: Callable[[], Identity], rules: Policy) -> None:
    entry = cms_entry(by())
    refused(rules, entry)
    then = replace(rules, time=int(EARLY.timestamp()) - 1)
    assert authenticate(then, DIGEST, [entry]).trusted_by == "ca"


def test_time_decides_for_pinned_certificates() -> None:
    expired = signer(name="expired", end=EARLY)
    entry = cms_entry(expired)
    assert "expired at 2026-02-01" in refused(pinning(expired), entry)
    assert authenticate(pinning(expired, time=int(EARLY.timestamp())), DIGEST, [entry]).trusted_by == "cert"
    assert "expired" in refused(pinning(expired, time=int(EARLY.timestamp()) + 1), entry)
    assert "not valid before 2026-01-01" in refused(pinning(expired, time=PAST), entry)


@pytest.mark.parametrize("rules", [pinning, lambda by: under(ROOT)], ids=["pinned", "ca"])
def test_key_usage(rules: Callable[[Identity], Policy]) -> None:
    for extension, message in [(usage("key_encipherment"), "key usage"), (SERVER, "code signing")]:
        by = signer(INTERMEDIATE, extensions=[(extension, True)])
        assert message in refused(rules(by), cms_entry(by))
    unlimited = signer(INTERMEDIATE, extensions=[])
    authenticate(rules(unlimited), DIGEST, [cms_entry(unlimited)])


@pytest.mark.parametrize(
    "intermediate",
    [
        lambda: intermediate_ca(ROOT, ca=None),
        lambda: intermediate_ca(ROOT, ca=False),
        lambda: intermediate_ca(ROOT, extensions=[(usage("digital_signature"), True)]),
        lambda: intermediate_ca(ROOT, extensions=[(SERVER, False)]),
        lambda: intermediate_ca(ROOT, extensions=[STRANGE]),
        lambda: intermediate_ca(ROOT, extensions=[(x509.NameConstraints([x509.DNSName("example.org")], None), True)]),
        lambda: intermediate_ca(intermediate_ca(ROOT, "limited", path_length=0)),
    ],
    ids=["no constraints", "not a CA", "usage", "purpose", "critical", "names", "path length"],
)
def test_intermediates_that_may_not_issue(intermediate: Callable[[], Identity]) -> None:
    assert "no valid path" in refused(under(ROOT), cms_entry(signer(intermediate())))


def test_signers_that_no_ca_may_vouch_for() -> None:
    critical = signer(INTERMEDIATE, extensions=[STRANGE])
    assert "critical" in refused(under(ROOT), cms_entry(critical))
    both = [(usage("digital_signature", "key_cert_sign"), True)]
    assert "CA certificate" in refused(under(ROOT), cms_entry(intermediate_ca(ROOT, extensions=both)))
    root = make("signing root", ca=True, extensions=both)
    assert "CA certificate" in refused(under(root), cms_entry(root))
    # Pinned by name it is what the user asked for: `openssl req -x509` makes such certificates.
    assert authenticate(pinning(root), DIGEST, [cms_entry(root)]).trusted_by == "cert"


@pytest.mark.parametrize("key", [rsa_key(1024), ec_key(ec.SECP256K1())], ids=["rsa-1024", "secp256k1"])
def test_weak_keys(key: object) -> None:
    by = signer(INTERMEDIATE, key=key)
    for rules in (pinning(by), under(ROOT)):
        refused(rules, cms_entry(by))


def test_certificates_that_all_issue_each_other_end_in_a_refusal() -> None:
    key = ec_key()
    loop = [make("loop", issuer=make("loop", key=key, ca=True), key=key, ca=True) for _ in range(15)]
    by = replace(signer(loop[0]), chain=tuple(item.certificate for item in loop))
    assert "no valid path" in refused(under(ROOT), *[cms_entry(by)] * MAX_IMAGE_SIGNATURES)


def test_more_certificates_than_a_signature_holds() -> None:
    chain = tuple(signer().certificate for _ in range(MAX_CERTIFICATES))
    with pytest.raises(KeyMaterialError, match="at most 16"):
        cms_entry(replace(SIGNER, chain=chain))
    builder = pkcs7.PKCS7SignatureBuilder().set_data(statement().encode())
    builder = builder.add_signer(SIGNER.certificate, SIGNER.key, hashes.SHA256())
    for item in chain:
        builder = builder.add_certificate(item)
    der = builder.sign(Encoding.DER, [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary])
    with pytest.raises(FormatError, match="more than 16"):
        parse_cms(der)


# Forms without a role


def test_kernel_and_bootloader_forms_count_only_by_name() -> None:
    message = formatted_digest(DIGEST)
    kernel = RecordEntry(record.FSVERITY_SIGNATURE, sign_bare(message, RSA.key, RSA.certificate))
    boot = RecordEntry(record.BOOTLOADER_SIGNATURE, ed25519.sign(ED_KEY, message))
    rules = replace(pinning(RSA), ed25519_keys=(ED_PUBLIC,))
    assert "no image signature" in refused(rules, kernel, boot)
    for form, entry in ((RolelessForm.FSVERITY, kernel), (RolelessForm.BOOTLOADER, boot)):
        accepting = replace(rules, accept=frozenset({form}))
        assert authenticate(accepting, DIGEST, [entry]).trusted_by == form.value
        refused(accepting, entry, digest=OTHER)
        refused(accepting, entry, digest=StackDigest(DIGEST.value))
        refused(replace(accepting, name="web"), entry)
        refused(replace(accepting, min_version=0), entry)
    expired = replace(rules, accept=frozenset({RolelessForm.FSVERITY}), time=int(END.timestamp()) + 1)
    assert "expired" in refused(expired, kernel)
    stranger = replace(pinning(ALONE), accept=frozenset(RolelessForm))
    assert "no certificate fits" in refused(stranger, kernel)
    assert "no accepted Ed25519 key" in refused(stranger, boot)


def test_an_image_signature_is_no_kernel_signature_and_the_other_way_round() -> None:
    rules = replace(pinning(SIGNER), accept=frozenset(RolelessForm))
    text = statement().encode()
    with_certificates = sign_statement(formatted_digest(DIGEST), SIGNER.key, SIGNER.certificate)
    refused(rules, RecordEntry(record.FSVERITY_SIGNATURE, with_certificates))
    bare = ImageSignature(SignatureKind.CMS, text, sign_bare(text, SIGNER.key, SIGNER.certificate))
    assert "no certificate fits" in refused(rules, RecordEntry(record.IMAGE_SIGNATURE, bare.encode()))


def test_the_dm_verity_form_is_never_accepted() -> None:
    with pytest.raises(UsageError, match="neither length nor salt"):
        RolelessForm.from_name("dm-verity")
    with pytest.raises(UsageError, match="unknown"):
        RolelessForm.from_name("anything")
    root_hash = b"ab" * 32
    entry = RecordEntry(record.DMVERITY_SIGNATURE, sign_bare(root_hash, RSA.key, RSA.certificate))
    refused(replace(pinning(RSA), accept=frozenset(RolelessForm)), entry)


# Policies that make no sense


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"digests": (DIGEST,), "name": "web"},
        {"digests": (DIGEST,), "min_version": 1},
        {"digests": (DIGEST,), "time": -1},
        {"digests": (DIGEST,), "time": 10**12},
        {"ca_certificates": (SIGNER.certificate,)},
        {"certificates": (SIGNER.certificate,), "name": "a\nb"},
    ],
)
def test_senseless_policies(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        policy(**options)


# Malformed CMS

GOOD_CMS = [
    sign_statement(statement().encode(), item.key, item.certificate, chain=item.chain) for item in (SIGNER, RSA)
]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(GOOD_CMS), st.data())
def test_mutated_cms_raises_only_our_errors(good: bytes, data: st.DataObject) -> None:
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(bad) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "delete", "cut"])):
            case "flip":
                bad[at] ^= data.draw(st.integers(1, 255))
            case "insert":
                bad[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case "delete":
                del bad[at : at + data.draw(st.integers(1, 4))]
            case _:
                del bad[at + 1 :]
        if not bad:
            break
    entry = RecordEntry(
        record.IMAGE_SIGNATURE,
        ImageSignature(SignatureKind.CMS, statement().encode(), bytes(bad) or b"\0").encode(),
    )
    try:
        decision = authenticate(pinning(SIGNER, RSA, time=NOW), DIGEST, [entry])
    except AuthenticityError:
        return
    # What still verifies may differ only where no authority lies: in the other certificates.
    assert decision.statement == statement()


def test_flipped_bits_outside_the_certificates_never_verify() -> None:
    good = GOOD_CMS[0]
    passed = []
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        try:
            verify_cms(parse_cms(bytes(bad)), statement().encode())
        except (FormatError, AuthenticityError):
            continue
        passed.append(at)
    # Certificates are not covered by the signature itself: they are judged by pin or path afterwards.
    certificates = [good.index(item.public_bytes(Encoding.DER)) for item in (SIGNER.certificate, *SIGNER.chain)]
    sizes = [len(item.public_bytes(Encoding.DER)) for item in (SIGNER.certificate, *SIGNER.chain)]
    inside = {at for start, size in zip(certificates, sizes, strict=True) for at in range(start, start + size)}
    assert set(passed) <= inside


@pytest.mark.parametrize("noise", [b"", b"\x30", b"\x30\x80\x00\x00", b"\x30" * 65_536, b"\x30" * 65_537])
def test_noise_is_no_cms(noise: bytes) -> None:
    with pytest.raises(FormatError):
        parse_cms(noise)


def test_trailing_bytes_and_ber_lengths() -> None:
    good = GOOD_CMS[0]
    assert good[:2] == b"\x30\x82"
    for bad in (good + b"\0", b"\x30\x83\0" + good[2:], b"\x30\x80" + good[4:] + b"\0\0"):
        with pytest.raises(FormatError):
            parse_cms(bad)


# Key files


def test_keys_of_all_kinds_load_and_match(tmp_path: Path) -> None:
    for number, identity in enumerate([SIGNER, RSA, signer(key=ec_key(ec.SECP521R1()))]):
        key_file, pem = identity.write(tmp_path, f"k{number}")
        key, chain = load_private_key(key_file), load_certificates(pem)
        assert chain == (identity.certificate, *identity.chain)
        check_signing_pair(key, chain[0], time=NOW, where=str(pem))
    loaded = load_ed25519_private_key(write_key(ED_KEY, tmp_path / "ed.key"))
    assert loaded.private_bytes_raw() == ED_KEY.private_bytes_raw()


def test_a_key_that_does_not_match(tmp_path: Path) -> None:
    with pytest.raises(KeyMaterialError, match=r"signer\.pem: .*does not match"):
        check_pair(RSA.key, SIGNER.certificate, where="signer.pem")
    with pytest.raises(KeyMaterialError, match="does not match"):
        check_pair(ED_KEY, SIGNER.certificate, where="signer.pem")


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (signer(end=EARLY), "expired"),
        (signer(extensions=[(usage("key_agreement"), True)]), "key usage"),
        (make("tls", extensions=[(SERVER, False)]), "code signing"),
    ],
    ids=["expired", "usage", "purpose"],
)
def test_certificates_that_nobody_should_sign_with(by: Identity, message: str) -> None:
    with pytest.raises(KeyMaterialError, match=message) as caught:
        check_signing_pair(by.key, by.certificate, time=NOW, where="c.pem")
    assert caught.value.where == "c.pem"
    assert caught.value.exit_code == 1


def test_encrypted_keys(tmp_path: Path) -> None:
    path = write_key(SIGNER.key, tmp_path / "locked.key", passphrase=b"secret")
    with pytest.raises(KeyMaterialError, match=r"locked\.key: .*encrypted"):
        load_private_key(path)
    with pytest.raises(KeyMaterialError, match="wrong passphrase"):
        load_private_key(path, passphrase=lambda _: b"guess")
    asked = []
    key = load_private_key(path, passphrase=lambda where: asked.append(where) or b"secret")
    assert asked == [str(path)]
    check_pair(key, SIGNER.certificate, where="")


def test_broken_key_and_certificate_files(tmp_path: Path) -> None:
    key_file, pem = SIGNER.write(tmp_path, "good")
    weak = write_key(rsa_key(1024), tmp_path / "weak.key")
    curve = write_key(ec_key(ec.SECP256K1()), tmp_path / "curve.key")
    broken = tmp_path / "broken.pem"
    broken.write_bytes(pem.read_bytes().replace(b"A", b"B", 20))
    huge = tmp_path / "huge.pem"
    huge.write_bytes(b"#" * (1 << 20) + pem.read_bytes())
    many = tmp_path / "many.pem"
    many.write_bytes(pem.read_bytes() * 9)
    cases = [
        (load_private_key, tmp_path / "absent", "No such file"),
        (load_private_key, tmp_path, "directory"),
        (load_private_key, pem, "not a private key"),
        (load_private_key, weak, "1024 bits"),
        (load_private_key, curve, "secp256k1"),
        (load_private_key, huge, "more than"),
        (load_ed25519_private_key, key_file, "not an Ed25519"),
        (load_certificates, key_file, "no certificate"),
        (load_certificates, broken, "broken"),
        (load_certificates, many, "more than 16"),
        (load_ed25519_public_key, pem, "not a public key"),
        (load_ed25519_public_key, key_file, "private key where"),
        (load_ed25519_public_key, write_public(RSA, tmp_path / "rsa.pub"), "not an Ed25519"),
    ]
    for load, path, message in cases:
        with pytest.raises(KeyMaterialError, match=message) as caught:
            load(path)
        assert caught.value.where == str(path)


def write_public(identity: Identity | Ed25519PrivateKey, path: Path) -> Path:
    key = identity.key if isinstance(identity, Identity) else identity
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


# Policy files


def test_a_policy_file_in_order_with_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    SIGNER.write(tmp_path / "keys", "release")
    ROOT.write(tmp_path, "root")
    write_public(ED_KEY, tmp_path / "ed.pem")
    path = tmp_path / "policy.toml"
    path.write_text(
        f"""
        [image."dir:/srv/images:web-*"]
        cert = "keys/release.pem"
        name = "web"
        min-version = 5

        [image."dir:/srv/*"]
        ca = ["root.pem"]
        ed25519 = ["ed.pem"]
        accept = ["bootloader"]
        at = {PAST}

        [image."*.erofs"]
        digest = ["{DIGEST}", "{StackDigest(bytes(32))}"]
        """
    )
    rules = load_policy_file(path)
    web = rules.policy_for("dir:/srv/images:web-1", time=NOW)
    assert web == pinning(SIGNER, name="web", min_version=5)
    other = rules.policy_for("dir:/srv/images:db", time=NOW)
    assert (other.time, other.ca_certificates) == (PAST, (ROOT.certificate,))
    assert [key.public_bytes_raw() for key in other.ed25519_keys] == [ED_PUBLIC.public_bytes_raw()]
    assert other.accept == {RolelessForm.BOOTLOADER}
    assert rules.policy_for("/tmp/x.erofs", time=7).digests == (DIGEST, StackDigest(bytes(32)))
    assert rules.policy_for("/tmp/x.erofs", time=7).time == 7
    with pytest.raises(UsageError, match=r"policy\.toml: no pattern matches"):
        rules.policy_for("oci:elsewhere", time=NOW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[image", "not a TOML"),
        ("\xff", "not a TOML"),
        ("a = " + "[" * 5000, "not a TOML"),
        ("", "holds tables"),
        ("image = 1", "holds tables"),
        ("[images.x]\n", "holds tables"),
        ("[image]\nx = 1", "not a table"),
        ("[image.x]\nmin_version = 1", "unknown key 'min_version'"),
        ("[image.x]\ndigest = 1", "must be a string or"),
        ("[image.x]\ndigest = [1]", "must be a string or"),
        ("[image.x]\ndigest = 'fsverity'", "not an image digest"),
        ("[image.x]\nname = 1", "must be a string"),
        ("[image.x]\nmin-version = true", "must be a number"),
        ("[image.x]\nmin-version = -1", "must be a number"),
        ("[image.x]\naccept = 'dm-verity'", "neither length"),
        ("[image.x]\nname = 'web'", "no source of trust"),
    ],
)
def test_broken_policy_files(text: str, message: str, tmp_path: Path) -> None:
    data = text.encode("latin-1")
    with pytest.raises(UsageError, match=message):
        parse_policy_file(data, directory=tmp_path)


def test_policy_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_policy_file(tmp_path / "absent.toml")
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="more than"):
        load_policy_file(huge)
    with pytest.raises(KeyMaterialError, match=r"gone\.pem"):
        parse_policy_file(b"[image.x]\ncert = 'gone.pem'", directory=tmp_path)
