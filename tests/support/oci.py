"""Small contents and images in OCI form."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
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
    **fields: Any,
) -> Descriptor:
    """An image of these layers, compressed with gzip; `fields` replace those of its manifest."""
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
    return repository.put_manifest(json.dumps(manifest).encode(), manifest["mediaType"], tag=tag)


def put_index(repository: Repository, entries: list[dict[str, Any]], *, tag: str | None = None) -> Descriptor:
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return repository.put_manifest(json.dumps(index).encode(), OCI_INDEX, tag=tag)
