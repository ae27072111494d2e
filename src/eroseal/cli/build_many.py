"""`eroseal build-many`: many images through threads, processes or a cluster, each as `build` would make it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from eroseal.cli import output
from eroseal.cli.building import Building, building_options, check_apart, make_record
from eroseal.cli.params import FILE, json_option, sync_option, verb
from eroseal.cli.remote import remote_options, remote_settings
from eroseal.cli.signing import Signing, signing_options
from eroseal.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from eroseal.build.many import ManyEntry, ManyReport, Workers
    from eroseal.build.manyjob import ManyJob, Outcome, Setting
    from eroseal.build.options import BuildOptions
    from eroseal.store.remote import RemoteOptions

_MAX_WORKERS: Final = 256
"""Images at once on one machine: more threads or processes than that only wait for each other."""
_MAX_ATTEMPTS: Final = 100


@verb("build-many", "Build many images, listed in a file.")
@click.argument("listed", metavar="LIST", type=click.Path(allow_dash=True))
@click.option("--report", type=FILE, metavar="FILE", help="Keep what became of each image in it, and continue from it.")
@click.option(
    "--executor",
    type=click.Choice(["processes", "threads"]),
    default="processes",
    show_default=True,
    help="What works on this machine.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Work on the Dask cluster of this scheduler, as tcp://HOST:PORT.")
@click.option(
    "--workers",
    type=click.IntRange(1, _MAX_WORKERS),
    metavar="N",
    help="Images at once on this machine.  [default: the number of processors]",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that read for each image.",
)
@click.option(
    "--attempts",
    type=click.IntRange(1, _MAX_ATTEMPTS),
    default=3,
    show_default=True,
    metavar="N",
    help="Times that an image is tried whose worker dies.",
)
@click.option("--base-auto", is_flag=True, help="Reuse the chunks of the newest image of the same name.")
@building_options
@sync_option
@json_option
@remote_options
@signing_options
def command(
    *,
    listed: str,
    report: Path | None,
    executor: str,
    scheduler: str | None,
    workers: int | None,
    jobs: int,
    attempts: int,
    base_auto: bool,
    building: Building,
    no_sync: bool,
    as_json: bool,
    remote: RemoteOptions,
    signing: Signing,
) -> int:
    """Build the images of LIST.

    LIST is a text file, or - for standard input, with an image a line: SOURCE TARGET [KEY=VALUE ...], as for
    `eroseal build`. Words are quoted as in a shell, # begins a comment. The keys are base (may repeat), platform,
    layers and blobs; options hold for all images. A base that is another line's target is built first.

    An image that fails does not stop the others. With --report, a later run with the same file passes over images
    that are done and still there, and tries the others again. The exit code is the highest of all images.
    """
    from eroseal.build.many import build_many
    from eroseal.build.manyorder import waiting_for, with_newest_bases
    from eroseal.report.many import many_document, read_report, write_report

    if scheduler is not None and workers is not None:
        raise UsageError("--workers is for this machine: a cluster has its own")
    prepare = _surroundings(building, signing)
    prepare.check(remote=scheduler is not None)
    todo = _jobs(listed, building.options(jobs=jobs, durable=not no_sync), building)
    waiting_for(todo)
    earlier = None if report is None else read_report(report)
    if base_auto:
        begun = frozenset((entry.source, entry.target) for entry in (earlier.entries if earlier else ()))
        todo = with_newest_bases(todo, remote, continued=begun, warn=output.warn)
    told = _Told(len(todo), quiet=as_json)
    with told.progress:
        done = build_many(
            todo,
            _workers(executor, scheduler, workers or len(os.sched_getaffinity(0))),
            prepare=prepare,
            earlier=earlier,
            attempts=attempts,
            save=lambda now: None if report is None else write_report(report, now, durable=not no_sync),
            tell=told,
        )
    if as_json:
        output.document(many_document(done))
    else:
        _show(done)
    if done.exit_code:
        output.error(f"{done.count('failed')} of {output.counted(len(todo), 'image')} failed")
    return done.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker looks for where it runs: it travels, so it holds names of files, and no secrets.

    Args:
        servers: arguments of `remote_settings`, without the environment.
        signing: who signs.
        owners, file_contexts: files with lists.
    """

    servers: dict[str, Any]
    signing: Signing
    owners: Path | None
    file_contexts: Path | None

    def __call__(self) -> Setting:
        """The setting of a job; raises what is wrong with it."""
        from eroseal.build.manyjob import Setting
        from eroseal.tree.attributes import load_file_contexts, load_owners

        return Setting(
            remote=remote_settings(os.environ, **self.servers),
            record=make_record(self.signing, ask=False),
            owners=None if self.owners is None else _cached(load_owners, self.owners),
            file_contexts=None if self.file_contexts is None else _cached(load_file_contexts, self.file_contexts),
        )

    def check(self, *, remote: bool) -> None:
        """Refuse what no worker can use, before anything starts.

        Args:
            remote: the workers are elsewhere, where other files may be.
        """
        self.signing.check_wanted()
        secret = self.signing.passphrase_file
        if secret is not None and not remote and not secret.is_file():
            raise UsageError("a passphrase that many workers read is in a regular file", where=str(secret))
        if not remote:
            self()
        elif all(key.exists() for key in (self.signing.key, self.signing.ed25519_key) if key is not None):
            make_record(self.signing, ask=False)


@functools.lru_cache(maxsize=8)
def _cached(load: Any, path: Path) -> Any:
    return load(path)


def _surroundings(building: Building, signing: Signing) -> Surroundings:
    given = click.get_current_context().params
    names = ("authfile", "tls_verify", "parallel", "timeout", "s3_endpoint")
    return Surroundings(
        servers={name: _absolute(given[name]) for name in names},
        signing=replace(
            signing,
            **{name: _absolute(getattr(signing, name)) for name in ("key", "cert", "ed25519_key", "passphrase_file")},
        ),
        owners=_absolute(building.owners),
        file_contexts=_absolute(building.file_contexts),
    )


def _absolute(value: Any) -> Any:
    return Path(os.path.abspath(value)) if isinstance(value, Path) else value


def _jobs(listed: str, options: BuildOptions, building: Building) -> Sequence[ManyJob]:
    from eroseal.build.manylist import parse_list

    name = "standard input" if listed == "-" else listed
    directory = os.getcwd()
    options = replace(options, work=_absolute(options.work))
    found = []
    for image in parse_list(_read(listed, name), name=name):
        job = image.job(options, directory=directory, platform=building.platform)
        if not options.exclude:
            try:
                check_apart(job.source_text, job.reference)
            except UsageError as error:
                raise UsageError(error.what, where=f"{name}:{image.line}", hint=error.hint) from error
        found.append(job)
    return found


def _read(listed: str, name: str) -> bytes:
    from eroseal.limits import MAX_IMAGE_LIST

    if listed == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed", hint="send a list through a pipe, or name its file")
        return sys.stdin.buffer.read(MAX_IMAGE_LIST + 1)
    try:
        with Path(listed).open("rb") as file:
            return file.read(MAX_IMAGE_LIST + 1)
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=name) from error
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", where=name) from error


def _workers(executor: str, scheduler: str | None, parallel: int) -> Workers:
    from eroseal.build.manyworkers import Cluster, Processes, Threads

    if scheduler is not None:
        import logging

        logging.disable()  # Dask's own lines, about what is said here in other words
        return Cluster(scheduler)
    return Threads(parallel) if executor == "threads" else Processes(parallel)


class _Told:
    """Says what became of an image, as soon as it is known."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self.progress = output.Progress("building", total=total, unit="files", quiet=quiet)

    def __call__(self, entry: ManyEntry, outcome: Outcome) -> None:
        for warning in outcome.warnings:
            output.warn(f"{entry.target}: {warning}")
        if outcome.more_warnings:
            output.note(f"{entry.target}: and {outcome.more_warnings} more warnings")
        if entry.error is not None:
            output.note(f"failed: {entry.target}: {entry.error}")
        self.progress.add(1)


def _show(done: ManyReport) -> None:
    for entry in done.entries:
        if entry.is_there:
            output.result(f"{entry.image} {output.printable(entry.target)}")
    output.note(
        f"{output.counted(done.count('done'), 'image')} built, {done.count('skipped')} there already, "
        f"{done.count('failed')} failed"
    )
