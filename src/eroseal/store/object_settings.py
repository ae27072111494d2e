"""How an object store is reached: settings from the variables that its own tools read.

Only variables that name credentials, a region or an endpoint are passed on. Profile files are not read: what they hold
can be exported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from eroseal.errors import AccessError, UsageError
from eroseal.store.http_rules import is_loopback, shown
from eroseal.store.reference import ObjectReference
from eroseal.store.remote import RemoteOptions

_MAX_BACKOFF: Final = 10.0
"""Seconds between two tries at most."""
_RETRY_SECONDS: Final = 170.0
"""Seconds of retries: signatures are made once for all tries, and servers take them for a few minutes."""
_CONNECT_SECONDS: Final = 10.0
_UPLOAD_PATIENCE: Final = 10
"""Times the timeout that one request may last in all: its answer comes only after the whole of a part was sent."""
_BUCKET: Final = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{1,221}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9.-]+|[0-9a-f:.]+", re.ASCII)

# Variable -> setting; the first that is there counts.
_S3: Final = {
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_REGION": "region",
    "AWS_DEFAULT_REGION": "region",
    "AWS_ENDPOINT_URL_S3": "endpoint",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ROLE_ARN": "role_arn",
    "AWS_ROLE_SESSION_NAME": "role_session_name",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "web_identity_token_file",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "container_credentials_relative_uri",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "container_credentials_full_uri",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "container_authorization_token_file",
    "AWS_SKIP_SIGNATURE": "skip_signature",
}
_GCS: Final = {
    "GOOGLE_APPLICATION_CREDENTIALS": "application_credentials",
    "GOOGLE_SERVICE_ACCOUNT": "service_account",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key",
    "GOOGLE_BASE_URL": "base_url",
    "GOOGLE_SKIP_SIGNATURE": "skip_signature",
}
_AZURE: Final = {
    "AZURE_STORAGE_ACCOUNT": "account_name",
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
    "AZURE_STORAGE_KEY": "account_key",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    "AZURE_STORAGE_TOKEN": "token",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_FEDERATED_TOKEN_FILE": "federated_token_file",
    "AZURE_STORAGE_ENDPOINT": "endpoint",
    "AZURE_SKIP_SIGNATURE": "skip_signature",
}
_VARIABLES: Final = {"s3": _S3, "gs": _GCS, "az": _AZURE}
_ENDPOINTS: Final = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}
_DEFAULT_REGION: Final = "us-east-1"
NO_CREDENTIALS: Final = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or AZURE_SKIP_SIGNATURE=true for a public container",
}
"""What to do about missing credentials, by scheme."""


@dataclass(frozen=True, slots=True)
class ObjectSettings:
    """All that a client of obstore needs; secrets are kept out of its `repr`.

    Args:
        scheme: one of OBJECT_SCHEMES.
        bucket: or container.
        config: what obstore calls the store's configuration.
        client: options of its HTTP client.
        retry: options of its retries.
    """

    scheme: str
    bucket: str
    config: Mapping[str, str] = field(repr=False)
    client: Mapping[str, Any]
    retry: Mapping[str, Any]

    def client_of(self, *, patient: bool) -> dict[str, Any]:
        """Options of a client; a patient one lets a silent server be, because uploads take their time."""
        return {name: value for name, value in self.client.items() if not (patient and name == "read_timeout")}


def object_settings(reference: ObjectReference, options: RemoteOptions) -> ObjectSettings:
    """Settings for the bucket of a reference.

    Raises:
        UsageError: a bucket or endpoint that cannot be, or plain HTTP to another machine.
        AccessError: there are no credentials for a server that cannot be asked for some.
    """
    if not _BUCKET.fullmatch(reference.bucket) or not reference.prefix.isprintable():
        raise UsageError("no bucket is called so", where=reference.url)
    variables = _VARIABLES[reference.scheme]
    config: dict[str, str] = {}
    environment = dict(options.environment)
    for variable, setting in variables.items():
        if environment.get(variable):
            config.setdefault(setting, environment[variable])
    place = _ENDPOINTS[reference.scheme]
    if reference.scheme == "s3":
        config.setdefault("region", _DEFAULT_REGION)
        if options.s3_endpoint is not None:
            config[place] = options.s3_endpoint
    plain = False
    if place in config:
        plain = _check_endpoint(config[place], tls_verify=options.tls_verify)
    if place in config or environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        _check_credentials(reference, config)
    return ObjectSettings(
        scheme=reference.scheme,
        bucket=reference.bucket,
        config=config,
        client={
            "allow_http": plain,
            "allow_invalid_certificates": not options.tls_verify,
            "connect_timeout": timedelta(seconds=min(options.timeout, _CONNECT_SECONDS)),
            "read_timeout": timedelta(seconds=options.timeout),
            "timeout": timedelta(seconds=options.timeout * _UPLOAD_PATIENCE),
            "user_agent": "eroseal",
        },
        retry={
            "max_retries": max(options.attempts, 1) - 1,
            "retry_timeout": timedelta(seconds=min(options.timeout * options.attempts, _RETRY_SECONDS)),
            "backoff": {
                "init_backoff": timedelta(milliseconds=200),
                "max_backoff": timedelta(seconds=_MAX_BACKOFF),
                "base": 2,
            },
        },
    )


def _check_endpoint(endpoint: str, *, tls_verify: bool) -> bool:
    """Whether an endpoint speaks plain HTTP; raises UsageError where it must not, or is no address."""
    parts = _address(endpoint)
    if parts is None:
        raise UsageError("not an endpoint of an object store", where=shown(endpoint), hint="write https://HOST:PORT")
    if parts.scheme == "https":
        return False
    if tls_verify and not is_loopback(parts.hostname or ""):
        raise UsageError(
            "plain HTTP would let anybody on the way read and change what is sent",
            where=shown(endpoint),
            hint="use https://",
        )
    return True


def _address(text: str) -> SplitResult | None:
    """The parts of an address that native code will take without a panic, or None."""
    try:
        parts = urlsplit(text)
        usable = parts.port != 0
    except ValueError:
        return None
    usable = (
        usable
        and parts.scheme in ("https", "http")
        and parts.username is None
        and _HOST.fullmatch(parts.hostname or "") is not None
        and re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path, re.ASCII) is not None
        and not parts.query
        and not parts.fragment
    )
    return parts if usable else None


def _check_credentials(reference: ObjectReference, config: Mapping[str, str]) -> None:
    """Refuse to go without; a cloud's metadata service knows none for other servers."""
    if set(config) <= {"region", "endpoint", "base_url", "account_name"}:
        hint = NO_CREDENTIALS[reference.scheme]
        raise AccessError("no credentials for this object store", where=reference.url, hint=hint)
