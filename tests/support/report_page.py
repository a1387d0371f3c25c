"""Make a report, open it in a browser, and look at what is shown."""

import io
import time
from pathlib import Path

from rich.console import Console

from jobs.report import report
from jobs.results.read import Selection
from pipeline.storage.storage import Storage


def make_report(output: Path, page: Path, gold: Path | None = None, **fields) -> Path:
    options = report.ReportOptions(output=str(page), gold=str(gold) if gold else None, **fields)
    console = Console(file=io.StringIO())
    return Path(report.run(Selection(uri=str(output)), options, Storage(), console))


def wait(browser, script: str, *arguments):
    """Run a script until it returns something that is true, and return that."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if value := browser.execute_script(f"return {script}", *arguments):
            return value
        time.sleep(0.1)
    raise AssertionError(f"never true: {script}")


def visit(browser, page: Path) -> None:
    browser.get(page.as_uri())
    wait(browser, "document.querySelectorAll('.card').length")


def names(browser) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('.card .name')].map(e => e.textContent)"
    )


def choose(browser, name: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


def press(browser, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


def rectangle(browser, selector: str) -> dict[str, float]:
    return browser.execute_script(
        "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector
    )
