"""One image of many: what travels to a worker, and what the worker does with it.

A job is a plain value of texts and options, and so is its outcome: both cross process and machine borders, and an
outcome is unpickled without any exception class. Credentials do not travel: the worker calls `Prepare`, which finds
them in its own surroundings.

A worker may die, or its machine may go, after an image appeared and before anybody heard of it; and clusters run a
task again without a word. So `build_image` may be called again at any time: it takes an image that is there for its
own earlier work if it is the very image that it would publish, and refuses any other.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from eroseal import __version__
from eroseal.build.builder import build
from eroseal.build.options import BuildOptions
from eroseal.build.publish import MakeRecord
from eroseal.build.sources import parse_source
from eroseal.errors import ErosealError, FormatError, NotFoundError, OutputError, VerificationError
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest
from eroseal.store.local import LocalStore
from eroseal.store.open import open_store
from eroseal.store.reference import (
    FileReference,
    LayoutReference,
    Reference,
    StoreReference,
    parse_reference,
)
from eroseal.store.remote import RemoteOptions
from eroseal.store.single import open_sealed, read_layout
from eroseal.tree.attributes import Owner
from eroseal.tree.rules import Scope

UNREADABLE: Final = ""
"""Stands for the digest of something that is there and is no image of ours."""
_MAX_ERROR: Final = 1000
"""Characters of an error that a report keeps: some list what a hostile image made long."""
_MAX_WARNINGS: Final = 20
"""Warnings of one image that come back from its worker."""
_LOCAL_SOURCES: Final = ("oci:", "oci-archive:", "docker-archive:")


@dataclass(frozen=True, kw_only=True)
class ManyJob:
    """One image to build.

    Args:
        source, target: as the user wrote them; together they are the job's name in reports.
        bases: references of images whose chunks are reused.
        auto_base: one more, which was not asked for by name: where it cannot be built, the job does without.
        platform: of a container image.
        options: of the build; `jobs` are processes for this one image.
        directory: absolute, where relative paths start.
    """

    source: str
    target: str
    bases: tuple[str, ...] = ()
    auto_base: str | None = None
    platform: str | None = None
    options: BuildOptions
    directory: str

    @cached_property
    def reference(self) -> Reference:
        """The target, on any machine that has the same files; raises UsageError."""
        return self._anchored(parse_reference(self.target))

    @cached_property
    def base_references(self) -> tuple[Reference, ...]:
        """All bases, in the same way."""
        bases = self.bases if self.auto_base is None else (*self.bases, self.auto_base)
        return tuple(self._anchored(parse_reference(base)) for base in bases)

    @property
    def source_text(self) -> str:
        """The source, in the same way."""
        if self.source.startswith("docker://"):
            return self.source
        prefix = next((prefix for prefix in _LOCAL_SOURCES if self.source.startswith(prefix)), "")
        return prefix + os.path.join(self.directory, self.source.removeprefix(prefix))

    def _anchored(self, reference: Reference) -> Reference:
        match reference:
            case FileReference(path):
                return FileReference(self._absolute(path))
            case StoreReference(store, name):
                return StoreReference(self._absolute(store), name)
            case LayoutReference(store, name):
                return LayoutReference(self._absolute(store), name)
        return reference

    def _absolute(self, path: Path) -> Path:
        return Path(os.path.normpath(os.path.join(self.directory, path)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a worker finds in its own surroundings.

    Args:
        remote: how servers are spoken to.
        record: makes the image record, such as signatures.
        owners, file_contexts: as in `BuildOptions`, for those who keep them in files.
    """

    remote: RemoteOptions = field(default_factory=RemoteOptions)
    record: MakeRecord | None = None
    owners: Scope[Owner] | None = None
    file_contexts: Scope[bytes | None] | None = None


Prepare = Callable[[], Setting]
"""Called in the worker for each job; must pickle, where workers are processes, and hold no secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a worker says.

    Args:
        image: digest of the image that was built or found, as text; UNREADABLE; None if there is none.
        error: what went wrong.
        exit_code: that the error ends the program with.
        seconds, bytes_in, bytes_new, bytes_shared: as in `BuildResult`.
        warnings: the first few.
        more_warnings: number of the others.
    """

    image: str | None = None
    error: str | None = None
    exit_code: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_new: int = 0
    bytes_shared: int = 0
    warnings: tuple[str, ...] = ()
    more_warnings: int = 0


class JobStopped(BaseException):
    """The work is to end, with nothing left behind; raised inside a build."""


class _Thread(threading.local):
    stop: threading.Event | None = None


_thread: Final = _Thread()


@contextlib.contextmanager
def stoppable(stop: threading.Event) -> Iterator[None]:
    """Have the jobs of this thread end with JobStopped soon after an event was set."""
    _thread.stop = stop
    try:
        yield
    finally:
        _thread.stop = None


def find_image(job: ManyJob, prepare: Prepare, version: str = __version__) -> Outcome:
    """Which image is at a job's target; never raises for what is wrong with the job.

    Args:
        job: whose target it is.
        prepare: gives the setting.
        version: of this package that the caller runs.
    """
    if version != __version__:
        return Outcome(error=f"the worker runs version {__version__}, not {version}: digests may differ", exit_code=1)
    with _caught() as outcomes:
        outcomes.append(Outcome(image=_found(job.reference, prepare().remote)[0]))
    return outcomes[-1]


def build_image(job: ManyJob, prepare: Prepare) -> Outcome:
    """Build a job's image; never raises for what is wrong with the job.

    Raises:
        JobStopped: see `stoppable`.
    """
    with _caught() as outcomes:
        outcomes.append(_build(job, prepare()))
    return outcomes[-1]


def _build(job: ManyJob, setting: Setting) -> Outcome:
    target, record = job.reference, setting.record
    options = replace(
        job.options,
        owners=setting.owners or job.options.owners,
        file_contexts=setting.file_contexts or job.options.file_contexts,
    )
    if not options.replace and _found(target, setting.remote)[0] is not None:
        options = replace(options, replace=True)
        record = _only_the_same(target, setting)
    if isinstance(target, StoreReference):
        # Not left to the build, which takes a store that it made away again when it fails: others are about to use it.
        LocalStore.create(target.store, durable=options.durable)
    warnings = _Warnings()
    result = build(
        parse_source(job.source_text, remote=setting.remote, platform=job.platform),
        target,
        options,
        bases=tuple(str(base) for base in job.base_references),
        warn=warnings,
        progress=_check_stop,
        record=record,
        remote=setting.remote,
    )
    return Outcome(
        image=str(result.image),
        seconds=round(result.seconds, 6),
        bytes_in=result.bytes_in,
        bytes_new=result.bytes_new,
        bytes_shared=result.bytes_shared,
        warnings=tuple(warnings.first),
        more_warnings=warnings.more,
    )


class _Warnings:
    def __init__(self) -> None:
        self.first: list[str] = []
        self.more = 0

    def __call__(self, text: str) -> None:
        if len(self.first) < _MAX_WARNINGS:
            self.first.append(text)
        else:
            self.more += 1


def _only_the_same(target: Reference, setting: Setting) -> MakeRecord:
    """Makes the record of an image that takes its own place, and refuses to take any other's."""

    def record(image: ImageDigest, root_hash: bytes | None) -> Sequence[RecordEntry]:
        found, signed = _found(target, setting.remote)
        if found not in (None, str(image)):
            raise OutputError(
                "exists already, with another image", where=str(target), hint="choose another name, or --replace it"
            )
        # A record appears together with its image, and is kept with it: nobody signs twice.
        return () if signed or setting.record is None else setting.record(image, root_hash)

    return record


def _found(target: Reference, remote: RemoteOptions) -> tuple[str | None, bool]:
    """(digest as in `Outcome`, whether its store keeps a record that stays with it)."""
    if isinstance(target, FileReference):
        return _found_file(target.path), False
    try:
        with open_store(target, remote) as store:
            if not store.has_image(target.name):
                return None, False
            document, record = store.image(target.name)
            whole = all(store.has_blob(layer.image) for layer in document.layers)
            return str(document.image) if whole else UNREADABLE, bool(record)
    except NotFoundError:
        return None, False
    except (FormatError, VerificationError):
        return UNREADABLE, False


def _found_file(path: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    try:
        with open_sealed(path) as file:
            return str(read_layout(file, name=str(path)).digest)
    except (NotFoundError, FormatError, VerificationError):
        return UNREADABLE


def _check_stop(_files: int, _size: int) -> None:
    if _thread.stop is not None and _thread.stop.is_set():
        raise JobStopped


@contextlib.contextmanager
def _caught() -> Iterator[list[Outcome]]:
    """Turns errors into outcomes: whatever is wrong with one image must not look like a worker that broke."""
    outcomes: list[Outcome] = []
    try:
        yield outcomes
    except ErosealError as error:
        outcomes.append(failure(str(error), error.exit_code))
    except MemoryError:
        outcomes.append(failure("out of memory"))
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        outcomes.append(failure(f"{where}{(error.strerror or str(error)).lower()}"))
    except Exception as error:  # as the program itself reports what nobody foresaw
        outcomes.append(failure(f"internal error: {type(error).__name__}: {error}"))


def failure(text: str, exit_code: int = 1) -> Outcome:
    """The outcome of what went wrong.

    Args:
        text: of the error.
        exit_code: that it ends the program with.
    """
    shown = text if len(text) <= _MAX_ERROR else f"{text[: _MAX_ERROR - 3]}..."
    return Outcome(error=shown, exit_code=exit_code)
