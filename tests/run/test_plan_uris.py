"""Signed urls are not in the plan's file, and are in the plan that is run."""

import json

from pipeline.plan.secrets import remove_secrets, restore_secrets
from schemas.tables.columns import to_table
from schemas.tables.manifest import MediaItem
from schemas.tables.media import Media, Part, Sampling
from schemas.tables.unit import UNIT, Unit

SIGNED = "https://host/a.png?X-Amz-Signature=PLANTED"
MEDIA = Media(media_type="image", width=32, height=32)
SAMPLING = Sampling(
    num_frames=1, resized_height=32, resized_width=32, grid_thw=(1, 2, 2), num_vision_tokens=1
)


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
    written = remove_secrets(plan)
    assert "PLANTED" not in str(written.to_pylist())
    assert written["uri"].to_pylist() == ["https://host/a.png?...", "s3://bucket/b.png", "d/1.png"]
    assert restore_secrets(written, items) == plan


def test_uris_that_differ_in_their_query_alone_are_not_mixed_up():
    def url(number: int) -> str:
        return f"https://host/get?id={number}&token=PLANTED"

    content = [{"type": "image", "image": url(n)} for n in (5, 6)] + [{"type": "text", "text": "?"}]
    messages = json.dumps([{"role": "user", "content": content}])
    items = [
        MediaItem(media_id="a", uri=url(1)),
        MediaItem(media_id="b", uri=url(2)),
        MediaItem(media_id="c", uri=url(3), frames=(url(3), url(4))),
        MediaItem(media_id="d", uri=url(5), messages=messages),
    ]
    units = [
        Unit(unit_id=item.media_id, media_id=item.media_id, uri=item.uri, frames=item.frames)
        for item in items[:3]
    ]
    parts = tuple(Part(uri=url(n), media=MEDIA, sampling=SAMPLING) for n in (5, 6))
    units.append(Unit(unit_id="d", media_id="d", uri=url(5), messages="[]", parts=parts))
    plan = to_table(units, UNIT)
    written = remove_secrets(plan)
    assert "PLANTED" not in str(written.to_pylist())
    assert restore_secrets(written, items) == plan
    # New signatures come from a new manifest; of an item that is another now, nothing is taken.
    fresh = MediaItem(media_id="a", uri="https://host/get?id=1&token=FRESH")
    other = MediaItem(media_id="b", uri="https://other/get?id=2&token=FRESH")
    run = restore_secrets(written, [fresh, other])
    assert run["uri"].to_pylist()[:2] == [fresh.uri, "https://host/get?..."]
