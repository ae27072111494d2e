"""Which of many images comes before which: a base that is itself in the list is built first.

Strategy. Targets and bases are compared as references with absolute paths, so that all spellings of a place are one.
Bases that are found by name are decided before anything is built, from what the stores hold then and from the list
alone. So the digests are the same however many workers there are, and when a run that was killed is continued.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from eroseal.build.auto import Neighbours
from eroseal.build.manyjob import ManyJob
from eroseal.build.options import Warn
from eroseal.errors import AccessError, RemoteError, UsageError
from eroseal.store.reference import FileReference, NamedReference
from eroseal.store.remote import RemoteOptions


def waiting_for(jobs: Sequence[ManyJob]) -> list[tuple[int, ...]]:
    """For each job, the numbers of those that it waits for.

    Raises:
        UsageError: two jobs with one target, or jobs that wait for each other.
    """
    numbers = {job.reference: number for number, job in enumerate(jobs)}
    if len(numbers) < len(jobs):
        twice = next(target for target, times in Counter(job.reference for job in jobs).items() if times > 1)
        raise UsageError("two images with one target", where=str(twice))
    # What a job replaces may be its base: that one is there before.
    needs = [
        tuple(dict.fromkeys(numbers[base] for base in job.base_references if numbers.get(base, number) != number))
        for number, job in enumerate(jobs)
    ]
    try:
        TopologicalSorter(dict(enumerate(needs))).prepare()
    except CycleError as error:
        circle = " on ".join(jobs[number].target for number in reversed(error.args[1]))
        raise UsageError(f"images are built on each other: {circle}") from error
    return needs


def with_newest_bases(
    jobs: Sequence[ManyJob],
    remote: RemoteOptions,
    *,
    continued: frozenset[tuple[str, str]] = frozenset(),
    warn: Warn = lambda text: None,
) -> list[ManyJob]:
    """The jobs with one more base each, where there is one: the newest image of the same name (see `auto`).

    Images of earlier jobs of the list count as if they were there; those of later ones do not, even if they are.

    Args:
        jobs: in the order of the list.
        remote: how servers are spoken to.
        continued: (source, target) of jobs that an earlier run began: what is at their target may be what it made,
            which must not be its own base.
        warn: called for a store that cannot be looked at: its images do without.
    """
    listed: defaultdict[NamedReference, set[str]] = defaultdict(set)
    for job in jobs:
        if not isinstance(job.reference, FileReference):
            listed[_place(job.reference)].add(job.reference.name)
    known: dict[NamedReference, Neighbours] = {}
    coming: defaultdict[NamedReference, set[str]] = defaultdict(set)
    found = []
    with contextlib.ExitStack() as stack:
        for job in jobs:
            target = job.reference
            if isinstance(target, FileReference):
                found.append(job)
                continue
            place = _place(target)
            without = listed[place] - (set() if (job.source, job.target) in continued else {target.name})
            base = None
            try:
                if place not in known:
                    known[place] = Neighbours(None, ())  # if it is out of reach, only once
                    known[place] = Neighbours.of(target, remote, stack)
                base = known[place].newest(target, params=job.options.params, coming=coming[place], without=without)
            except (RemoteError, AccessError) as error:
                warn(f"no base for {job.target}: {error}")
            coming[place].add(target.name)
            found.append(replace(job, auto_base=base))
    return found


def _place(target: NamedReference) -> NamedReference:
    """The store of a target, as a reference that names no image of it."""
    return replace(target, name="")
