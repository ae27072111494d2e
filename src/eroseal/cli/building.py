"""Options that decide what a build makes, and what the environment says about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from eroseal.cli.params import FILE, HEX, SIZE, TIME, gathered
from eroseal.cli.signing import Signing
from eroseal.errors import UsageError

if TYPE_CHECKING:
    from eroseal.build.options import BuildOptions
    from eroseal.build.publish import MakeRecord
    from eroseal.format.record import RecordEntry
    from eroseal.format.statement import ImageDigest
    from eroseal.store.reference import Reference

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """These options as they were given; those that are not described here are as in `BuildOptions`.

    Args:
        blobs: None where nothing was said: one for each build, none for a single file.
        platform: of a container image.
        owners, file_contexts: files with lists.
    """

    layers: str
    platform: str | None
    blobs: str | None
    chunk_size: int
    inline_max: int
    algorithm: str
    salt: bytes
    timestamp: int | None
    exclude: tuple[str, ...]
    all_root: bool
    owners: Path | None
    file_contexts: Path | None
    replace: bool
    work: Path | None

    def options(self, *, jobs: int | None, durable: bool) -> BuildOptions:
        """The options of a build, without what the lists of owners and contexts say; raises UsageError."""
        from eroseal.build.options import BlobLayout, BuildOptions, LayerMode
        from eroseal.format.digest import HashAlgorithm, TreeParams

        return BuildOptions(
            blobs=BlobLayout(self.blobs or "build"),
            layers=LayerMode(self.layers),
            params=TreeParams(HashAlgorithm.from_name(self.algorithm), self.salt),
            chunk_size=self.chunk_size,
            inline_max=self.inline_max,
            timestamp=self.timestamp,
            clamp=source_date_epoch(),
            all_root=self.all_root,
            exclude=self.exclude,
            jobs=jobs,
            durable=durable,
            replace=self.replace,
            work=self.work,
        )


_OPTIONS: Final = (
    click.option(
        "--layers",
        type=click.Choice(["merge", "stack"]),
        default="merge",
        show_default=True,
        help="Make one image of a container image's layers, or a stack with an image for each.",
    ),
    click.option(
        "--platform", metavar="OS/ARCH", help="Platform of a container image.  [default: Linux on this processor]"
    ),
    click.option(
        "--blobs",
        type=click.Choice(["none", "build", "layer", "file"]),
        help="Where data goes: into the image itself, or into a blob for each build, layer or file.  "
        "[default: build; none for a single file]",
    ),
    click.option("--chunk-size", type=SIZE, default="64K", show_default=True, help="A power of two from 4K to 1M."),
    click.option(
        "--inline-max", type=SIZE, default="4095", show_default=True, help="Longest file or tail inside the meta blob."
    ),
    click.option(
        "--hash",
        "algorithm",
        type=click.Choice(["sha256", "sha512"]),
        default="sha256",
        show_default=True,
        help="Hash of all trees.",
    ),
    click.option("--salt", type=HEX, default="", metavar="HEX", help="Salt of all trees, at most 32 bytes."),
    click.option("--timestamp", type=TIME, metavar="TIME", help="Set all times and the image's own to this."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out paths or names that match; may repeat."),
    click.option("--all-root", is_flag=True, help="Make root the owner of everything."),
    click.option("--owners", type=FILE, metavar="FILE", help="Owners and permissions by path; see docs/cli.md."),
    click.option("--file-contexts", type=FILE, metavar="FILE", help="SELinux contexts by path, see file_contexts(5)."),
    click.option("--replace", is_flag=True, help="Take the place of an image that has this name."),
    click.option(
        "--work",
        type=FILE,
        metavar="DIR",
        help="Where an image is built before it goes to a server.  [default: $TMPDIR]",
    ),
)


def building_options(function: _F) -> _F:
    """All of these options; the verb gets them as one `Building` in the argument `building`."""
    fields = tuple(Building.__dataclass_fields__)
    return gathered(function, _OPTIONS, argument="building", fields=fields, make=Building)


def make_record(signing: Signing, *, ask: bool = True) -> MakeRecord | None:
    """What makes the image record: keys are loaded now, and used when the digest is known.

    Args:
        signing: who signs.
        ask: for passphrases on the terminal, where there is no file.

    Raises:
        UsageError, KeyMaterialError: nobody can sign like that.
    """
    signing.check_wanted()
    if not signing.wanted:
        return None
    from eroseal.seal.sign import sign_image

    signers = signing.load(ask=ask)

    def record(image: ImageDigest, root_hash: bytes | None) -> Sequence[RecordEntry]:
        if signing.for_kernel and root_hash is None:
            raise UsageError("a stack of layers has no form for kernels: sign its layers")
        return sign_image(
            signing.statement(image),
            signers,
            root_hash=root_hash if signing.for_kernel else None,
            for_bootloader=signing.for_bootloader,
        )

    return record


def check_apart(source: str, target: Reference) -> None:
    """Refuse a target inside a source directory: the build would read what it writes; raises UsageError."""
    from eroseal.store.reference import FileReference, LayoutReference, StoreReference

    if isinstance(target, FileReference):
        place = Path(os.path.dirname(target.path) or ".")
    elif isinstance(target, StoreReference | LayoutReference):
        place = target.store
    else:
        return
    root = os.path.realpath(source)
    if os.path.commonpath([root, os.path.realpath(place)]) == root and os.path.isdir(root):
        raise UsageError(
            f"the target {target} lies in the source {source}", hint="write it elsewhere, or --exclude its directory"
        )


def source_date_epoch() -> int | None:
    """Seconds that the variable SOURCE_DATE_EPOCH holds; raises UsageError."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 63 or len(text) > 20:
        raise UsageError(f"SOURCE_DATE_EPOCH is not a number of seconds: {text!r}")
    return int(text)
