"""What `inspect` shows to people: the document in sections, with all foreign text made safe to print."""

from __future__ import annotations

from eroseal.report.document import shown, size_text, table
from eroseal.report.inspect import InspectDocument
from eroseal.report.inspect_stack import InspectStackDocument
from eroseal.report.listing import time_text
from eroseal.report.signers import SignerInfo


def inspect_text(document: InspectDocument) -> str:
    """What `inspect` prints without ``--json``."""
    sections = [_image_rows(document), _content_rows(document), _device_rows(document)]
    sections += [_signer_rows(signer) for signer in document.signers]
    return "\n\n".join("\n".join(table(rows)) for rows in sections)


def inspect_stack_text(document: InspectStackDocument) -> str:
    """What `inspect` prints of a stack without ``--json``: the whole, then layer by layer."""
    rows = [
        ("stack", document.image),
        ("layers", str(len(document.layers))),
        ("contents", _contents(document)),
    ]
    if document.encrypted:
        rows.append(("encrypted", "yes"))
    rows += [("record entry", f"{entry.type} {entry.name}, {size_text(entry.size)}") for entry in document.image_record]
    sections = [rows, _content_rows(document), *(_signer_rows(signer) for signer in document.signers)]
    for number, layer in enumerate(document.layers, 1):
        head = [("layer", f"{number} of {len(document.layers)}")]
        sections += [head + _image_rows(layer), _content_rows(layer), _device_rows(layer)]
    return "\n\n".join("\n".join(table(section)) for section in sections)


def _contents(document: InspectDocument | InspectStackDocument) -> str:
    by = "" if document.trusted_by is None else f" (by {document.trusted_by})"
    return document.contents + by


def _image_rows(document: InspectDocument) -> list[tuple[str, str]]:
    superblock, seal = document.superblock, document.seal
    rows = [
        ("image", document.image or "not sealed"),
        ("contents", _contents(document)),
        ("block size", str(superblock.block_size)),
        ("image time", time_text(superblock.epoch)),
        ("uuid", superblock.uuid),
        ("features", " ".join(superblock.features) or "none"),
    ]
    if superblock.volume_name:
        rows.append(("volume name", shown(superblock.volume_name)))
    if seal is not None:
        rows += [
            ("hash", seal.algorithm + (f", salt {seal.salt}" if seal.salt else "")),
            ("root hash", seal.root_hash),
        ]
    if document.encrypted:
        rows.append(("encrypted", "yes"))
    for label, entries in (("seal entry", seal.entries if seal else []), ("record entry", document.image_record)):
        rows += [(label, f"{entry.type} {entry.name}, {size_text(entry.size)}") for entry in entries]
    return rows


def _content_rows(document: InspectDocument | InspectStackDocument) -> list[tuple[str, str]]:
    space, files = document.space, document.files
    kinds = ", ".join(f"{count} {kind}" for kind, count in files.by_type.items())
    rows = [
        ("names", f"{files.names} ({files.hard_links} hard links)"),
        ("inodes", kinds),
        ("xattrs", str(files.xattrs)),
        ("contents", f"{size_text(space.logical_bytes)} in files, {size_text(space.stored_bytes)} stored"),
        ("holes", size_text(space.hole_bytes)),
        ("inline", size_text(space.inline_bytes)),
        (
            "shared",
            f"{size_text(space.shared_bytes)} in {space.shared_runs} runs, which saves {size_text(space.saved_bytes)}",
        ),
    ]
    if space.compressed_bytes:
        rows.append(("compressed", size_text(space.compressed_bytes)))
    return rows


def _device_rows(document: InspectDocument) -> list[tuple[str, str]]:
    rows = []
    for number, device in enumerate(document.devices):
        label = f"data blob {number}" if number else "meta blob"
        used = f"{size_text(device.size)}, {size_text(device.bytes_referenced)} used by files"
        rows.append((label, f"{device.digest or 'no digest'}  {used}"))
    return rows


def _signer_rows(signer: SignerInfo) -> list[tuple[str, str]]:
    rows = [("signature", f"{signer.form}, {signer.trust}")]
    if signer.problem is not None:
        rows.append(("problem", shown(signer.problem)))
    if signer.certificate is not None:
        certificate = signer.certificate
        rows += [
            ("signer", shown(certificate.subject)),
            ("issuer", shown(certificate.issuer)),
            ("valid", f"{time_text(certificate.not_before)} to {time_text(certificate.not_after)}"),
        ]
    if signer.key_id is not None:
        rows.append(("key id", signer.key_id))
    if signer.statement is not None:
        statement = signer.statement
        rows += [
            ("says image", statement.image + ("" if statement.this_image else " (not this image)")),
            ("says name", shown(statement.name) or "(none)"),
            ("says version", str(statement.version)),
            ("says created", time_text(statement.created)),
        ]
    return rows
