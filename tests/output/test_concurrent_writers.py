"""Runs, retries, seals, settling and compaction at once, with kills: no committed row is lost.

Every storage operation is a point at which another writer may go on, or at which the process is
killed. The oracle is a dictionary: unit -> the best row that was ever committed. A reader of the
plain files of ``annotations`` looks in between: a unit that it has seen stays.
"""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output import compact, seal, table
from pipeline.output.duplicates import remove_rows
from pipeline.output.file_names import piece_files
from pipeline.output.rows import RunKey
from pipeline.output.table import read_committed
from pipeline.storage.storage import Storage
from schemas.tables.annotation import ANNOTATIONS, PIECES
from tests.support.annotation_rows import row
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows

KEY = run_key("test-20260101-abcdef", "abc", run_date="2026-01-01")
SMALL = 128_000_000


def unit(unit_id: str, status: str = "ok", attempts: int = 1) -> dict:
    if status == "ok":
        return row(unit_id, f"m{unit_id}", "v")
    failed = row(unit_id, f"m{unit_id}", "v", error="storage_failed")
    failed["error"]["attempts"] = attempts
    return failed


def rows_in(output: str, storage: Storage) -> list[tuple[str, str]]:
    found = read_committed(output, ["abc"], storage)
    return sorted((r["unit_id"], r["status"]) for r in found.to_pylist())


class Between(Storage):
    """Calls ``then`` once, after the first call of ``name`` with a Parquet file of the table."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        super().__init__()
        self.name, self.then, self.is_done = name, then, False

    def _turn(self, name: str, uri: str) -> None:
        if name == self.name and uri.endswith(".parquet") and not self.is_done:
            self.is_done = True
            self.then()

    def read_bytes(self, uri: str) -> bytes:
        content = super().read_bytes(uri)
        self._turn("read", uri)
        return content

    def write_bytes(self, uri: str, content: bytes) -> None:
        super().write_bytes(uri, content)
        self._turn("write", uri)

    def remove(self, uri: str) -> None:
        super().remove(uri)
        self._turn("remove", uri)


def join_all(output: str, storage: Storage) -> None:
    for some in compact.find_bins(output, storage, SMALL):
        compact.join_files(some, storage)


def settle(output: str, storage: Storage) -> None:
    seal.settle(lambda: read_committed(output, ["abc"], storage), output, storage)


def seal_all(output: str, storage: Storage) -> None:
    seal.seal_pieces([file["uri"] for file in piece_files(output, storage)], output, storage)


def drop_failed_rows(output: str, storage: Storage) -> None:
    """As superseded and stale rows are removed: rows that were read, from the files they are in."""
    found = read_committed(output, ["abc"], storage).select(["unit_id", "file", "status"])
    is_failed = pa.compute.equal(found["status"], pa.scalar("failed"))
    remove_rows(found.filter(is_failed), storage)


@pytest.mark.parametrize("when", ["read", "write", "remove"])
@pytest.mark.parametrize("remover", [join_all, settle, drop_failed_rows])
def test_a_retry_commits_while_its_failed_rows_are_removed(tmp_path, remover, when):
    """The retry of a small run has the units of the file that is being removed."""
    output, storage = str(tmp_path), Storage()
    failed = [unit(str(k), "failed") for k in range(4)]
    commit_rows(failed, output, KEY, storage)
    commit_rows([*failed[:2], unit("4")], output, KEY, storage)

    def retry() -> None:
        commit_rows([unit(str(k)) for k in range(4)], output, KEY, storage)
        commit_rows([unit("0"), unit("1"), unit("4")], output, KEY, storage)

    between = Between(when, retry)
    remover(output, between)
    if not between.is_done:
        retry()
    answered = {unit_id for unit_id, status in rows_in(output, storage) if status == "ok"}
    assert answered == {"0", "1", "2", "3", "4"}
    settle(output, storage)
    assert rows_in(output, storage) == [(str(k), "ok") for k in range(5)]


def test_a_settling_that_saw_both_does_not_undo_a_compaction(tmp_path):
    """One process keeps the joined file and removes its sources, the other must not do the reverse.

    The run's name sorts before ``compacted``, so the order of names would keep the sources.
    """
    output, storage = str(tmp_path), Storage()
    key = run_key("a-20260101-abcdef", "abc", run_date="2026-01-01")
    for k in range(3):
        commit_rows([unit(str(k))], output, key, storage)
    join_all(output, Between("write", lambda: settle(output, storage)))
    assert rows_in(output, storage) == [(str(k), "ok") for k in range(3)]


def test_two_compactions_at_once(tmp_path):
    output, storage = str(tmp_path), Storage()
    for k in range(4):
        commit_rows([unit(str(k))], output, KEY, storage)
    join_all(output, Between("read", lambda: join_all(output, storage)))
    join_all(output, Between("write", lambda: join_all(output, storage)))
    settle(output, storage)
    assert rows_in(output, storage) == [(str(k), "ok") for k in range(4)]


class Killed(BaseException):
    """The process is gone."""


class Turns:
    """Lets one of several threads go on at a time, chosen by a seed; the choice may be to kill."""

    def __init__(self, seed: int, kill_share: float, look: Callable[[], None]) -> None:
        """look: called after each turn."""
        self.random, self.kill_share, self.look = random.Random(seed), kill_share, look
        self.waiting: dict[int, threading.Event] = {}
        self.idle = threading.Event()

    def wait(self, number: int) -> None:
        """Called by a thread before and after each of its storage operations."""
        self.waiting[number] = event = threading.Event()
        self.idle.set()
        assert event.wait(60)
        if self.random.random() < self.kill_share:
            raise Killed

    def run(self, jobs: list[Callable[[Storage], None]]) -> None:
        threads = {}
        for number, job in enumerate(jobs):
            storage = Taking(self, number)
            threads[number] = threading.Thread(
                target=self._run, args=(number, job, storage), name=f"writer {number}"
            )
        for thread in threads.values():  # each goes to its first turn, one after the other
            self._go(thread.start)
        while self.waiting:
            event = self.waiting.pop(self.random.choice(sorted(self.waiting)))
            self._go(event.set)
        for thread in threads.values():
            thread.join(60)

    def _go(self, let: Callable[[], None]) -> None:
        """Let one thread run to its next turn, or to its end."""
        self.idle.clear()
        let()
        assert self.idle.wait(60)
        self.look()

    def _run(self, number: int, job: Callable[[Storage], None], storage: Storage) -> None:
        try:
            self.wait(number)
            job(storage)
        except (Killed, FileNotFoundError):  # a file vanished three times while it was read
            pass
        finally:
            self.idle.set()


class Taking(Storage):
    """Waits for its turn before and after each operation that other writers could notice."""

    def __init__(self, turns: Turns, number: int) -> None:
        super().__init__()
        self.turns, self.number, self.num_written = turns, number, 0

    def _wait(self) -> None:
        if threading.current_thread().name.startswith("writer"):  # not those of a pool
            self.turns.wait(self.number)

    def read_bytes(self, uri: str) -> bytes:
        self._wait()
        return super().read_bytes(uri)

    def write_bytes(self, uri: str, content: bytes) -> None:
        self._wait()
        super().write_bytes(uri, content)
        self.num_written += 1
        self._wait()

    def remove(self, uri: str) -> None:
        self._wait()
        super().remove(uri)

    def list_files(self, uri: str, pattern: str = "*") -> list[dict]:
        self._wait()
        found = super().list_files(uri, pattern)
        self._wait()
        return found


class PlainReader:
    """Finds each unit of ``annotations`` that it has found before. Files do not change."""

    def __init__(self, output: str) -> None:
        self.folder, self.units_of_file = Path(output, ANNOTATIONS), {}
        self.seen, self.lost = set(), set()

    def look(self) -> None:
        now = set()
        for file in self.folder.rglob("part-*.parquet"):
            if file not in self.units_of_file:
                self.units_of_file[file] = set(pq.read_table(file)["unit_id"].to_pylist())
            now |= self.units_of_file[file]
        self.lost |= self.seen - now
        self.seen = now


@pytest.mark.parametrize("seed", range(8))
def test_random_writers_against_a_dictionary(tmp_path, seed: int):
    """Every second time with kills."""
    chance, kill_share = random.Random(seed), 0.04 * (seed % 2)
    output = str(tmp_path)
    best: dict[str, tuple[int, int]] = {}
    reader = PlainReader(output)

    def commit(
        key: RunKey, batches: list[list[dict]], folder: str = ANNOTATIONS
    ) -> Callable[[Storage], None]:
        def job(storage: Storage) -> None:
            for rows in batches:
                num_written = storage.num_written
                try:
                    table.commit_rows(rows, f"{output}/{folder}", key, storage)
                finally:
                    for one in rows if storage.num_written > num_written else ():
                        attempts = one["error"]["attempts"] if one["error"] else 0
                        rank = (0 if one["status"] == "ok" else 2, -attempts)
                        best[one["unit_id"]] = min(best.get(one["unit_id"], rank), rank)

        return job

    def batches(attempts: int) -> list[list[dict]]:
        """Of few units, so that the same ones meet: as a retry of a small run has them."""
        groups = [["0", "1"], ["2", "3"], ["4"], ["0", "4"], ["1", "2", "3"]]
        return [
            [unit(k, chance.choice(["ok", "failed"]), attempts) for k in chance.choice(groups)]
            for _ in range(3)
        ]

    keys = [
        run_key(f"{name}-20260101-abcdef", "abc", run_date=day)
        for name, day in (("a", "2026-01-01"), ("z", "2026-01-01"), ("a", "2026-01-02"))
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _: None)
        jobs = [commit(keys[0], batches(1))]
        jobs += [commit(chance.choice(keys), batches(attempts)) for attempts in (1, 2, 3)]
        jobs += [commit(chance.choice(keys), batches(attempts), PIECES) for attempts in (1, 2)]
        jobs += [
            lambda storage: seal_all(output, storage),
            lambda storage: (seal_all(output, storage), settle(output, storage)),
            lambda storage: settle(output, storage),
            lambda storage: settle(output, storage),
            lambda storage: join_all(output, storage),
            lambda storage: (join_all(output, storage), settle(output, storage)),
        ]
        Turns(seed, kill_share, reader.look).run(jobs)
        seal_all(output, Storage())
        settle(output, Storage())
    found = read_committed(output, ["abc"], Storage(), [*table.COUNTED]).to_pylist()
    ranks = {
        r["unit_id"]: (
            0 if r["status"] == "ok" else 2,
            -(r["error"]["attempts"] if r["error"] else 0),
        )
        for r in found
    }
    assert len(found) == len(ranks)  # one row each
    assert ranks == best
    assert not reader.lost
