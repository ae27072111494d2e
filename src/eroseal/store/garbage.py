"""What is garbage in a store, whatever kind it is: the rule, and the account of a collection.

A blob goes if no document names it, no live lease names it, and it is older than the grace period. A document or
lease that cannot be read may name any blob, so then nothing goes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from eroseal.errors import ErosealError

DEFAULT_GRACE: Final = 24 * 3600.0
"""Seconds: no build or copy takes so long between its first blob and its document, and no clock is so wrong."""

Kept = Literal["named", "leased", "young"]
"""Why a blob stays."""

_Blob = TypeVar("_Blob", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """How a store is collected.

    Args:
        grace: seconds that a blob stays after it was stored, or counted on, last; at least 0.
        dry_run: only tell what would go; the store is not changed, nor locked.
        progress: told numbers of things that were dealt with.
    """

    grace: float = DEFAULT_GRACE
    dry_run: bool = False
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Garbage:
    """A blob that went, or would go.

    Args:
        digest: of the blob, as its store spells it.
        size: bytes.
    """

    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What became of a store.

    Args:
        blobs: that went, by digest; in a dry run, those that would.
        kept: number of other blobs, by reason.
        leftovers: paths or keys of whatever else went: unfinished files of writers that are gone, records and
            leases that nobody uses.
    """

    blobs: tuple[Garbage, ...]
    kept: dict[Kept, int]
    leftovers: tuple[str, ...]


@dataclass(slots=True)
class Judge(Generic[_Blob]):
    """Decides which blobs stay, and counts why.

    Args:
        grace: seconds.
        now: seconds since the epoch, by the clock that stamps the blobs.
        named: blobs that documents name. It only grows in a run: what a document named a moment ago stays once more.
        leased: whether a lease names a blob.
    """

    grace: float
    now: float
    named: set[_Blob] = field(default_factory=set)
    leased: Callable[[_Blob], bool] = lambda blob: False
    kept: dict[Kept, int] = field(default_factory=lambda: {"named": 0, "leased": 0, "young": 0})

    def condemns(self, blob: _Blob, modified: float) -> bool:
        """Whether a blob goes; counts it if not."""
        why: Kept | None = None
        if blob in self.named:
            why = "named"
        elif self.leased(blob):
            why = "leased"
        elif not self.is_old(modified):
            why = "young"
        if why is not None:
            self.kept[why] += 1
        return why is None

    def is_old(self, modified: float) -> bool:
        """Whether something of that time is past the grace period."""
        return modified <= self.now - self.grace

    def result(self, blobs: list[Garbage], leftovers: list[str]) -> Collected:
        """The account."""
        return Collected(
            blobs=tuple(sorted(blobs, key=lambda blob: blob.digest)), kept=self.kept, leftovers=tuple(sorted(leftovers))
        )


def refusal(error: ErosealError, what: str) -> ErosealError:
    """The refusal to collect anything because of what cannot be read.

    Args:
        error: met while it was read.
        what: "an image's document", for the hint.
    """
    hint = f"nothing is collected while {what} cannot be read, for it may name any blob: mend or remove it"
    return type(error)(error.what, where=error.where, hint=hint)
