"""Small contents and images in OCI form."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from eroseal.readat import BytesAt
from eroseal.store.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from eroseal.store.oci.repository import Repository


def descriptor_of(data: bytes, media_type: str = OCI_LAYER, **more: Any) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Descriptor(media_type=media_type, digest=digest, size=len(data), **more)


def put(repository: Repository, data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    descriptor = descriptor_of(data, media_type)
    repository.put_blob(descriptor, BytesAt(data))
    return descriptor


def layer_tar(**files: bytes) -> bytes:
    """A tar archive with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def plain(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def put_image(
    repository: Repository,
    *tars: bytes,
    tag: str | None = None,
    platform: tuple[str, str, str] = ("linux", "amd64", ""),
) -> Descriptor:
    """An image of these layers, compressed with gzip."""
    return repository.put_manifest(image_manifest(repository, *tars, platform=platform), OCI_MANIFEST, tag=tag)


def image_manifest(
    repository: Repository, *tars: bytes, platform: tuple[str, str, str] = ("linux", "amd64", ""), **fields: Any
) -> bytes:
    """The manifest of an image whose contents are put; `fields` replace those of the manifest."""
    os_name, architecture, variant = platform
    config = {
        "os": os_name,
        "architecture": architecture,
        "variant": variant,
        "config": {"Env": ["A=1"]},
        "rootfs": {"type": "layers", "diff_ids": [descriptor_of(tar).digest for tar in tars]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": plain(put(repository, json.dumps(config).encode(), OCI_CONFIG)),
        "layers": [plain(put(repository, gzip.compress(tar, 1, mtime=0), f"{OCI_LAYER}+gzip")) for tar in tars],
        **fields,
    }
    return json.dumps(manifest).encode()


def plant(layout: Path, data: bytes, media_type: str, tag: str) -> None:
    """Put a manifest into an image layout that no honest tool would put there."""
    descriptor = descriptor_of(data, media_type)
    (layout / "blobs/sha256" / descriptor.digest[7:]).write_bytes(data)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"].append({**plain(descriptor), "annotations": {"org.opencontainers.image.ref.name": tag}})
    (layout / "index.json").write_text(json.dumps(index))


def put_index(repository: Repository, entries: list[dict[str, Any]], *, tag: str | None = None) -> Descriptor:
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return repository.put_manifest(json.dumps(index).encode(), OCI_INDEX, tag=tag)
