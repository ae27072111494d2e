"""Which of an index's images is meant: by operating system and processor, as Go spells them.

Source: the OCI image specification (image-index.md, "platform"); Go's GOOS and GOARCH.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eroseal.errors import NotFoundError, UsageError
from eroseal.store.oci.config import FEATURE
from eroseal.store.oci.documents import INDEXES, MANIFESTS, Descriptor

_PLATFORM: Final = re.compile(r"([a-z0-9]+)/([a-z0-9_]+)(?:/([a-z0-9.]+))?", re.ASCII)
_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "loongarch64": ("loong64", ""),
}
"""Architecture and variant of what uname calls otherwise than Go."""
_ALIASES: Final = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386"}
# What an entry without a variant means, and the other way round.
_IMPLIED: Final = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_UNKNOWN: Final = "unknown"
_ATTESTATION: Final = "vnd.docker.reference.type"
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Target:
    """A platform to choose.

    Args:
        os: operating system.
        architecture: of the processor.
        variant: of the architecture; empty takes any, the plainest first.
    """

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def accepts(self, os: str, architecture: str, variant: str) -> bool:
        """Whether an image of this platform is what is meant."""
        implied = _IMPLIED.get(self.architecture, "")
        same = not self.variant or (variant or implied) == self.variant
        return (os, architecture) == (self.os, self.architecture) and same


def parse_platform(text: str) -> Target:
    """Read `os/arch[/variant]`; raises UsageError."""
    match = _PLATFORM.fullmatch(text)
    if match is None:
        raise UsageError(f"not a platform: {text!r}", hint="write os/arch or os/arch/variant, as linux/arm64")
    return Target(match[1], _ALIASES.get(match[2], match[2]), match[3] or "")


def machine_target(machine: str) -> Target:
    """Linux on the machine that uname calls so."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Target("linux", architecture, variant)


def choose(entries: Sequence[Descriptor], target: Target, *, where: str) -> Descriptor:
    """The entry of an index for a platform.

    Attestations and artifacts are passed over. An index of a single image without a platform means that one.

    Raises:
        NotFoundError: there is none; says which there are.
    """
    images = [entry for entry in entries if _is_image(entry)]
    fitting = [entry for entry in images if _fits(entry, target)]
    if not fitting and len(images) == 1 and images[0].platform is None:
        return images[0]
    if not fitting:
        there = sorted({_name(entry) for entry in images})
        hint = f"there are: {', '.join(there[:_SHOWN])}" if there else "there are no images in it"
        raise NotFoundError(f"no image for {target}", where=where, hint=hint)
    # Of several the plainest: one without a variant runs everywhere, and EROFS images are no source of a build.
    return min(fitting, key=lambda entry: (_is_erofs(entry), _variant(entry)))


def _is_image(entry: Descriptor) -> bool:
    attestation = _ATTESTATION in entry.annotations
    unknown = entry.platform is not None and _UNKNOWN in (entry.platform.os, entry.platform.architecture)
    return entry.media_type in MANIFESTS | INDEXES and not attestation and not unknown and entry.artifact_type is None


def _fits(entry: Descriptor, target: Target) -> bool:
    platform = entry.platform
    return platform is not None and target.accepts(platform.os, platform.architecture, platform.variant)


def _is_erofs(entry: Descriptor) -> bool:
    return entry.platform is not None and FEATURE in entry.platform.os_features


def _variant(entry: Descriptor) -> str:
    return entry.platform.variant if entry.platform is not None else ""


def _name(entry: Descriptor) -> str:
    if entry.platform is None:
        return "one without a platform"
    return str(Target(entry.platform.os, entry.platform.architecture, entry.platform.variant))
