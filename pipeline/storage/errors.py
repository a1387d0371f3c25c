"""Turn the exceptions of the storage libraries into this project's errors."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.storage.http_retry import causes, is_network, status
from pipeline.storage.public_hosts import PrivateAddressError
from schemas.errors import ErrorType, StorageError, UnitError
from schemas.shown import redact_text, redact_uri


def unit_error(uri: str, error: Exception) -> UnitError:
    """Return the UnitError for an exception that was raised while a media object was read."""
    if isinstance(error, UnitError):
        return error
    name = redact_uri(uri)
    found = list(causes(error))
    for cause in found:
        if private := _private_address(cause):
            return UnitError(ErrorType.MEDIA_DENIED, f"{name}: {private}")
        if untrusted := _untrusted(cause):
            return UnitError(ErrorType.MEDIA_DENIED, f"{name}: {untrusted}")
        if status(cause) in (404, 410):
            return UnitError(ErrorType.MEDIA_MISSING, f"{name} does not exist")
        if _is_denied(cause):
            return UnitError(
                ErrorType.MEDIA_DENIED, f"{name}: access denied, check its credentials"
            )
        if type(cause).__name__ == "ClientError" and "(400)" in str(cause):
            return UnitError(  # the answer to HEAD has no body with the reason
                ErrorType.MEDIA_DENIED,
                f"{name}: the storage refused the request (400), as it does for expired "
                "credentials",
            )
        if type(cause).__name__ == "NoCredentialsError":
            return UnitError(ErrorType.MEDIA_DENIED, f"{name}: no credentials found")
    last = found[-1]
    if isinstance(error, StorageError) or _is_malformed(last):
        return UnitError(ErrorType.BAD_REQUEST, f"{name}: {redact_text(str(last), uri)}")
    # For https, fsspec raises FileNotFoundError for network errors too; those are in the causes.
    if isinstance(error, FileNotFoundError) and not any(map(is_network, found)):
        bucket = ", nor does its bucket" if _is_bucket(error) else ""
        return UnitError(ErrorType.MEDIA_MISSING, f"{name} does not exist{bucket}")
    return UnitError(
        ErrorType.STORAGE_FAILED,
        f"{name}: {type(last).__name__}: {redact_text(str(last), uri)}; try again later",
    )


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn exceptions of a storage library into StorageError; FileNotFoundError passes."""
    name = redact_uri(uri)
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # the boundary: each storage library has its own exceptions
        found = list(causes(error))
        for cause in found:
            if private := _private_address(cause):
                raise StorageError(f"{name}: {private}") from None
            if untrusted := _untrusted(cause):
                raise StorageError(f"{name}: {untrusted}") from None
            if _is_denied(cause):
                raise StorageError(
                    f"{name}: access denied; check credentials and permissions"
                ) from None
            if isinstance(cause, ValueError) and "Invalid endpoint" in str(cause):
                raise StorageError(
                    f"{name}: {redact_text(str(cause), uri)}; it must begin with https:// or http://"
                ) from None
            if type(cause).__name__ == "NoCredentialsError":
                raise StorageError(
                    f"{name}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                    "AWS_PROFILE, give this machine a role, or set storage_options in the job file"
                ) from None
        if isinstance(error, FileNotFoundError) and not any(map(is_network, found)):
            if _is_bucket(error):
                raise StorageError(f"{name}: the bucket does not exist") from None
            raise
        raise StorageError(
            f"{name}: {type(error).__name__}: {redact_text(str(error), uri)}"
        ) from None


def _private_address(cause: BaseException) -> str | None:
    if isinstance(cause, PrivateAddressError):
        return f"{cause}; set input.allow_private_hosts to allow it"
    return None


def _untrusted(cause: BaseException) -> str | None:
    """Why the certificate of a server is not trusted; aiohttp's error holds that of ssl."""
    error = getattr(cause, "certificate_error", cause)
    if not isinstance(error, ssl.SSLCertVerificationError):
        return None
    reason = getattr(error, "verify_message", "") or error
    return (
        f"the server's certificate is not trusted ({reason}); have it corrected, or, if it is of "
        "your own authority, name the authority's file in SSL_CERT_FILE (for s3://, AWS_CA_BUNDLE) "
        "on every node"
    )


def _is_denied(cause: BaseException) -> bool:
    return isinstance(cause, PermissionError) or status(cause) in (401, 403)


def _is_malformed(cause: BaseException) -> bool:
    """Whether the uri itself is wrong: a malformed url, or an invalid bucket name."""
    return isinstance(cause, ValueError) or type(cause).__name__ == "ParamValidationError"


def _is_bucket(error: FileNotFoundError) -> bool:
    return "specified bucket does not exist" in str(error).lower()
