"""Name what a storage library raised: each has exceptions of its own, people get a closed list."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.public_hosts import PrivateAddressError
from pipeline.retries import causes, is_network, status
from schemas.errors import ErrorType, StorageError, UnitError

_SECRET = re.compile(
    r"sig|token|key|auth|jwt|credential|passw|pwd|secret|policy|session", re.IGNORECASE
)


def shown(uri: str) -> str:
    """Make a uri fit for a message or an output row: short, and without secrets.

    A data: uri is its type and its hash; https urls lose their password and signed query.
    """
    if uri.startswith("data:"):
        head, _, content = uri.partition(",")
        return f"{head[:60]},sha256={hashlib.sha256(content.encode()).hexdigest()[:16]}"
    uri = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@?#]*@", r"\1", uri)
    if uri.startswith(("http://", "https://")):
        head, mark, query = re.findall(r"\A([^?#]*)([?#]?)(.*)", uri, re.DOTALL)[0]
        return f"{head}{mark}{'...' if _SECRET.search(query) else query}"
    return uri


def _said(error: BaseException) -> str:
    """The text of an error; libraries put whole urls into theirs."""
    return re.sub(r"https?://[^\s'\"<>]+", lambda found: shown(found[0]), str(error))


def unit_error(uri: str, error: Exception) -> UnitError:
    """Name an error met while reading a media object."""
    if isinstance(error, UnitError):
        return error
    name = shown(uri)
    found = list(causes(error))
    for cause in found:
        if private := _private(cause):
            return UnitError(ErrorType.MEDIA_DENIED, f"{name}: {private}")
        if status(cause) in (404, 410):
            return UnitError(ErrorType.MEDIA_MISSING, f"{name} does not exist")
        if _is_denied(cause):
            return UnitError(
                ErrorType.MEDIA_DENIED, f"{name}: access denied, check its credentials"
            )
        if type(cause).__name__ == "ClientError" and "(400)" in str(cause):
            return UnitError(  # an answer to HEAD has no body that would say it
                ErrorType.MEDIA_DENIED,
                f"{name}: the storage refused the request (400), as it does when credentials have "
                "expired",
            )
        if type(cause).__name__ == "NoCredentialsError":
            return UnitError(ErrorType.MEDIA_DENIED, f"{name}: no credentials found")
    last = found[-1]
    if isinstance(error, StorageError) or _is_malformed(last):
        return UnitError(ErrorType.BAD_REQUEST, f"{name}: {_said(last)}")
    # On https, fsspec says FileNotFoundError whatever went wrong; then the cause is the network's.
    if isinstance(error, FileNotFoundError) and not any(map(is_network, found)):
        bucket = ", nor does its bucket" if _is_bucket(error) else ""
        return UnitError(ErrorType.MEDIA_MISSING, f"{name} does not exist{bucket}")
    return UnitError(
        ErrorType.STORAGE_FAILED, f"{name}: {type(last).__name__}: {_said(last)}; try again later"
    )


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what a storage library raises into one StorageError; let FileNotFoundError pass."""
    name = shown(uri)
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # the boundary: each storage library has its own exceptions
        found = list(causes(error))
        for cause in found:
            if private := _private(cause):
                raise StorageError(f"{name}: {private}") from None
            if _is_denied(cause):
                raise StorageError(
                    f"{name}: access denied; check credentials and permissions"
                ) from None
            if isinstance(cause, ValueError) and "Invalid endpoint" in str(cause):
                raise StorageError(
                    f"{name}: {_said(cause)}; begin it with https:// or http://"
                ) from None
            if type(cause).__name__ == "NoCredentialsError":
                raise StorageError(
                    f"{name}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                    "AWS_PROFILE, give this machine or pod a role, or the job file storage_options"
                ) from None
        if isinstance(error, FileNotFoundError) and not any(map(is_network, found)):
            if _is_bucket(error):
                raise StorageError(f"{name}: the bucket does not exist") from None
            raise
        raise StorageError(f"{name}: {type(error).__name__}: {_said(error)}") from None


def _private(cause: BaseException) -> str | None:
    if isinstance(cause, PrivateAddressError):
        return f"{cause}; set input.allow_private_hosts to allow it"
    return None


def _is_denied(cause: BaseException) -> bool:
    return isinstance(cause, PermissionError) or status(cause) in (401, 403)


def _is_malformed(cause: BaseException) -> bool:
    """Tell whether the uri itself is wrong: an https url, or a bucket name that cannot be."""
    return isinstance(cause, ValueError) or type(cause).__name__ == "ParamValidationError"


def _is_bucket(error: FileNotFoundError) -> bool:
    return "specified bucket does not exist" in str(error).lower()
