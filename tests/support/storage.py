"""Read media through a storage, and the errors with which it refuses them."""

import pytest

from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, UnitError

OPEN = Storage(allow_private_hosts=True)


def read(uri: str, storage: Storage = OPEN, *, header_only: bool = False) -> bytes:
    """Return all bytes of a media object."""
    with storage.open_media(uri, header_only=header_only) as media:
        return media.file.read()


def refused(uri: str, storage: Storage = OPEN) -> tuple[ErrorType, str]:
    """Return the type and message of the error with which a media object cannot be read."""
    with pytest.raises(UnitError) as error, storage.open_media(uri) as media:
        media.file.read()
    return error.value.error_type, str(error.value)
