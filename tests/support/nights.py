"""Nights over a bucket that changes, without Ray, model or network.

The listing is a dictionary, the answers are written as the committer would; what is new, what is
known and what is gone is decided by the pipeline.
"""

import hashlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from pipeline.manifest.existing import ExistingMedia
from pipeline.manifest.select import Selection, select
from pipeline.output.listing import write_listing
from pipeline.output.rows import RunKey
from pipeline.output.views import write_views
from pipeline.storage.ids import digest
from pipeline.storage.listing import PassOver
from pipeline.storage.parquet import write_json
from pipeline.storage.storage import Storage
from schemas.errors import StorageError
from schemas.job.job import Input
from schemas.tables.manifest import MediaItem, default_media_id
from tests.support.annotation_rows import row
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows

PREFIX = "s3://media/clips"
WINDOWS = ((0.0, 3.0), (3.0, 6.0), (6.0, 9.0))


def etag(content: str) -> str:
    return hashlib.md5(content.encode()).hexdigest()


def media_id(name: str) -> str:
    return default_media_id([f"{PREFIX}/{name}"])


class Bucket(Storage):
    """A storage that lists ``names``: name -> content. An image is a name that ends with .jpg."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        self.fails = False

    def list_pages(
        self, uri: str, pattern: str = "*", pass_over: PassOver | None = None
    ) -> Iterator[list[dict]]:
        if not uri.startswith("s3://"):
            yield from super().list_pages(uri, pattern, pass_over)
            return
        info = {"size": 1, "modified": None}
        files = [
            {"uri": f"{PREFIX}/{name}", "name": name, "version": etag(content)} | info
            for name, content in sorted(self.names.items())
        ]
        for start in range(0, len(files), 3):
            yield files[start : start + 3]
            if self.fails:
                raise StorageError("the storage failed in the middle of its listing")


class Archive:
    """An output, and the nights that fill it."""

    def __init__(self, folder: Path) -> None:
        self.output, self.bucket, self.num_nights = str(folder), Bucket(), 0
        self.num_answered = 0
        self.failing: dict[str, str] = {}  # name -> type of the error
        self.run_of: dict[str, str] = {}  # recipe -> its newest run

    def existing(self, recipe: str) -> ExistingMedia:
        return ExistingMedia(self.output, run_key("r", recipe).recipe_ids, self.bucket)

    def night(
        self, recipe: str = "abc", *, cut: random.Random | None = None, **spec: object
    ) -> Selection:
        """Select, record and answer what is new. cut: the run is killed, so rows are missing."""
        self.num_nights += 1
        key = run_key(f"r{self.num_nights}", recipe, "2026-01-01")
        self.run_of[recipe] = key.run_id
        ids = {"created_at": f"night {self.num_nights:03}", "recipe_ids": key.recipe_ids._asdict()}
        write_json(ids, f"{self.output}/runs/{key.run_id}/run.json", self.bucket)
        given = {"scan": PREFIX, "only_new": True} | spec
        chosen = select(Input(**given), self.bucket, lambda: self.existing(recipe))
        write_listing(chosen.listing, self.output, key, self.bucket)
        rows = [row for item in chosen.items for row in self.answers(item, recipe)]
        if cut is not None:
            rows = cut.sample(rows, len(rows) // 2)
        self.commit(rows, key)
        return chosen

    def answers(self, item: MediaItem, recipe: str) -> list[dict]:
        """The rows of an item: one of an image, three of a video."""
        name = item.uri.rpartition("/")[2]
        content = self.bucket.names[name]
        ids = run_key("r", recipe).recipe_ids
        recipe = ids.image if name.endswith(".jpg") and name not in self.failing else ids.video
        if kind := self.failing.get(name):
            unread = digest(item.media_id, None, None, None)
            one = row(unread, item.media_id, item.content_version, error=kind, readable=False)
            return [one | {"uri": item.uri, "recipe_id": recipe}]
        spans = [(None, None)] if name.endswith(".jpg") else WINDOWS
        found = []
        for start, end in spans:
            video = None if start is None else (0.0, 9.0, start, end)
            texts = [None if t is None else f"{t:.6f}" for t in (start, end)]
            unit_id = digest(item.media_id, etag(content), *texts)
            one = row(unit_id, item.media_id, item.content_version, video=video)
            one["media"]["content_version"] = etag(content)
            found.append(one | {"uri": item.uri, "recipe_id": recipe,
                                "caption": f"{recipe}: {content}"})  # fmt: skip
        return found

    def commit(self, rows: list[dict], key: RunKey) -> None:
        """Write rows, and the views as the end of a run does."""
        if rows:
            finished = {"timings": {"finished_at": datetime.now(UTC)}, "run_id": key.run_id}
            commit_rows([one | finished for one in rows], self.output, key, self.bucket)
            write_views(self.output, self.bucket)
        self.num_answered += len(rows)

    def query(self, sql: str) -> list[tuple]:
        """Rows of a query, by a DuckDB that has read nothing but the output's latest.sql."""
        with duckdb.connect() as db:
            db.execute(Path(self.output, "latest.sql").read_text())
            return db.sql(sql).fetchall()

    def latest(self) -> dict[str, list[str]]:
        """What `latest` says: name -> the captions of its units, in order of time."""
        found: dict[str, list[str]] = {}
        for uri, its_id, caption in self.query(
            "SELECT uri, media_id, caption FROM latest ORDER BY uri, sampling.start_seconds"
        ):
            name = uri.removeprefix(f"{PREFIX}/")
            assert its_id == media_id(name)
            found.setdefault(name, []).append(caption)
        return found

    def expected(self, recipe: str = "abc") -> dict[str, list[str]]:
        """What `latest` must say: of each name that is there, its content's answers."""
        ids = run_key("r", recipe).recipe_ids
        return {
            name: [f"{ids.image}: {content}"]
            if name.endswith(".jpg")
            else [f"{ids.video}: {content}"] * len(WINDOWS)
            for name, content in self.bucket.names.items()
        }
