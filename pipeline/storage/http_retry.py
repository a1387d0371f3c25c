"""Retry reads over https, which fsspec does not retry, and answers of the wrong length.

botocore and s3fs retry S3, with backoff, but do not check the length of an answer.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.storage.public_hosts import PrivateAddressError

T = TypeVar("T")

ATTEMPTS = 5
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class WrongLengthError(OSError):
    """The storage sent more or fewer bytes than were requested."""


def read_range(fetch_range: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """Fetch the bytes of a half-open range, and check their number.

    Raises:
        WrongLengthError: there are more or fewer.
    """
    content = fetch_range(start, end)
    if len(content) != end - start:
        raise WrongLengthError(f"got {len(content)} bytes, {end - start} were requested")
    return content


def retried(read: Callable[[], T], *, is_https: bool) -> T:
    """Call ``read``, up to ``ATTEMPTS`` times within some seconds, and return its result.

    is_https: retry network errors too.

    Raises:
        Exception: what the last attempt raised.
    """
    is_worth_retry = _is_transient if is_https else _is_wrong_length
    attempts = Retrying(
        retry=retry_if_exception(is_worth_retry),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.25, max=8),
        reraise=True,
    )
    return attempts(read)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def status(cause: BaseException) -> int | None:
    """Return the HTTP status of an error; None if it has none."""
    return getattr(cause, "status", None)


def is_network(cause: BaseException) -> bool:
    """Whether an error comes from the network or the server."""
    return type(cause).__module__.startswith("aiohttp") or isinstance(
        cause, TimeoutError | ConnectionError
    )


def _is_wrong_length(error: BaseException) -> bool:
    return isinstance(error, WrongLengthError)


def _is_transient(error: BaseException) -> bool:
    found = list(causes(error))
    if any(isinstance(cause, PrivateAddressError | ValueError) for cause in found):
        return False
    codes = [code for cause in found if (code := status(cause)) is not None]
    if codes:
        return codes[0] in _BUSY
    return _is_wrong_length(error) or any(map(is_network, found))
