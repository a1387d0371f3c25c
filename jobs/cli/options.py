"""Options that several commands share, and the parsers of their values."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.storage.storage import Storage

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def together(*decorators: Decorator) -> Decorator:
    """Combine decorators into one; help shows the options in this order."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _storage(_: click.Context, __: click.Parameter, endpoint_url: str | None) -> "Storage":
    from pipeline.storage.storage import Storage

    return Storage.at(endpoint_url)


storage_option = click.option(
    "--endpoint-url",
    "storage",
    callback=_storage,
    metavar="URL",
    help="Endpoint of an S3-compatible storage; default: Amazon S3.",
)
"""``--endpoint-url``; the command receives a ``storage``."""

set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the job file, such as --set sampling.fps=1. May be repeated.",
)
"""``--set``; the command receives ``assignments``, see ``overrides_of``."""


def overrides_of(assignments: tuple[str, ...]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` texts, each value as YAML: dotted key -> value.

    Raises:
        click.UsageError: a text is not of this form.
    """
    import yaml

    overrides = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set takes KEY=VALUE, such as sampling.fps=1, got {key!r}")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            raise click.UsageError(f"--set {key}: the value is not valid YAML, quote it") from None
    return overrides


def names(text: str) -> list[str]:
    """Split names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
