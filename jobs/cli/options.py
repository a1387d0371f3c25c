"""Options that several commands share, and the parsers of their values."""

import functools
from collections.abc import Callable
from pathlib import Path
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


_job_option = click.option(
    "--job",
    "job_file",
    type=Path,
    metavar="FILE",
    help="Job file whose storage_options and input.allow_private_hosts apply here too.",
)
_endpoint_option = click.option(
    "--endpoint-url",
    metavar="URL",
    help="Endpoint of an S3-compatible storage; default: the job file's, else Amazon S3.",
)


def storage_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--job`` and ``--endpoint-url``; the command receives a ``storage``."""

    @_job_option
    @_endpoint_option
    @functools.wraps(command)
    def with_storage(
        *args: Any, job_file: Path | None, endpoint_url: str | None, **options: Any
    ) -> None:
        command(*args, storage=_storage(job_file, endpoint_url), **options)

    return with_storage


def _storage(job_file: Path | None, endpoint_url: str | None) -> "Storage":
    from pipeline.storage.storage import Storage
    from schemas.job.job import load_access

    options: dict[str, Any] = {}
    allow_private_hosts = False
    if job_file is not None:
        job = load_access(job_file)
        options, allow_private_hosts = job.storage_options, job.input.allow_private_hosts
    if endpoint_url:
        options = options | {"s3": options.get("s3", {}) | {"endpoint_url": endpoint_url}}
    return Storage(options, allow_private_hosts)


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

    from schemas.job.load import parse_yaml

    overrides = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set takes KEY=VALUE, such as sampling.fps=1, got {key!r}")
        try:
            overrides[key.strip()] = parse_yaml(value)
        except yaml.YAMLError:
            raise click.UsageError(f"--set {key}: the value is not valid YAML, quote it") from None
    return overrides


def names(text: str) -> list[str]:
    """Split names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
