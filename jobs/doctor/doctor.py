"""``reelscribe doctor``: check machines, storage, model and job, and print what was found."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cluster.session import ray_session
from jobs.cluster.start import on_this_machine, running_ray
from jobs.console.json_values import json_text
from jobs.console.output_path import absolute_uri
from jobs.doctor.cluster import collect_nodes, node_findings
from jobs.doctor.finding import Finding, State, finding
from jobs.doctor.judge import machine_findings
from jobs.doctor.machine import Facts, collect
from jobs.doctor.model import memory_findings, model_findings
from jobs.doctor.settings import assumed, job_findings
from jobs.doctor.storage import input_findings, output_findings
from pipeline.storage.storage import Storage
from schemas.errors import UserError
from schemas.job.job import Job
from schemas.shown import one_line, redact_text, redact_uri

_SECRET_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|_KEY)$")
_SECRET_CHARS = 6
_STYLES = {State.OK: "green", State.WARNING: "yellow", State.TO_DO: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Findings, in the page's order, and the facts of each machine by its name."""

    findings: Sequence[Finding]
    machines: dict[str, Facts]

    @property
    def num_to_do(self) -> int:
        """Number of findings that must be done before the job can run."""
        return sum(each.state == State.TO_DO for each in self.findings)

    @property
    def exit_code(self) -> int:
        """1 if something must be done, else 0."""
        return 1 if self.num_to_do else 0

    def to_json(self) -> str:
        """The report as a JSON object; see docs/operations.md."""
        machines = {name: dataclasses.asdict(facts) for name, facts in self.machines.items()}
        content = {
            "ready": not self.num_to_do,
            "findings": [dataclasses.asdict(each) for each in self.findings],
            "machines": machines,
        }
        return json_text(_shown(content), indent=2)


def run(load: Callable[[], Job] | None, console: Console, *, as_json: bool = False) -> Report:
    """Check this machine, and with a job all that it names; print a page, or JSON.

    load: loads the job; its UserError is a finding. None: check the machines alone.

    Without RAY_ADDRESS no Ray is started; with it, each node of that cluster is checked.
    """
    job, found = None, list[Finding]()
    if load is not None:
        try:
            job = load()
        except UserError as error:
            found.append(finding("job", "job file", State.TO_DO, str(error)))
    report = examine(job, Console(stderr=True, quiet=as_json))
    hide = _hidden(job)
    found = [dataclasses.replace(each, text=hide(each.text)) for each in [*found, *report.findings]]
    report = dataclasses.replace(report, findings=found)
    if as_json:
        # Not wrapped, and without the console's escapes: JSON has its own.
        console.file.write(report.to_json() + "\n")
    else:
        _print(report, console)
    return report


def examine(job: Job | None, console: Console) -> Report:
    """Make all checks.

    console: for what is waited for.
    """
    storage, named = _storage(job)
    asked: dict[str, Any] = {}
    if job is not None and storage is not None:
        inputs, uri = input_findings(job.input, storage)
        named += [*inputs, *output_findings(job.output, storage)]
        asked = _asked(job, uri)
    facts = collect({})
    is_here = on_this_machine()
    machines = {"this machine": facts}
    found = machine_findings(facts, job, runs_engine=is_here)
    if is_here and (address := running_ray()):
        text = f"a Ray runs on this machine, at {address}: runs join it"
        found.append(finding("machine", "Ray", State.OK, text))
    with ExitStack() as stack:
        engines = [facts]
        if not is_here:
            nodes = _nodes(stack, console, asked, found)
            found += node_findings(nodes, facts.code, job)
            machines |= nodes
            engines = list(nodes.values())
        found += named
        if job is not None and storage is not None:
            found += _of_job(job, storage, engines)
    return Report(findings=found, machines=machines)


def _storage(job: Job | None) -> tuple[Storage | None, list[Finding]]:
    if job is None:
        return None, []
    try:
        return Storage(job.storage_options, job.input.allow_private_hosts), []
    except UserError as error:
        return None, [finding("job", "storage_options", State.TO_DO, str(error))]


def _asked(job: Job, uri: str | None) -> dict[str, Any]:
    """What each node is to try: to read the job's first media, and to find its checkpoint."""
    source = Path(job.model.source).expanduser()
    return {
        "uri": uri,
        "options": job.storage_options,
        "allow_private_hosts": job.input.allow_private_hosts,
        "source": absolute_uri(job.model.source) if source.is_dir() else None,
    }


def _nodes(
    stack: ExitStack, console: Console, asked: dict[str, Any], found: list[Finding]
) -> dict[str, Facts]:
    """Connect to the cluster, for as long as ``stack`` is open, and collect its nodes' facts.

    found: gets a finding about the cluster.
    """
    address = redact_uri(os.environ["RAY_ADDRESS"])
    try:
        stack.enter_context(ray_session(console))
        nodes = collect_nodes(asked)
    except UserError as error:
        found.append(finding("cluster", "Ray", State.TO_DO, str(error)))
        return {}
    found.append(finding("cluster", "Ray", State.OK, f"{address} answers, {len(nodes)} nodes"))
    return nodes


def _of_job(job: Job, storage: Storage, engines: Sequence[Facts]) -> list[Finding]:
    """engines: the machines on which engines run; none if the cluster does not answer."""
    found, checkpoint = model_findings(job)
    if checkpoint is not None:
        found += memory_findings(job, checkpoint, engines)
    found += job_findings(job, storage, has_machines=bool(engines))
    return found + assumed(job, checkpoint, has_machines=bool(engines))


def _print(report: Report, console: Console) -> None:
    grid = Table(box=box.SIMPLE_HEAD)
    for name in ("", "checked", "state", "found, or what to do"):
        grid.add_column(name, no_wrap=name == "state", overflow="fold")
    last = ""
    for each in report.findings:
        topic = each.topic if each.topic != last else ""
        last = each.topic
        state = Text(each.state, style=_STYLES[each.state])
        grid.add_row(topic, Text(each.name), state, Text(each.text))
    console.print(grid)
    counts = [(sum(f.state == state for f in report.findings), state) for state in State]
    console.print(Text(", ".join(f"{count} {state}" for count, state in counts)))


def _hidden(job: Job | None) -> Callable[[str], str]:
    """Return a function that hides the values of secrets, should a library's message have one."""
    values = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    values += _texts(job.storage_options) if job is not None else []
    secrets = sorted((v for v in values if len(v) >= _SECRET_CHARS), key=len, reverse=True)

    def hide(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "...")
        return text

    return hide


def _texts(value: Any) -> list[str]:
    """The texts in storage options; addresses have their secrets hidden apart."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    return [value] if isinstance(value, str) and "://" not in value else []


def _shown(value: Any) -> Any:
    """JSON values without secrets of addresses and without control characters."""
    if isinstance(value, dict):
        return {one_line(str(key)): _shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return one_line(redact_text(value)) if isinstance(value, str) else value
