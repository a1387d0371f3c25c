"""What the model sees: an image or a video, its header facts, and the frames sampled from it."""

from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa

from schemas.tables.columns import Column, struct_of
from schemas.tables.manifest import Intrinsics


@dataclass(frozen=True, kw_only=True)
class Media:
    """Header facts of a media item. Width and height are as displayed, after rotation."""

    media_type: Annotated[str, Column("image or video")]
    content_version: Annotated[
        str | None,
        Column(
            "the object's etag, else its size and modification time; an object with another "
            "version is a new unit"
        ),
    ] = None
    size_bytes: Annotated[int | None, Column("object size", pa.int64(), unit="bytes")] = None
    container: Annotated[
        str | None, Column("container or image format, named as FFmpeg or Pillow name it")
    ] = None
    codec: Annotated[
        str | None, Column("video codec, named as FFmpeg names it; null for images")
    ] = None
    pixel_format: Annotated[str | None, Column("FFmpeg's pixel format, or Pillow's mode")] = None
    has_alpha: Annotated[
        bool, Column("has transparency; the model sees it on a white background")
    ] = False
    width: Annotated[
        int,
        Column("width after rotation; pixels count as square, whatever their aspect", unit="px"),
    ]
    height: Annotated[int, Column("height after rotation", unit="px")]
    rotation: Annotated[
        int,
        Column(
            "clockwise rotation that the header requests (EXIF, XMP or display matrix) and that "
            "was applied",
            unit="degrees",
        ),
    ] = 0
    is_mirrored: Annotated[
        bool,
        Column(
            "the header requests to mirror the rotated picture left to right, which was done",
            nullable=True,
        ),
    ] = False
    begin_seconds: Annotated[float | None, Column("PTS of the first frame", unit="s")] = None
    duration_seconds: Annotated[float | None, Column("duration of the video stream", unit="s")] = (
        None
    )
    average_fps: Annotated[
        float | None, Column("average frame rate, from the header", unit="frames/s")
    ] = None
    num_frames: Annotated[
        int | None,
        Column("frames, from the header; null if the container has no count", pa.int64()),
    ] = None
    is_vfr: Annotated[
        bool | None, Column("the frame rate is variable; null if the header does not show it")
    ] = None
    notes: Annotated[
        tuple[str, ...],
        Column(
            "what was unusual about the file, and what was done about it; empty if nothing",
            nullable=True,
        ),
    ] = ()
    intrinsics: Annotated[
        Intrinsics | None, Column("camera intrinsics from the manifest", unit="px")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of the unit the model sees, and at which size.

    Frames are sampled by time: frame k of ``num_frames`` is the frame on display at
    ``start_seconds + k * (end_seconds - start_seconds) / num_frames``. With ``frames`` nearest or
    keyframes it is the nearest reference frame or the last key frame. The plan sets these times;
    the decoder adds the indices and PTS of the frames it found. Times in the prompt count from
    ``origin_seconds``.
    """

    start_seconds: Annotated[float | None, Column("start of the span (PTS)", unit="s")] = None
    end_seconds: Annotated[float | None, Column("end of the span (PTS)", unit="s")] = None
    origin_seconds: Annotated[
        float,
        Column("PTS from which times in the prompt and the raw text count", unit="s"),
    ] = 0.0
    sample_fps: Annotated[
        float | None, Column("frames that the model sees per second", unit="frames/s")
    ] = None
    num_frames: Annotated[int, Column("frames that the model sees; even for videos")]
    resized_height: Annotated[int, Column("height of the resized frames", unit="px")]
    resized_width: Annotated[int, Column("width of the resized frames", unit="px")]
    grid_thw: Annotated[
        tuple[int, int, int],
        Column("patches in time, height and width (image_grid_thw, video_grid_thw)"),
    ]
    num_vision_tokens: Annotated[int, Column("vision tokens in the prompt")]
    frames: Annotated[
        str,
        Column(
            "how the frame of a sample time is found: exact, nearest or keyframes; null in old "
            "rows, which are exact",
            nullable=True,
        ),
    ] = "exact"
    frame_indices: Annotated[
        tuple[int | None, ...] | None,
        Column(
            "index of each frame in presentation order; an index is null if the decoder reached "
            "the frame by a seek and the container has no frame numbers",
            pa.list_(pa.int64()),
        ),
    ] = None
    pts_seconds: Annotated[
        tuple[float, ...] | None,
        Column(
            "presentation time of each frame, as ffprobe prints it; it may be before the unit's "
            "start, for the frame that is on display then",
            unit="s",
        ),
    ] = None
    decoder: Annotated[str | None, Column("decoder that was used: torchcodec, pyav or pillow")] = (
        None
    )

    def times_seconds(self) -> list[float]:
        """The planned sample times, ``num_frames`` of them, as PTS; empty for images."""
        if self.start_seconds is None or self.end_seconds is None:
            return []
        step = (self.end_seconds - self.start_seconds) / self.num_frames
        return [self.start_seconds + k * step for k in range(self.num_frames)]


FrameUris = Annotated[
    tuple[str, ...], Column("the manifest's list of frame uris; empty if none", nullable=True)
]


@dataclass(frozen=True, kw_only=True)
class Part:
    """An image or a video that the model sees: the unit's own, or one of its conversation."""

    uri: Annotated[
        str,
        Column(
            "the manifest's uri, made absolute; a data: uri is its type and hash, urls are without "
            "secrets"
        ),
    ]
    frames: FrameUris = ()
    media: Annotated[Media, Column("header facts")]
    sampling: Annotated[Sampling, Column("which frames the model sees, and at which size")]


MEDIA = struct_of(Media)
PART = struct_of(Part)
