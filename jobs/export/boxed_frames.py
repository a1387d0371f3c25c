"""Pictures in full size with their boxes: images, and the video frames that have boxes."""

import dataclasses
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from jobs.export.source import Source, drawings, draws_boxes
from jobs.results.frames import seen_parts
from jobs.results.read import Row
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.errors import StorageError, UnitError
from schemas.tables.media import Part
from schemas.task import Drawing

_INSTANT_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True)
class BoxedFrame:
    """One picture.

    name: file name without an extension. image: RGB, in the original's size.
    pts_seconds: None for images. boxes: label, and x1, y1, x2, y2 in the image's pixels.
    """

    name: str
    row: Row
    image: Image.Image
    pts_seconds: float | None
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]

    def jpeg(self) -> bytes:
        """Return the picture as a JPEG file."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=92)
        return buffer.getvalue()


def boxed_frames(source: Source) -> Iterator[BoxedFrame]:
    """Yield each image with an answer about objects or tracks, and each video frame with boxes.

    Nothing if no row has a box. Media that cannot be read now are added to ``source.skipped``.
    """
    drawn = [drawings(row, draws_boxes) for row in source.rows]
    if not any(drawing.marks for found in drawn for drawing in found):
        return
    for number, (row, found) in enumerate(zip(source.rows, drawn, strict=True)):
        if not found:
            continue
        for part in seen_parts(row, source.planned.get(row["unit_id"])):
            for pts_seconds, boxes in _by_time(found, part):
                name = file_name(number, row["uri"], pts_seconds)
                try:
                    image = full_size(part, pts_seconds, source.decoder)
                except (UnitError, StorageError) as error:
                    source.skipped.append((row["uri"], str(error)))
                    break
                yield BoxedFrame(
                    name=name, row=row, image=image, pts_seconds=pts_seconds, boxes=tuple(boxes)
                )


def full_size(part: Part, pts_seconds: float | None, decoder: IsolatedDecoder) -> Image.Image:
    """Decode an image, or the video frame with this PTS, in its original size.

    Raises:
        UnitError: it cannot be read now.
    """
    changed: dict[str, Any] = {}
    if pts_seconds is not None and not part.frames:
        changed = {"start_seconds": pts_seconds, "end_seconds": pts_seconds + _INSTANT_SECONDS}
        changed |= {"num_frames": 1, "frames": "exact"}
    changed |= {"resized_width": part.media.width, "resized_height": part.media.height}
    sampling = dataclasses.replace(part.sampling, **changed)
    pixels = decoder.decode(dataclasses.replace(part, sampling=sampling)).pixels
    place = 0
    if pts_seconds is not None and part.frames and part.sampling.pts_seconds:
        place = part.sampling.pts_seconds.index(pts_seconds)
    return Image.fromarray(pixels[place])


def file_name(number: int, uri: str, pts_seconds: float | None = None) -> str:
    """Return a file name of ASCII letters, digits and dashes, from the end of the uri."""
    stem = uri.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition(".")[0]
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60] or "media"
    return f"{number:06}-{safe}" + ("" if pts_seconds is None else f"-{pts_seconds:.3f}s")


def _by_time(found: Sequence[Drawing], part: Part) -> Iterator[tuple[float | None, list[Any]]]:
    boxes: dict[float | None, list[Any]] = defaultdict(list)
    if part.media.media_type == "image":
        boxes[None] = []  # an image without boxes is a training example too
    for drawing in found:
        for mark in drawing.marks:
            # Another program's table may have NaN.
            if mark.box is not None and all(map(math.isfinite, mark.box)):
                boxes[mark.pts_seconds].append((mark.label, mark.box))
    yield from sorted(boxes.items(), key=lambda item: item[0] or 0.0)
