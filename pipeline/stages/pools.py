"""The actors of a run: how many each stage has, and the resources of each."""

import dataclasses
from dataclasses import dataclass

RETRY_FOREVER = -1
_REPLICAS_PER_COMMITTER = 16
_DECODERS_PER_PLANNER = 8
_FILES_AT_ONCE = 4
"""Of a committer: one is written while the rows of the next are made."""
WRITER = "reelscribe_writer"
"""Ray's name for the resource of nodes with keys to write the output (``ray start --resources``).

Committers run on them; where no node has it, anywhere.
"""
READER = "reelscribe_reader"
"""The same of nodes that can read the media: planners and decoders run there."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """How many decoder and engine actors a run has, and the resources of each.

    max_decoders: on a cluster that is not whole yet, how many decoders there will be.
    planners: of a run that is planned while it annotates.
    """

    decoders: int
    cpus_per_decoder: float
    replicas: int
    cpus_per_replica: float
    gpus_per_replica: float
    max_decoders: int | None = None
    planners: int = 0
    cpus_per_planner: float = 0.0

    def with_planners(self) -> "Pools":
        """The same with planners, which get a tenth of each decoder's CPU, or one of several.

        So they are on nodes for work and not on a head without CPUs, and find a place wherever a
        decoder does, also when nodes are lost.
        """
        share = 1.0 if self.cpus_per_decoder > 1 else 0.1 * self.cpus_per_decoder
        return dataclasses.replace(
            self,
            planners=1 + self.decoders // _DECODERS_PER_PLANNER,
            cpus_per_planner=round(share, 4),
            cpus_per_decoder=round(self.cpus_per_decoder - share, 4),
        )

    def planner_pool(self) -> "Pool":
        """The actors of ``PlanSlice``, which mostly wait for the storage."""
        return Pool(
            num_actors=self.planners, num_cpus=self.cpus_per_planner, resource=on_nodes(READER)
        )

    def decoder_pool(self) -> "Pool":
        """The actors of ``Prepare``."""
        return Pool(
            num_actors=self.decoders,
            max_actors=self.max_decoders,
            num_cpus=self.cpus_per_decoder,
            resource=on_nodes(READER),
        )

    def engine_pool(self, calls_at_once: int = 1) -> "Pool":
        """The actors that hold the model; ``Guard`` limits their retries, not Ray."""
        return Pool(
            num_actors=self.replicas,
            num_cpus=self.cpus_per_replica,
            num_gpus=self.gpus_per_replica,
            max_task_retries=RETRY_FOREVER,
            calls_at_once=calls_at_once,
        )

    def committer_pool(self) -> "Pool":
        """The actors of ``Commit``: one writes about 800 rows with five answers a second."""
        return Pool(
            num_actors=1 + self.replicas // _REPLICAS_PER_COMMITTER,
            num_cpus=0,
            resource=on_nodes(WRITER),
            calls_at_once=_FILES_AT_ONCE,
        )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The actors of one stage, and the resources of each.

    num_actors: whose nodes are not there yet, they are used as soon as they are.
    max_actors: as many may Ray Data start while all are busy; None: not more.
    resource: name of a resource of Ray that an actor's node must have.
    max_task_retries: how often a batch is repeated after its actor died; then the run stops.
    calls_at_once: batches that an actor works on at a time, each in a thread.
    """

    num_actors: int
    num_cpus: float
    num_gpus: float = 0.0
    resource: str | None = None
    max_task_retries: int = 3
    calls_at_once: int = 1
    max_actors: int | None = None


def on_nodes(resource: str) -> str | None:
    """The resource, if a node of the cluster has it; else None."""
    import ray

    return resource if resource in ray.cluster_resources() else None
