"""Hide the values of secrets, should a library's message have one; and control characters."""

import os
import re
from collections.abc import Mapping
from typing import Any

from schemas.shown import one_line, redact_text

_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|_KEY)$")
_MIN_CHARS = 6
"""A shorter text is part of other words."""


def without_secrets(value: Any, options: Mapping[str, Any]) -> Any:
    """Return JSON values whose texts are one line each, without secrets.

    options: a job's storage options, of which each text is taken for a secret. So are variables of
        the environment whose names end like one's. Addresses lose their user and query.
    """
    secrets = [text for name, text in os.environ.items() if _NAME.search(name)] + _texts(options)
    longest_first = sorted((s for s in secrets if len(s) >= _MIN_CHARS), key=len, reverse=True)
    return _shown(value, longest_first)


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for each in value.values() for text in _texts(each)]
    return [value] if isinstance(value, str) and "://" not in value else []


def _shown(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _shown(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each, secrets) for each in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, "...")
    return one_line(redact_text(value))
