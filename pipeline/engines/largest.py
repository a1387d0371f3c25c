"""The largest image and video of a plan, for which an engine reserves memory when it starts."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True)
class LargestMedia:
    """Vision tokens of the largest image and of the largest video of a run; 0: it has none."""

    image_tokens: int = 0
    video_tokens: int = 0


def largest_media(blocks: Sequence[pa.Table]) -> LargestMedia:
    """Find the largest image and video, also in conversations. blocks: UNIT rows."""
    units = pa.concat_tables(blocks)
    parts = pc.list_flatten(units["parts"])
    of_parts = (pc.struct_field(parts, "media"), pc.struct_field(parts, "sampling"))
    largest = {"image": 0, "video": 0}
    for media, sampling in ((units["media"], units["sampling"]), of_parts):
        kinds = pc.struct_field(media, "media_type")
        tokens = pc.struct_field(sampling, "num_vision_tokens")
        for kind, found in largest.items():
            of_kind = pc.max(tokens.filter(pc.equal(kinds, pa.scalar(kind)))).as_py()
            largest[kind] = max(found, of_kind or 0)
    return LargestMedia(image_tokens=largest["image"], video_tokens=largest["video"])
