"""What obstore raises, as errors of our own.

Its texts hold whole answers of servers: addresses that may be signed, keys' names, what was signed. A message takes
from them the status, the server's code word and the kind of failure, and nothing else.
"""

from __future__ import annotations

import re
from typing import Final

from eroseal.errors import AccessError, ErosealError, NotFoundError, RemoteError
from eroseal.store.http_rules import clean
from eroseal.store.object_settings import NO_CREDENTIALS

_STATUS: Final = re.compile(r"status code: ([1-5][0-9]{2})")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_KIND: Final = re.compile(r"kind: (Connect|Timeout|Interrupted|Decode)")
_NO_BUCKET: Final = re.compile(r"<Code>(?:NoSuchBucket|ContainerNotFound)</Code>")
# Where clouds keep the credentials of their machines; asked when nothing else is configured.
_METADATA: Final = re.compile(r"169\.254\.169\.254|metadata\.google\.internal|169\.254\.170\.2")
_KINDS: Final = {
    "Connect": "cannot be reached",
    "Timeout": "does not answer in time",
    "Interrupted": "the connection broke",
    "Decode": "sends what cannot be understood",
}


def says_no_bucket(error: Exception) -> bool:
    """Whether the bucket is missing, not just an object in it."""
    return _NO_BUCKET.search(str(error)) is not None


def no_bucket(where: str) -> NotFoundError:
    """The error for a bucket that is not there."""
    return NotFoundError("no such bucket", where=where, hint="create it first")


def store_error(error: Exception, where: str, scheme: str) -> ErosealError:
    """An error of obstore, as one of our own; never holds a part of a credential.

    Args:
        error: as it was raised.
        where: what was asked for.
        scheme: of the store, for hints.
    """
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError  # noqa: PLC0415 - only object stores

    text = str(error)
    if _METADATA.search(text):
        return AccessError("no credentials for this object store", where=where, hint=NO_CREDENTIALS[scheme])
    code, status = _CODE.search(text), _STATUS.search(text)
    said = ", ".join(found[1] for found in (status, code) if found is not None)
    # Listings that are refused are no errors of their own kind.
    refused = status is not None and status[1] in ("401", "403")
    if refused or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        hint = "check the credentials, and what they may do"
        return AccessError(f"the object store refuses access ({said})", where=where, hint=hint)
    if said:
        return RemoteError(f"the object store answered {said}", where=where)
    kind = _KIND.search(text)
    if kind is not None:
        return RemoteError(_KINDS[kind[1]], where=where, hint="check the address and the network")
    first = text.partition("\n")[0].rpartition(" - ")[2]
    return RemoteError(clean(re.sub(r"\w+://\S+", "", first)) or "the request failed", where=where)
