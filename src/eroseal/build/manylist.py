"""The list of images to build: a text file, one image a line.

::

    # SOURCE                        TARGET              KEY=VALUE ...
    trees/web                       dir:store:web-1
    docker://localhost:5000/app:3   dir:store:app-3     platform=linux/arm64 layers=stack
    'trees/with blanks'             dir:store:blanks    base=dir:store:web-1  # comes after it

Words are quoted as in a shell, without variables and globs. A word that begins with ``#`` begins a
comment, so names may hold one; ``./#name`` is a file that begins with it. Keys: `base` (may repeat), `platform`,
`layers` and `blobs`, as the options of `build`.
"""

from __future__ import annotations

import enum
import re
import shlex
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from eroseal.build.manyjob import ManyJob
from eroseal.build.options import BlobLayout, BuildOptions, LayerMode
from eroseal.errors import UsageError
from eroseal.limits import MAX_IMAGE_LIST, MAX_LISTED_IMAGES
from eroseal.store.reference import FileReference, WebReference, parse_reference

_BLANKS: Final = re.compile(r"[ \t\r]*")
_WORD: Final = re.compile(r"(?:[^ \t\r\\'\"]|\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\")+(?=[ \t\r]|$)")
_KEY: Final = re.compile(r"([a-z]+)=(.+)", re.DOTALL)
_Choice = TypeVar("_Choice", bound=enum.Enum)
_KEYS: Final = "base=REF, platform=OS/ARCH, layers=merge or stack, blobs=none, build, layer or file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """One line of a list.

    Args:
        line: its number, from 1.
        source, target: as they were written.
        bases, platform, layers, blobs: as given; None or nothing leaves it to the options for all images.
    """

    line: int
    source: str
    target: str
    bases: tuple[str, ...] = ()
    platform: str | None = None
    layers: LayerMode | None = None
    blobs: BlobLayout | None = None

    def job(self, options: BuildOptions, *, directory: str, platform: str | None = None) -> ManyJob:
        """What is to be done for it.

        Args:
            options: for all images; `blobs` does not count for single files, which hold everything.
            directory: absolute, where relative paths start.
            platform: for all images.
        """
        single = isinstance(parse_reference(self.target), FileReference)
        return ManyJob(
            source=self.source,
            target=self.target,
            bases=self.bases,
            platform=self.platform or platform,
            options=replace(
                options,
                layers=self.layers or options.layers,
                blobs=self.blobs or (BlobLayout.NONE if single else options.blobs),
            ),
            directory=directory,
        )


def parse_list(data: bytes, *, name: str) -> tuple[ListedImage, ...]:
    """Read a list.

    Args:
        data: the file's bytes.
        name: of it, for messages.

    Raises:
        UsageError: too large, or a line that cannot be used; says which.
    """
    if len(data) > MAX_IMAGE_LIST:
        raise UsageError(f"more than {MAX_IMAGE_LIST} bytes", where=name)
    images: list[ListedImage] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        try:
            words = _words(line)
            if not words:
                continue
            if len(images) == MAX_LISTED_IMAGES:
                raise UsageError(f"more than {MAX_LISTED_IMAGES} images", hint="split the list")
            image = _image(words, number)
            first = lines.setdefault(image.target, number)
            if first != number:
                raise UsageError(f"the target {image.target} is that of line {first}, too")
        except UsageError as error:
            raise UsageError(error.what, where=f"{name}:{number}", hint=error.hint) from error
        images.append(image)
    return tuple(images)


def _words(line: str) -> list[str]:
    if "\0" in line:
        raise UsageError("a NUL byte")
    words = []
    at = _end(_BLANKS, line, 0)
    while at < len(line) and line[at] != "#":
        end = _end(_WORD, line, at)
        if end == at:
            raise UsageError("a quotation that does not end, or a backslash without a character behind it")
        # One word as it is written: what its quotes mean is left to shlex.
        words += shlex.split(line[at:end])
        at = _end(_BLANKS, line, end)
    return words


def _end(pattern: re.Pattern[str], line: str, at: int) -> int:
    match = pattern.match(line, at)
    return at if match is None else match.end()


def _image(words: list[str], number: int) -> ListedImage:
    if len(words) < 2:
        raise UsageError("no target", hint="write SOURCE TARGET [KEY=VALUE ...]")
    source, target, *rest = words
    if source in ("", "-"):
        raise UsageError("a source is empty or standard input", hint="name a directory, an archive or an image")
    if isinstance(parse_reference(target), WebReference):
        raise UsageError("a web server can only be read from", hint="choose another target")
    values: dict[str, str] = {}
    bases = []
    for word in rest:
        match = _KEY.fullmatch(word)
        if match is None or match[1] not in ("base", "platform", "layers", "blobs"):
            raise UsageError(f"not KEY=VALUE: {word!r}", hint=_KEYS)
        if match[1] == "base":
            parse_reference(match[2])
            bases.append(match[2])
        elif match[1] in values:
            raise UsageError(f"{match[1]} is given twice")
        else:
            values[match[1]] = match[2]
    return ListedImage(
        line=number,
        source=source,
        target=target,
        bases=tuple(bases),
        platform=values.get("platform"),
        layers=_choice(LayerMode, "layers", values),
        blobs=_choice(BlobLayout, "blobs", values),
    )


def _choice(kind: type[_Choice], key: str, values: dict[str, str]) -> _Choice | None:
    if key not in values:
        return None
    try:
        return kind(values[key])
    except ValueError as error:
        known = ", ".join(str(member.value) for member in kind)
        raise UsageError(f"{key} is none of {known}: {values[key]!r}") from error
