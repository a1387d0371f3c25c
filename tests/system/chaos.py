"""Kill anything, any time, run again, and look whether every unit has its one row.

    make chaos                                            100 kills, over local disk and S3
    python tests/system/chaos.py --kills 10 --seed 7 --storage local

A small job runs on a Ray cluster of several nodes on this machine. At seeded random moments its
driver, a planner, a decoder, an engine, the writer or a whole node get SIGKILL; a driver that ended
is started again, with other pieces of work than before, until the run is complete. The answers are
those of the simulated engine, which follow from the unit: one that was mixed up would be seen.
"""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil
import pyarrow.parquet as pq
import yaml
from PIL import Image

from pipeline.storage.storage import Storage, join

VICTIMS = ("driver", "planner", "decoder", "engine", "writer", "node")
ACTORS = {
    "planner": "PlanSlice",
    "decoder": "Prepare",
    "engine": "Generate",
    "writer": "Commit",
}
NUM_MEDIA = 48
_STARTS = 5
SMALL_SHARDS = """
from pipeline.plan import shards
shards.SHARD_UNITS = 8
from jobs.cli.main import main
main(prog_name="reelscribe")
"""
"""The command, with shards so small that some are sealed in the middle of the run."""
SMALL_SLICES = f"""
from pipeline.plan import slices
slices.SLICE_ITEMS, slices._FIRST_ITEMS = 10, 2
{SMALL_SHARDS}"""
"""The same with small slices, which are planned while others are annotated."""
DRIVER_SECONDS = 300
"""A driver that has neither ended nor been killed by then hangs."""


@dataclass
class Outcome:
    """What a storm did and found."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        listed = ", ".join(f"{n} {name}" for name, n in sorted(self.kills.items()))
        found = "; ".join(self.wrong) or "every unit once, with the right answer"
        return f"{self.kills.total()} kills ({listed}), {self.starts} starts of a driver: {found}"


class Machines:
    """A Ray cluster of a head and two nodes, all here."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        self.address = self._cluster.address
        self._nodes = [self._add_node(num_cpus=2) for _ in range(2)]

    def actors(self, stage: str) -> list[psutil.Process]:
        """The processes of a stage's actors, on any node."""
        raylets = [info.process.pid for node in self._all() for info in _raylets(node)]
        found = []
        for pid in raylets:
            try:
                for process in psutil.Process(pid).children():
                    if f"MapBatches({stage})" in " ".join(process.cmdline()):
                        found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def lose_node(self, chance: random.Random) -> None:
        """SIGKILL to a whole node, the head excepted; another one comes up."""
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self.add_node(chance.choice([2, 3]))

    def add_node(self, num_cpus: int) -> None:
        self._nodes.append(self._add_node(num_cpus))

    def _add_node(self, num_cpus: int) -> Any:
        """A node; on a busy machine one may take longer to start than Ray waits for it."""
        for _ in range(_STARTS):
            try:
                return self._cluster.add_node(num_cpus=num_cpus)
            except Exception as error:
                print(f"a node did not start: {error}", file=sys.stderr)
        raise RuntimeError("no node starts")

    def _all(self) -> list:
        return [self._cluster.head_node, *self._nodes]

    def close(self) -> None:
        self._cluster.shutdown()


def _raylets(node) -> list:
    return node.all_processes.get("raylet", [])


class Job:
    """A job of small images whose answers are known."""

    def __init__(self, folder: Path, checkpoint: Path, output: str, options: dict) -> None:
        self.folder, self.output = folder, output
        self.storage = Storage(options)
        spec = {
            "name": "chaos",
            "input": {"scan": str(folder / "media")},
            "output": output,
            "model": {
                "source": str(checkpoint),
                "engine": "simulated",
                "simulated": {"seconds_per_step": 0.02, "output_tokens": 20},
            },
            "tasks": ["caption", "ocr"],
            "budget": {"image_tokens": [4, 64]},
            "resources": {"decoders": 2, "replicas": 2, "units_per_file": 2},
            "storage_options": options,
        }
        self.file = folder / "job.yaml"
        self.file.write_text(yaml.safe_dump(spec))

    def start(
        self, address: str, chance: random.Random, code: str = SMALL_SLICES
    ) -> subprocess.Popen:
        """Start a driver; how it cuts the work has no influence on answers."""
        command = [sys.executable, "-c", code, "annotate", str(self.file)]
        command += ["--set", f"resources.units_per_file={chance.choice([1, 2, 3])}"]
        command += ["--set", f"resources.max_batch_tokens={chance.choice([512, 1024, 4096])}"]
        environment = os.environ | {"RAY_ADDRESS": address, "RAY_worker_niceness": "0"}
        with (self.folder / "driver.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def parts(self) -> list[str]:
        files = self.storage.list_files(join(self.output, "annotations"), "**/*.parquet")
        return [file["uri"] for file in files]

    def pieces(self) -> list[str]:
        files = self.storage.list_files(
            join(self.output, "annotations-pieces"), "**/part-*.parquet"
        )
        return [file["uri"] for file in files]

    def rows(self) -> list[dict]:
        """All rows, as any reader would find them."""
        tables = [pq.read_table(io.BytesIO(self.storage.read_bytes(uri))) for uri in self.parts()]
        return [row for table in tables for row in table.to_pylist()]

    def answers(self) -> dict[str, list]:
        """What each unit was answered. Raises AssertionError if one has two rows."""
        rows = self.rows()
        twice = [unit for unit, n in Counter(r["unit_id"] for r in rows).items() if n > 1]
        assert not twice, f"units with several rows: {twice}"
        return {
            row["unit_id"]: [
                row["uri"], row["status"], row["error"],
                [response["raw_text"] for response in row["responses"]],
            ]
            for row in rows
        }  # fmt: skip

    def leftovers(self) -> list[str]:
        """Files that a run does not write: half of one, or a temporary one."""
        files = [file["uri"] for file in self.storage.list_files(self.output, "**/*")]
        files += [file["uri"] for file in self.storage.list_files(self.output, "**/.*")]
        known = re.compile(
            r"/((part-[^/]*|_empty|slice-\d+|slices)\.parquet|(run|summary)\.json|log-[\d.]+\.jsonl|latest\.sql)$"
        )
        return sorted({uri for uri in files if not known.search(uri)})


@contextmanager
def watched(job: Job, wrong: list[str]) -> Iterator[None]:
    """Read the output all the time, as a user would: a file is whole, and what is there stays.

    The files of the table alone have each unit once, at every moment.
    """
    ended = threading.Event()

    def read() -> None:
        seen: set[str] = set()
        while not ended.wait(0.5):
            found = set()
            pieces = job.pieces()
            parts = job.parts()
            in_table: Counter[str] = Counter()
            for uri in [*pieces, *parts]:
                try:
                    content = job.storage.read_bytes(uri)
                except FileNotFoundError:
                    found = seen  # a shard was being sealed, or two rows of a unit were settled
                    break
                try:
                    ids = pq.read_table(io.BytesIO(content))["unit_id"].to_pylist()
                except Exception as error:
                    wrong.append(f"half a file was visible: {uri}: {error}")
                    continue
                found |= set(ids)
                in_table.update(ids if uri in parts else ())
            if twice := [unit for unit, number in in_table.items() if number > 1]:
                wrong.append(f"units twice in the table: {sorted(twice)}")
            if lost := seen - found:
                wrong.append(f"rows vanished: {sorted(lost)}")
            seen |= found

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def storm(
    job: Job, machines: Machines, kills: int, chance: random.Random, victims=VICTIMS
) -> Outcome:
    """Run a job to its end under so many kills."""
    outcome = Outcome()
    order = [victims[k % len(victims)] for k in range(kills)]
    chance.shuffle(order)
    order.sort(key=lambda victim: victim == "planner")  # the last comes first: planning ends soon
    with watched(job, outcome.wrong):
        driver = job.start(machines.address, chance)
        outcome.starts = 1
        begin, pause = time.monotonic(), chance.uniform(2, 12)
        while True:
            time.sleep(0.1)
            code = driver.poll()
            if code == 0 and not order:
                return outcome
            if code is not None:  # killed, complete too soon, or stopped with a message
                if code == 0 or outcome.starts > kills + 5:
                    if code != 0:
                        outcome.wrong.append(f"drivers end with {code}, see driver.log")
                    return outcome
                driver = job.start(machines.address, chance)
                outcome.starts += 1
                begin, pause = time.monotonic(), chance.uniform(2, 12)
            elif order and time.monotonic() - begin > pause:
                if _kill(order[-1], driver, machines, chance):
                    outcome.kills[order.pop()] += 1
                    pause = time.monotonic() - begin + chance.uniform(0.2, 4)
            elif time.monotonic() - begin > DRIVER_SECONDS:
                outcome.wrong.append("a driver hangs")
                driver.kill()
                driver.wait()
                return outcome


def _kill(victim: str, driver: subprocess.Popen, machines: Machines, chance) -> bool:
    if victim == "driver":
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        return True
    actors = machines.actors(ACTORS.get(victim, ACTORS["engine"]))
    if not actors:
        return False  # not there yet
    if victim == "node":
        machines.lose_node(chance)
        return True
    try:
        chance.choice(actors).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def check(job: Job, whole: dict[str, list], outcome: Outcome) -> None:
    """Compare with what an undisturbed run gave."""
    try:
        found = job.answers()
    except AssertionError as error:
        outcome.wrong.append(str(error))
        return
    if missing := whole.keys() - found.keys():
        outcome.wrong.append(f"units without a row: {sorted(missing)}")
    if others := found.keys() - whole.keys():
        outcome.wrong.append(f"unknown units: {sorted(others)}")
    outcome.wrong += [
        f"another answer: {found[unit]}, not {whole[unit]}"
        for unit in found.keys() & whole.keys()
        if found[unit] != whole[unit]
    ]
    if unsealed := job.pieces():
        outcome.wrong.append(f"pieces of a complete run: {unsealed}")
    if leftovers := job.leftovers():
        outcome.wrong.append(f"left lying: {leftovers}")


def make_media(folder: Path) -> None:
    folder.mkdir(parents=True)
    for k in range(NUM_MEDIA):
        Image.new("RGB", (64 + 8 * (k % 5), 64), (5 * k, 255 - 5 * k, 99)).save(
            folder / f"{k:02}.png"
        )
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "empty.jpg").touch()


def undisturbed(job: Job, machines: Machines) -> dict[str, list]:
    driver = job.start(machines.address, random.Random(0), SMALL_SHARDS)
    assert driver.wait(DRIVER_SECONDS) == 0
    answers = job.answers()
    assert len(answers) == NUM_MEDIA + 2
    return answers


@contextmanager
def bucket() -> Iterator[tuple[str, dict]]:
    """An S3 server, and the options that lead to it."""
    import tempfile
    import urllib.request

    with tempfile.NamedTemporaryFile("r") as log:
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1"]
        with open(log.name, "wb") as out:
            server = subprocess.Popen([*command, "-p", "0"], stdout=out, stderr=out)
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", Path(log.name).read_text())):
                assert server.poll() is None
                time.sleep(0.1)
            request = urllib.request.Request(f"{found[0]}/chaos", method="PUT")
            urllib.request.urlopen(request, timeout=60).close()
            yield "s3://chaos", {"s3": {"endpoint_url": found[0], "key": "k", "secret": "s"}}
        finally:
            server.terminate()
            server.wait()


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--kills-per-run", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--storage", type=click.Choice(["local", "s3", "both"]), default="both")
@click.option("--folder", type=Path, default=Path("build/chaos"), show_default=True)
@click.option("--seconds", default=100_000, help="Begin no further run after so many.")
def main(kills: int, kills_per_run: int, seed: int, storage: str, folder: Path, seconds: int):
    """Run storms until there were so many kills. Interrupted, the same command goes on.

    What each run found is a line of tally.jsonl in the folder.
    """
    from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

    begin = time.monotonic()
    folder = folder.resolve() / str(seed)
    tally = folder / "tally.jsonl"
    checkpoint = folder / "checkpoint"
    if not (folder / "media").exists():
        make_media(folder / "media")
    if not (checkpoint / "config.json").exists():
        write_tiny_checkpoint(checkpoint)
    machines = Machines()
    try:
        whole = undisturbed(Job(folder, checkpoint, str(folder / "whole"), {}), machines)
        with bucket() as (s3, options):
            while (left := kills - done(tally)) > 0 and time.monotonic() - begin < seconds:
                number = len(found(tally))
                chance = random.Random(f"{seed}/{number}")
                on_s3 = storage == "s3" or (storage == "both" and number % 2 == 1)
                output = join(s3 if on_s3 else str(folder), f"out-{number}-{os.getpid()}")
                job = Job(folder, checkpoint, output, options if on_s3 else {})
                started = time.monotonic()
                outcome = storm(job, machines, min(kills_per_run, left), chance)
                check(job, whole, outcome)
                line = {
                    "run": number,
                    "storage": "s3" if on_s3 else "local",
                    "kills": outcome.kills,
                    "starts": outcome.starts,
                    "seconds": round(time.monotonic() - started),
                    "wrong": outcome.wrong,
                }
                with tally.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{line['storage']}: {outcome}", flush=True)
    finally:
        machines.close()
    wrong = sum(bool(run["wrong"]) for run in found(tally))
    print(f"{done(tally)} kills in {len(found(tally))} runs: {wrong} runs wrong; {tally}")
    sys.exit(1 if wrong else 0)


def found(tally: Path) -> list[dict]:
    """What runs have found until now."""
    return [json.loads(line) for line in tally.read_text().splitlines()] if tally.exists() else []


def done(tally: Path) -> int:
    """Kills until now."""
    return sum(sum(run["kills"].values()) for run in found(tally))


if __name__ == "__main__":
    main()
