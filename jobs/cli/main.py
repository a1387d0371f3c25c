"""The command ``reelscribe``: the group of all commands, its options and exit codes."""

import sys
import traceback
from typing import Any

import click

from jobs.cli import output, results, run, train
from jobs.cli.interrupts import EXIT_CODE, Interrupts


class _Commands(click.Group):
    """A group that prints a UserError as a message, and after Ctrl-C how to continue."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a UserError ends with its exit code, Ctrl-C with 130."""
        with Interrupts() as interrupts:
            try:
                return super().invoke(ctx)
            except (KeyboardInterrupt, Exception) as error:
                # After Ctrl-C, an error is one of what was stopped.
                if not interrupts.is_stopping and not isinstance(error, KeyboardInterrupt):
                    _exit_with_message(ctx, error)
                click.echo("interrupted; run the same command again to continue", err=True)
                ctx.exit(EXIT_CODE)


def _exit_with_message(ctx: click.Context, error: Exception) -> None:
    """Print a UserError and exit with its code; of a fault in the program the traceback, and 1.

    Raises:
        Exception: ``error``, if click prints it.
    """
    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        raise error
    if isinstance(error, BrokenPipeError):  # such as of `| head`
        raise error
    from schemas.shown import printable, redact_text

    # If a UserError was raised, its module is loaded; else it need not be imported.
    errors = sys.modules.get("schemas.errors")
    if errors is None or not isinstance(error, errors.UserError):
        lines = "".join(traceback.format_exception(error))
        click.echo(printable(redact_text(lines)).rstrip(), err=True)
        ctx.exit(1)
    click.echo(f"error: {printable(redact_text(str(error)))}", err=True)
    if code := getattr(error, "code", None):
        click.echo(f"see docs/errors.md#{code}", err=True)
    ctx.exit(error.exit_code)


def _print_version(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if not is_given:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"reelscribe {version('reelscribe')}")
    except PackageNotFoundError:
        click.echo("reelscribe, not installed (run from its source folder)")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="json: write a run's events to stderr as JSON lines, with run and unit ids.",
)
def main(log_format: str) -> None:
    """Annotate archives of images and videos with Qwen3-VL, Qwen3.5, Qwen3.6 or Qwen3.8.

    A manifest in, a Parquet table out.
    """
    from schemas.shown import log_shown

    log_shown()
    if log_format == "json":
        from jobs.observe.log import log_as_json

        log_as_json()


for _command in (*run.COMMANDS, *train.COMMANDS, *results.COMMANDS, *output.COMMANDS):
    main.add_command(_command)
