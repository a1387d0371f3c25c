"""The largest image and video of a plan, for which an engine reserves memory when it starts."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from schemas.job.job import Job


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


def largest_of_job(job: Job, *, has_videos: bool = True) -> LargestMedia:
    """The largest image and video that the job's budget allows; a conversation may have larger."""
    budget = job.budget
    # With many frames, the minimum size of a frame exceeds the unit's budget.
    min_video = int(1.05 * budget.frame_tokens[0]) * -(-job.sampling.max_frames // 2)
    video_tokens = max(budget.unit_tokens, min_video, budget.frame_tokens[1])
    return LargestMedia(
        image_tokens=budget.image_tokens[1], video_tokens=video_tokens if has_videos else 0
    )
