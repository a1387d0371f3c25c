"""``reelscribe doctor``: check machines, storage, model and job, and print what was found."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cluster.engine_choice import Choice, choose, chosen_here, with_engine
from jobs.cluster.session import ray_session
from jobs.cluster.start import on_this_machine, running_ray
from jobs.console.json_values import json_text
from jobs.console.output_path import absolute_uri
from jobs.doctor.cluster import collect_nodes, node_findings
from jobs.doctor.finding import Finding, State, checked, finding
from jobs.doctor.judge import machine_findings
from jobs.doctor.machine import Facts, collect
from jobs.doctor.model import memory_findings, model_findings
from jobs.doctor.secret_values import without_secrets
from jobs.doctor.settings import assumed, job_findings
from jobs.doctor.storage import input_findings, output_findings
from jobs.doctor.vllm import vllm_findings
from jobs.plan.embedding import with_embedding
from pipeline.storage.storage import Storage
from schemas.errors import UserError
from schemas.job.job import Job
from schemas.shown import redact_uri

_OF_DRIVERS = ("python", "space", "packages", "code")
"""What matters of a machine that only drives a cluster: neither torch nor GPUs."""

_ENGINE_SECONDS = 150.0
"""Deadline of the choice of an engine: a cluster's machines may take two minutes to answer."""

_STYLES = {State.OK: "green", State.WARNING: "yellow", State.TO_DO: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Findings, in the page's order, and the facts of each machine by its name."""

    findings: Sequence[Finding]
    machines: dict[str, Facts]

    def count(self, state: State) -> int:
        """Number of findings in a state."""
        return sum(each.state == state for each in self.findings)

    @property
    def exit_code(self) -> int:
        """1 if something must be done before the job can run, else 0."""
        return 1 if self.count(State.TO_DO) else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; docs/operations.md has their meaning."""
        return {
            "ready": not self.exit_code,
            "findings": [dataclasses.asdict(each) for each in self.findings],
            "machines": {name: dataclasses.asdict(each) for name, each in self.machines.items()},
        }


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
    report = dataclasses.replace(report, findings=[*found, *report.findings])
    options = job.storage_options if job is not None else {}
    if as_json:
        # Not by the console, which wraps and escapes; all texts are printable already.
        shown = without_secrets(report.to_dict(), options)
        console.file.write(json_text(shown, indent=2) + "\n")
    else:
        _print(report, options, console)
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
    is_here = on_this_machine()
    facts = collect(None if is_here else _OF_DRIVERS)
    machines, engines = {"this machine": facts}, [facts]
    choice = list[Finding]()
    if is_here:
        job, choice = _with_engine(job, chosen_here)
    found = machine_findings(facts, job)
    if is_here and (address := running_ray()):
        text = f"a Ray runs on this machine, at {address}: runs join it"
        found.append(finding("machine", "Ray", State.OK, text))
    with ExitStack() as stack:
        if not is_here:
            nodes = _nodes(stack, console, asked, found)
            if nodes:
                job, choice = _with_engine(job, choose)
            found += node_findings(nodes, facts.code, job)
            machines |= nodes
            if job is not None and len(nodes) > 1 and "://" not in job.output:
                text = "a folder of this machine: every node must have it at this path, as by NFS"
                named.append(finding("output", "place", State.WARNING, text))
            engines = list(nodes.values())
        found += named
        if job is not None and storage is not None:
            found += _of_job(job, storage, engines, choice)
    return Report(findings=found, machines=machines)


def _with_engine(
    job: Job | None, choose_engine: Callable[[Job], Choice]
) -> tuple[Job | None, list[Finding]]:
    """The job with the engine that ``auto`` means, and a finding that says which, and why."""
    if job is None or job.model.engine != "auto":
        return job, []
    chosen = [job]

    def choose_it() -> str:
        with_it, line = with_engine(chosen[0], choose_engine(chosen[0]))
        chosen.append(with_it)
        return line

    found = checked("job", "engine", choose_it, seconds=_ENGINE_SECONDS)
    return chosen[-1], [found]


def _storage(job: Job | None) -> tuple[Storage | None, list[Finding]]:
    if job is None:
        return None, []
    try:
        return Storage(job.storage_options, job.input.allow_private_hosts), []
    except UserError as error:
        return None, [finding("job", "storage_options", State.TO_DO, str(error))]


def _asked(job: Job, uri: str | None) -> dict[str, Any]:
    """What each node is to try: to read the job's first media, and to find its checkpoint."""
    source = absolute_uri(job.model.source)
    return {
        "uri": uri,
        "options": job.storage_options,
        "allow_private_hosts": job.input.allow_private_hosts,
        "source": source if os.path.isdir(source) else job.model.source,
        "revision": job.model.revision,
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
    text = f"the cluster at {address} answers; its living nodes: {len(nodes)}"
    found.append(finding("cluster", "Ray", State.OK, text))
    return nodes


def _of_job(
    job: Job, storage: Storage, engines: Sequence[Facts], choice: Sequence[Finding]
) -> list[Finding]:
    """engines: the machines on which engines run; none if the cluster does not answer."""
    found, checkpoint = model_findings(job)
    if checkpoint is not None:
        found += memory_findings(job, checkpoint, engines)
        found += vllm_findings(job, checkpoint)
        job = with_embedding(job, checkpoint.checkpoint, checkpoint.folder)
    checks, pools = job_findings(job, storage, has_machines=bool(engines))
    return [*found, *choice, *checks, *assumed(job, checkpoint, pools)]


def _print(report: Report, options: dict[str, Any], console: Console) -> None:
    grid = Table(box=box.SIMPLE_HEAD)
    for name in ("", "checked", "state", "found, or what to do"):
        grid.add_column(name, no_wrap=name == "state", overflow="fold")
    last = ""
    for each in report.findings:
        topic = each.topic if each.topic != last else ""
        last = each.topic
        state = Text(each.state, style=_STYLES[each.state])
        grid.add_row(topic, Text(each.name), state, Text(without_secrets(each.text, options)))
    console.print(grid)
    console.print(Text(", ".join(f"{report.count(state)} {state}" for state in State)))
