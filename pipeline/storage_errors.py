"""Name what a storage library raised: each has exceptions of its own, people get a closed list."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import ErrorType, StorageError, UnitError

_SECRET = re.compile(r"sig|token|key|credential|password|secret", re.IGNORECASE)


class PrivateAddressError(OSError):
    """A media uri led to an address that is not public."""


def shown(uri: str) -> str:
    """Make a uri fit for a message or an output row: short, and without secrets.

    A data: uri is its type and its hash; https urls lose their password and signed query.
    """
    if uri.startswith("data:"):
        head, _, content = uri.partition(",")
        return f"{head[:60]},sha256={hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if uri.startswith(("http://", "https://")):
        head, question, query = re.sub(r"^(\w+://)[^/@]*@", r"\1", uri).partition("?")
        return f"{head}{question}{'...' if _SECRET.search(query) else query}"
    return uri


def unit_error(uri: str, error: Exception) -> UnitError:
    """Name an error met while reading a media object."""
    if isinstance(error, UnitError):
        return error
    name = shown(uri)
    causes = list(_causes(error))
    for cause in causes:
        if private := _private(cause):
            return UnitError(ErrorType.MEDIA_DENIED, f"{name}: {private}")
        if _status(cause) in (404, 410):
            return UnitError(ErrorType.MEDIA_MISSING, f"{name} does not exist")
        if _is_denied(cause):
            return UnitError(
                ErrorType.MEDIA_DENIED, f"{name}: access denied, check its credentials"
            )
        if type(cause).__name__ == "NoCredentialsError":
            return UnitError(ErrorType.MEDIA_DENIED, f"{name}: no credentials found")
    last = causes[-1]
    if isinstance(error, StorageError) or _is_malformed(last):
        return UnitError(ErrorType.BAD_REQUEST, f"{name}: {last}")
    # On https, fsspec says FileNotFoundError whatever went wrong; then the cause is the network's.
    if isinstance(error, FileNotFoundError) and not any(map(_is_network, causes)):
        bucket = ", nor does its bucket" if _is_bucket(error) else ""
        return UnitError(ErrorType.MEDIA_MISSING, f"{name} does not exist{bucket}")
    return UnitError(
        ErrorType.STORAGE_FAILED, f"{name}: {type(last).__name__}: {last}; try again later"
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
        causes = list(_causes(error))
        for cause in causes:
            if private := _private(cause):
                raise StorageError(f"{name}: {private}") from None
            if _is_denied(cause):
                raise StorageError(
                    f"{name}: access denied; check credentials and permissions"
                ) from None
            if type(cause).__name__ == "NoCredentialsError":
                raise StorageError(
                    f"{name}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                    "storage_options in the job file"
                ) from None
        if isinstance(error, FileNotFoundError) and not any(map(_is_network, causes)):
            if _is_bucket(error):
                raise StorageError(f"{name}: the bucket does not exist") from None
            raise
        raise StorageError(f"{name}: {type(error).__name__}: {error}") from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(cause: BaseException) -> int | None:
    return getattr(cause, "status", None)


def _private(cause: BaseException) -> str | None:
    if isinstance(cause, PrivateAddressError):
        return f"{cause}; set input.allow_private_hosts to allow it"
    return None


def _is_denied(cause: BaseException) -> bool:
    return isinstance(cause, PermissionError) or _status(cause) in (401, 403)


def _is_malformed(cause: BaseException) -> bool:
    """Tell whether the uri itself is wrong: an https url, or a bucket name that cannot be."""
    return isinstance(cause, ValueError) or type(cause).__name__ == "ParamValidationError"


def _is_network(cause: BaseException) -> bool:
    return type(cause).__module__.startswith("aiohttp") or isinstance(
        cause, TimeoutError | ConnectionError
    )


def _is_bucket(error: FileNotFoundError) -> bool:
    return "specified bucket does not exist" in str(error).lower()
