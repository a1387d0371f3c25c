"""A Ray cluster of several nodes on this machine, as a process of its own with its own token.

The process reads what each node is to have, as JSON, prints the addresses of head and dashboard,
and ends with its standard input.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.paths import ROOT

TOKEN = "a-token-of-the-test-and-of-nothing-else"


@dataclass(frozen=True)
class RayCluster:
    """Addresses: ``head`` for RAY_ADDRESS, ``dashboard`` for the Jobs API."""

    head: str
    dashboard: str


@contextmanager
def running_cluster(*nodes: dict[str, Any]) -> Iterator[RayCluster]:
    """Start a cluster that wants TOKEN; the first node is the head.

    nodes: arguments of Ray's own `Cluster.add_node`.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_cluster", json.dumps(nodes)],
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield RayCluster(*process.stdout.readline().split())
        finally:
            process.stdin.close()


def serve(nodes: list[dict[str, Any]]) -> None:
    """Start the nodes, print the addresses, and wait for the end of the input."""
    from ray.cluster_utils import Cluster

    head, *workers = nodes
    # Else a fixed port, which the agent of another test's Ray may hold.
    head |= {"include_dashboard": True, "dashboard_agent_listen_port": 0, "dashboard_port": None}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for worker in workers:
            cluster.add_node(**worker)
        # The dashboard takes the next free port if its own is held.
        print(cluster.address, f"http://{cluster.head_node.webui_url}", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
