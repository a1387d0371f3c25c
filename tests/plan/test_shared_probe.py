"""Manifest rows of one media file share one reading of its header."""

from pathlib import Path

from pipeline.plan.planner import Planner
from pipeline.storage.storage import Storage
from schemas.tables.manifest import MediaItem
from tests.support.clips import numbered_frames, write_clip
from tests.support.job_files import make_job


def test_rows_of_one_film_read_its_header_once(tmp_path: Path, checkpoint: Path, monkeypatch):
    path = tmp_path / "film.mp4"
    write_clip(path, numbered_frames(100), fps=10)
    opened = []
    open_media = Storage.open_media

    def counting(self, uri: str, **options):
        opened.append(uri)
        return open_media(self, uri, **options)

    monkeypatch.setattr(Storage, "open_media", counting)
    items = [
        MediaItem(media_id=f"{k}", uri=str(path), start_seconds=k / 10, end_seconds=k / 10 + 1)
        for k in range(60)
    ]
    items[7] = MediaItem(media_id="7", uri=str(path), start_seconds=99.0, end_seconds=100.0)
    planner = Planner(make_job(checkpoint), 262_144, Storage())
    planned = list(planner.plan_each(items))
    assert opened == [str(path)]
    assert [units[0].media_id for units in planned] == [item.media_id for item in items]
    assert [k for k, units in enumerate(planned) if units[0].error] == [7]
    assert "but the video runs from 0.000 to 10.000 s" in planned[7][0].error.message
    alone = [planner.plan_item(item) for item in items]
    assert planned == alone
