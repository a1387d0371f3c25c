"""Check the Ray cluster: a small task on each node reports what the node has."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.cluster.session import actor_errors
from jobs.doctor import machine
from jobs.doctor.finding import Finding, State, finding
from jobs.doctor.judge import machine_findings
from jobs.doctor.machine import Facts, facts_of
from schemas.errors import UserError
from schemas.job.job import Job

_SHOWN_NODES = 3


def collect_nodes(asked: Mapping[str, Any]) -> dict[str, Facts]:
    """Return the facts of each living node of the Ray session, by its address.

    asked: what else to try there, see ``facts.report``. Tasks take no CPU, so that they run beside
    others' work; a node that gives no answer has facts with only ``end``.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    # Not retried: a node may die of it.
    task = ray.remote(num_cpus=0, max_retries=0)(machine.run_program())
    given = (
        machine.program(),
        json.dumps({**asked, "is_node": True}, default=str),
        machine.SECONDS,
    )
    answers = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*given): node["NodeManagerAddress"]
        for node in nodes
    }
    # Their own deadline, and the start of a worker on each.
    ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=machine.SECONDS + 60)
    found: dict[str, Facts] = {}
    for answer, address in answers.items():
        facts = _answered(answer) if answer in ready else Facts(end="the node does not answer")
        name = address if address not in found else f"{address} ({len(found) + 1})"
        found[name] = facts
    return found


def _answered(answer: Any) -> Facts:
    import ray

    try:
        with actor_errors():
            return facts_of(*ray.get(answer))
    except (ray.exceptions.RayError, UserError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Facts(end=f"the node cannot run a task ({lines[-1][:300]})")


def node_findings(nodes: Mapping[str, Facts], code: str | None, job: Job | None) -> list[Finding]:
    """Make a finding of each node; those that differ in nothing but their address share one.

    code: hash of the driver's code, which each node must have.
    """
    has_gpus = any(facts.gpus for facts in nodes.values())
    alike: dict[tuple[State, str], list[str]] = {}
    for address, facts in nodes.items():
        found = [
            each
            for each in machine_findings(facts, job, "cluster")
            # Beside nodes with GPUs, those without one only decode.
            if facts.gpus or not (has_gpus and each.name in ("GPU", "vLLM"))
        ]
        alike.setdefault(_line(facts, found, code), []).append(address)
    return [
        finding("cluster", _names(addresses), state, text)
        for (state, text), addresses in alike.items()
    ]


def _line(facts: Facts, found: Sequence[Finding], code: str | None) -> tuple[State, str]:
    problems = [f"{each.name}: {each.text}" for each in found if each.state == State.TO_DO]
    if facts.code and code and facts.code != code:
        problems.insert(
            0,
            f"other code ({facts.code}) than the driver ({code}): install the same version of "
            "reelscribe on every node",
        )
    if problems:
        return State.TO_DO, "; ".join(problems)
    warnings = [f"{each.name}: {each.text}" for each in found if each.state == State.WARNING]
    if warnings:
        return State.WARNING, "; ".join(warnings)
    return State.OK, _summary(facts)


def _summary(facts: Facts) -> str:
    """What nodes may differ in, in one line; no free space, which differs always."""
    names = sorted({gpu.name for gpu in facts.gpus})
    gpus = f"{len(facts.gpus)} x {' and '.join(names)}, driver {facts.driver}"
    parts = [
        f"Python {facts.python}",
        f"reelscribe {facts.version}" if facts.version else "reelscribe from its source folder",
        f"torch {facts.torch}",
        gpus if names else "no GPU",
    ]
    return ", ".join(parts)


def _names(addresses: Sequence[str]) -> str:
    shown = ", ".join(addresses[:_SHOWN_NODES])
    more = len(addresses) - _SHOWN_NODES
    return f"{shown} and {more} more" if more > 0 else shown
