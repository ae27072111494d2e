"""Many images through an executor, each on its own: one that fails, or that kills its worker, does not stop the others.

Strategy. A job is ready once the jobs whose targets its bases name are over. Two calls are made for it: one looks at
the target, so that images of an earlier run are passed over and others' images are not written over, and one builds.
Both say in their outcome what is wrong with the image; so an exception that comes out of an executor means a lost
worker, and the call is made again. Where a pool broke, nobody knows which job broke it: those under way are repeated
one at a time, so that the culprit breaks only itself.

After every image, whoever called is told the whole state, to write it down. `KeyboardInterrupt` stops: nothing new
starts, what runs is asked to end, and the last state that is told is right.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Final, Literal, Protocol

from eroseal import __version__
from eroseal.build.manyjob import ManyJob, Outcome, Prepare, Setting, build_image, failure, find_image
from eroseal.build.manyorder import waiting_for
from eroseal.errors import ErosealError

State = Literal["pending", "done", "failed", "skipped"]
DEFAULT_ATTEMPTS: Final = 3
"""Times that an image is tried whose worker dies: a machine may go, but what kills three is the image."""
_PATIENCE: Final = 10.0
"""Seconds that running jobs get to end after an interruption."""


class Workers(Protocol):
    """Where executors come from.

    Args:
        parallel: jobs in the executor at once, at most.
    """

    parallel: int

    def start(self) -> Executor:
        """A working executor; one that was given before is at its end. Raises ErosealError."""
        ...

    def stop(self) -> None:
        """Have running jobs end soon; never raises."""
        ...

    def close(self) -> None:
        """Give everything back; never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyEntry:
    """What became of one image.

    Args:
        source, target: as in its job.
        state: "pending" while nothing is known, "done" if it was built, "skipped" if it was there from an earlier run.
        bases: references that it was built on.
        image: digest of the image, if it is done or skipped.
        error: why it failed.
        exit_code: that the error would have ended the program with; 0 without one.
        seconds, bytes_in, bytes_new, bytes_shared: of the build, in this or the earlier run.
        attempts: calls that were made to build it in this run.
    """

    source: str
    target: str
    state: State = "pending"
    bases: tuple[str, ...] = ()
    image: str | None = None
    error: str | None = None
    exit_code: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_new: int = 0
    bytes_shared: int = 0
    attempts: int = 0

    @property
    def is_there(self) -> bool:
        """Whether the image is at its target."""
        return self.state in ("done", "skipped")


@dataclass(frozen=True, slots=True)
class ManyReport:
    """What became of all images, in the order of their jobs."""

    entries: tuple[ManyEntry, ...]

    @property
    def exit_code(self) -> int:
        """The highest of all images: 0 if none failed."""
        return max((entry.exit_code for entry in self.entries), default=0)

    def count(self, state: State) -> int:
        """Images in this state."""
        return sum(entry.state == state for entry in self.entries)


Tell = Callable[[ManyEntry, Outcome], None]


def build_many(
    jobs: Sequence[ManyJob],
    workers: Workers,
    *,
    prepare: Prepare = Setting,
    earlier: ManyReport | None = None,
    attempts: int = DEFAULT_ATTEMPTS,
    save: Callable[[ManyReport], None] = lambda report: None,
    tell: Tell = lambda entry, outcome: None,
) -> ManyReport:
    """Build many images.

    Args:
        jobs: with a target each; a base that is another job's target makes that job come first.
        workers: do the work; closed at the end.
        prepare: called in the workers, see `Prepare`.
        earlier: report of a run that this one continues: images that are still there are passed over.
        attempts: times that an image is tried whose worker dies.
        save: told all that is known, at the start and whenever images are over.
        tell: told each image that is over.

    Raises:
        UsageError: two jobs with one target, or jobs that wait for each other.
        ErosealError: workers that cannot be started, or what `save` raises.
    """
    return _Run(jobs, workers, prepare, attempts, earlier, save, tell).run()


@dataclass(frozen=True, slots=True)
class _Call:
    number: int
    builds: bool


class _Run:
    def __init__(
        self,
        jobs: Sequence[ManyJob],
        workers: Workers,
        prepare: Prepare,
        attempts: int,
        earlier: ManyReport | None,
        save: Callable[[ManyReport], None],
        tell: Tell,
    ) -> None:
        self._jobs = list(jobs)
        self._workers = workers
        self._prepare = prepare
        self._attempts = attempts
        self._save, self._tell = save, tell
        self._needs = waiting_for(jobs)
        self._order = TopologicalSorter(dict(enumerate(self._needs)))
        self._known = {(entry.source, entry.target): entry for entry in (earlier.entries if earlier else ())}
        self._entries = [_first_entry(job) for job in jobs]
        self._ready: deque[_Call] = deque()
        self._again: deque[_Call] = deque()
        self._suspects: set[int] = set()
        self._lost: Counter[int] = Counter()
        self._running: dict[Future[Outcome], _Call] = {}
        self._executor: Executor | None = None
        self._news = False

    @property
    def report(self) -> ManyReport:
        # What an earlier run knew is kept until it is looked at: this run may be killed before.
        return ManyReport(
            tuple(
                entry if known is None or entry.state != "pending" or not known.is_there else known
                for entry, known in zip(self._entries, map(self._earlier, self._jobs), strict=True)
            )
        )

    def _earlier(self, job: ManyJob) -> ManyEntry | None:
        return self._known.get((job.source, job.target))

    def run(self) -> ManyReport:
        self._order.prepare()
        try:
            self._save(self.report)
            while self._order.is_active():
                self._ready.extend(_Call(number, False) for number in sorted(self._order.get_ready()))
                self._start_some()
                if self._running:
                    over, _ = wait(self._running, return_when=FIRST_COMPLETED)
                    self._take(over)
                self._save_news()
        except BaseException:
            self._abort()
            raise
        finally:
            self._workers.close()
        return self.report

    def _save_news(self) -> None:
        if self._news:
            self._news = False
            self._save(self.report)

    # --- starting ---
    def _start_some(self) -> None:
        while len(self._running) < self._workers.parallel:
            if any(call.number in self._suspects for call in self._running.values()):
                return
            if self._again:
                if self._again[0].number in self._suspects and self._running:
                    return
                self._start(self._again.popleft())
            elif self._ready:
                call = self._ready.popleft()
                if not self._failed_for_its_base(call.number):
                    self._start(call)
            else:
                return

    def _start(self, call: _Call) -> None:
        job = self._jobs[call.number]
        if call.builds:
            entry = self._entries[call.number]
            self._entries[call.number] = replace(entry, attempts=entry.attempts + 1)
        for last_try in (False, True):
            executor = self._executor or self._workers.start()
            self._executor = executor
            try:
                if call.builds:
                    future = executor.submit(build_image, job, self._prepare)
                else:
                    future = executor.submit(find_image, job, self._prepare, __version__)
            except Exception as error:
                # It broke since the last look: those that it had come back as lost.
                self._executor = None
                if last_try:
                    raise ErosealError(f"no worker takes work: {_named(error)}") from error
            else:
                self._running[future] = call
                return

    def _failed_for_its_base(self, number: int) -> bool:
        """End a job, one of whose bases failed; or have it do without that base."""
        job = self._jobs[number]
        failed = {self._jobs[base].reference: base for base in self._needs[number] if not self._entries[base].is_there}
        asked_for = replace(job, auto_base=None)
        for reference in asked_for.base_references:
            if reference in failed:
                entry = self._entries[failed[reference]]
                self._end(number, failure(f"its base {entry.target} was not built", entry.exit_code))
                return True
        if failed:
            self._jobs[number] = asked_for
            self._entries[number] = replace(self._entries[number], bases=asked_for.bases)
        return False

    # --- results ---
    def _take(self, over: set[Future[Outcome]]) -> None:
        broken = False
        for future in over:
            error = CancelledError("it was cancelled") if future.cancelled() else future.exception()
            if error is None:
                self._proceed(self._running[future], future.result())
            else:
                # A cluster that cannot be reached any more cancels what it had, and takes new work that nobody will do.
                broken |= isinstance(error, BrokenExecutor | CancelledError)
                self._repeat(self._running[future], error)
            del self._running[future]
        if broken:
            self._executor = None
            if self._running:  # they share its fate, and are told so at any moment
                self._take(wait(self._running).done)

    def _proceed(self, call: _Call, outcome: Outcome) -> None:
        number = call.number
        if call.builds or outcome.error is not None:
            self._suspects.discard(number)
            self._end(number, outcome)
            return
        known = self._earlier(self._jobs[number])
        if outcome.image and known is not None and known.is_there and known.image == outcome.image:
            self._suspects.discard(number)
            self._end(number, outcome, replace(known, state="skipped", attempts=0))
        elif outcome.image is not None and known is None and not self._jobs[number].options.replace:
            self._suspects.discard(number)
            self._end(number, failure("exists already (choose another name, or --replace it)"))
        else:
            self._again.appendleft(_Call(number, True))

    def _repeat(self, call: _Call, error: BaseException) -> None:
        self._lost[call.number] += 1
        if isinstance(error, BrokenExecutor):
            self._suspects.add(call.number)
        if self._lost[call.number] < self._attempts:
            self._again.append(call)
        else:
            self._suspects.discard(call.number)
            self._end(call.number, failure(f"lost {self._attempts} workers: {_named(error)}"))

    def _end(self, number: int, outcome: Outcome, entry: ManyEntry | None = None) -> None:
        if entry is None:
            entry = replace(
                self._entries[number],
                state="done" if outcome.error is None else "failed",
                image=outcome.image,
                error=outcome.error,
                exit_code=outcome.exit_code,
                seconds=outcome.seconds,
                bytes_in=outcome.bytes_in,
                bytes_new=outcome.bytes_new,
                bytes_shared=outcome.bytes_shared,
            )
        self._entries[number] = entry
        self._news = True
        self._order.done(number)
        self._tell(entry, outcome)

    def _abort(self) -> None:
        """Stop what runs, and tell what it came to."""
        self._workers.stop()
        over, _ = wait([future for future in self._running if not future.cancel()], timeout=_PATIENCE)
        for future in over:
            call = self._running[future]
            pending = self._entries[call.number].state == "pending"
            if pending and call.builds and not future.cancelled() and future.exception() is None:
                self._end(call.number, future.result())
        self._save(self.report)


def _first_entry(job: ManyJob) -> ManyEntry:
    bases = job.bases if job.auto_base is None else (*job.bases, job.auto_base)
    return ManyEntry(source=job.source, target=job.target, bases=bases)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
