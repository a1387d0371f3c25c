"""Say what a command waits for, so that a slow hub or storage is no silence."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.shown import redact_uri

logger = logging.getLogger(__name__)

SECONDS = 3.0
"""How long a wait stays silent."""


@contextmanager
def waiting_for(what: str, uri: str) -> Iterator[None]:
    """Log ``what`` as a warning, if ``uri`` is remote and the block not done after ``SECONDS``."""
    if "://" not in uri:
        yield
        return
    line = f"still waiting for {what}: {redact_uri(uri)}"
    timer = threading.Timer(SECONDS, logger.warning, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
