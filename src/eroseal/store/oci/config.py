"""Configs of sealed images: what the source image's config said, with the layers that the sealed one has.

No I/O. Kept is what an image does when it runs and where it comes from; dropped is the history, which speaks of
layers that are gone; replaced are the layers themselves; added is the feature `erofs`, by which engines that do not
know such images pass them over.

Source: the OCI image specification (config.md); erofs/erofs-image-spec, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from eroseal.errors import FormatError, OutputError
from eroseal.limits import MAX_MANIFEST

FEATURE: Final = "erofs"
"""In `os.features` of every EROFS image's config, and of its entry in an index."""
_DEFAULT_OS: Final = "linux"
_TEXTS: Final = ("created", "author", "architecture", "os", "os.version", "variant")


def config_for(original: bytes | None, *, architecture: str, diff_ids: Sequence[str]) -> bytes:
    """The config of a sealed image.

    Args:
        original: the config of the image that it was built from, if any.
        architecture: of an image without one, as Go calls it (`amd64`).
        diff_ids: digests of the uncompressed layers, in order.

    Raises:
        FormatError: `original` is not an image config.
        OutputError: larger than registries accept.
    """
    fields = _kept(original) if original is not None else {}
    fields["architecture"] = fields.get("architecture") or architecture
    fields["os"] = fields.get("os") or _DEFAULT_OS
    fields["os.features"] = [*(item for item in fields.get("os.features", []) if item != FEATURE), FEATURE]
    fields["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    order = ("created", "author", "architecture", "os", "os.version", "os.features", "variant", "config", "rootfs")
    data = msgspec.json.encode({name: fields[name] for name in order if name in fields})
    if len(data) > MAX_MANIFEST:
        raise OutputError(
            f"a config of {len(diff_ids)} layers has {len(data)} bytes, registries take {MAX_MANIFEST}",
            hint="build it again with --blobs build, or on fewer bases, so that it has fewer data blobs",
        )
    return data


def _kept(original: bytes) -> dict[str, Any]:
    """The fields that stay, each of the type that it must have."""
    if len(original) > MAX_MANIFEST:
        raise FormatError(f"image config has {len(original)} bytes, more than {MAX_MANIFEST}")
    try:
        found = msgspec.json.decode(original)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"not an image config: {error}") from error
    if not isinstance(found, dict):
        raise FormatError("not an image config: no JSON object")
    kept = {name: found[name] for name in (*_TEXTS, "os.features", "config") if found.get(name) is not None}
    features = kept.get("os.features", [])
    if not all(isinstance(kept.get(name, ""), str) for name in _TEXTS) or not isinstance(kept.get("config", {}), dict):
        raise FormatError("not an image config: a field has another type")
    if not isinstance(features, list) or not all(isinstance(item, str) for item in features):
        raise FormatError("not an image config: os.features is no list of names")
    return kept
