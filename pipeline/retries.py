"""Read again what may come the next time: for https, where the storage library does not.

S3 is retried by botocore and s3fs, with backoff. What they do not see is an answer of another
length than was asked for.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.public_hosts import PrivateAddressError

T = TypeVar("T")

ATTEMPTS = 5
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class WrongLengthError(OSError):
    """The storage sent more or fewer bytes than were asked for."""


def read_range(fetch_range: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """Fetch the bytes of a half-open range: all of them.

    Raises:
        WrongLengthError: others came.
    """
    content = fetch_range(start, end)
    if len(content) != end - start:
        raise WrongLengthError(f"{len(content)} bytes came where {end - start} were asked for")
    return content


def retried(read: Callable[[], T], *, is_https: bool) -> T:
    """Return what ``read`` returns, after up to four more attempts within some seconds.

    is_https: network errors are retried too.

    Raises:
        Exception: what the last attempt raised.
    """
    wanted = _is_passing if is_https else _is_wrong_length
    attempts = Retrying(
        retry=retry_if_exception(wanted),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.25, max=8),
        reraise=True,
    )
    return attempts(read)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came of, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def status(cause: BaseException) -> int | None:
    """The status of an HTTP answer, if it was one."""
    return getattr(cause, "status", None)


def is_network(cause: BaseException) -> bool:
    """Whether an error is the network's or the server's."""
    return type(cause).__module__.startswith("aiohttp") or isinstance(
        cause, TimeoutError | ConnectionError
    )


def _is_wrong_length(error: BaseException) -> bool:
    return isinstance(error, WrongLengthError)


def _is_passing(error: BaseException) -> bool:
    found = list(causes(error))
    if any(isinstance(cause, PrivateAddressError | ValueError) for cause in found):
        return False
    codes = [code for cause in found if (code := status(cause)) is not None]
    if codes:
        return codes[0] in _BUSY
    return _is_wrong_length(error) or any(map(is_network, found))
