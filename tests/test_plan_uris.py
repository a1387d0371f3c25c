"""Signed urls are not in the plan's file, and are in the plan that is run."""

from jobs.plan_uris import with_secrets, without_secrets
from schemas.manifest import MediaItem
from schemas.unit import UNIT, Unit, to_table

SIGNED = "https://host/a.png?X-Amz-Signature=PLANTED"


def test_there_and_back():
    items = [
        MediaItem(media_id="a", uri=SIGNED),
        MediaItem(media_id="b", uri="s3://bucket/b.png"),
        MediaItem(media_id="c", uri="d/1.png", frames=("d/1.png", SIGNED)),
    ]
    units = [
        Unit(unit_id=item.media_id, media_id=item.media_id, uri=item.uri, frames=item.frames)
        for item in items
    ]
    plan = to_table(units, UNIT)
    written = without_secrets(plan, items)
    assert "PLANTED" not in str(written.to_pylist())
    assert written["uri"].to_pylist() == ["https://host/a.png?...", "s3://bucket/b.png", "d/1.png"]
    assert with_secrets(written, items) == plan
