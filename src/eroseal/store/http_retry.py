"""When a request is tried again: failures that may pass, a bounded number of times, later each time.

The waiting is stamina's: exponential, with jitter, so that many clients do not come back at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeVar

from eroseal.store.http_rules import TransientError

FIRST_WAIT: Final = 0.5
"""Seconds before the second try."""
LONGEST_WAIT: Final = 15.0
"""Seconds before any later one, unless the server asks for more."""
JITTER: Final = 0.5
"""Seconds added at random, at most."""

_Result = TypeVar("_Result")


def tries(attempts: int) -> Iterator[AbstractContextManager[None]]:
    """Contexts for the tries of one request: each swallows a TransientError, except the last.

    Args:
        attempts: how many, at least 1.
    """
    import stamina  # noqa: PLC0415 - most commands speak to no server

    logger = logging.getLogger("stamina")
    if not logger.handlers:
        # What is scheduled is logged there; without a handler Python would write it to standard error.
        logger.addHandler(logging.NullHandler())
    return iter(
        stamina.retry_context(
            _may_pass,
            attempts=max(attempts, 1),
            timeout=None,
            wait_initial=FIRST_WAIT,
            wait_max=LONGEST_WAIT,
            wait_jitter=JITTER,
        )
    )


def retried(attempts: int, work: Callable[[], _Result]) -> _Result:
    """What `work` gives, tried again after TransientErrors; any other error, and the last one, passes through."""
    results: list[_Result] = []
    for attempt in tries(attempts):
        with attempt:
            results.append(work())
    return results[0]


def _may_pass(error: Exception) -> bool | float:
    if not isinstance(error, TransientError):
        return False
    return True if error.wait is None else error.wait
