"""Pictures in full size with their boxes: images, and frames of videos in which something is."""

import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from jobs.pictures import seen_parts
from jobs.read_annotations import Row
from pipeline.decode import decode_unit
from pipeline.storage import Storage
from schemas.errors import StorageError, UnitError
from schemas.part import Part

_INSTANT_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True)
class BoxedFrame:
    """One picture. name: of a file, without an extension. image: RGB, in the original's size.

    boxes: label, and x1, y1, x2, y2 in its pixels. pts_seconds: None for images.
    """

    name: str
    row: Row
    image: Image.Image
    pts_seconds: float | None
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]

    def jpeg(self) -> bytes:
        """The picture as a file."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=92)
        return buffer.getvalue()


def boxed_frames(
    rows: Sequence[Row], planned: dict[str, Any], storage: Storage, skipped: list[str]
) -> Iterator[BoxedFrame]:
    """Yield each image that was asked about objects, and each frame of a video that has some.

    What cannot be read now goes to ``skipped``, with the reason.
    """
    for number, row in enumerate(rows):
        if row.get("objects") is None and row.get("tracks") is None:
            continue
        for part in seen_parts(row, planned.get(row["unit_id"])):
            for pts_seconds, boxes in _by_time(row, part):
                name = file_name(number, row["uri"], pts_seconds)
                try:
                    image = full_size(part, pts_seconds, storage)
                except (UnitError, StorageError) as error:
                    skipped.append(f"{row['uri']}: {error}")
                    break
                yield BoxedFrame(
                    name=name, row=row, image=image, pts_seconds=pts_seconds, boxes=tuple(boxes)
                )


def full_size(part: Part, pts_seconds: float | None, storage: Storage) -> Image.Image:
    """Decode an image, or the frame of a video with this PTS, in its own size.

    Raises:
        UnitError: it cannot be read now.
    """
    stretch: dict[str, Any] = {}
    if pts_seconds is not None and not part.frames:
        stretch = {"start_seconds": pts_seconds, "end_seconds": pts_seconds + _INSTANT_SECONDS}
        stretch |= {"num_frames": 1, "frames": "exact"}  # which has this PTS, however it was found
    stretch |= {"resized_width": part.media.width, "resized_height": part.media.height}
    sampling = dataclasses.replace(part.sampling, **stretch)
    pixels = decode_unit(dataclasses.replace(part, sampling=sampling), storage).pixels
    place = 0
    if pts_seconds is not None and part.frames and part.sampling.pts_seconds:
        place = part.sampling.pts_seconds.index(pts_seconds)
    return Image.fromarray(pixels[place])


def file_name(number: int, uri: str, pts_seconds: float | None = None) -> str:
    """A name that is safe everywhere, and says where it is from."""
    stem = uri.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition(".")[0]
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60] or "media"
    return f"{number:06}-{safe}" + ("" if pts_seconds is None else f"-{pts_seconds:.3f}s")


def _by_time(row: Row, part: Part) -> Iterator[tuple[float | None, list[Any]]]:
    found: dict[float | None, list[Any]] = defaultdict(list)
    if part.media.media_type == "image":
        found[None] = []  # one without any box teaches too
    for each in row.get("objects") or []:
        found[each["pts_seconds"]].append((each["label"], tuple(each["box"].values())))
    for track in row.get("tracks") or []:
        for at in track["boxes"]:
            found[at["pts_seconds"]].append((track["label"], tuple(at["box"].values())))
    yield from sorted(found.items(), key=lambda item: item[0] or 0.0)
