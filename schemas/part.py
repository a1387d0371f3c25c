"""What the model sees: an image or a video, its header facts, and the frames chosen of it."""

from dataclasses import dataclass

import pyarrow as pa

from schemas.manifest import Intrinsics


def described(
    name: str, type_: pa.DataType, description: str, *, unit: str = "", nullable: bool = True
) -> pa.Field:
    """Make a field that carries its meaning, and its unit of measure if it has one."""
    metadata = {"description": description} | ({"unit": unit} if unit else {})
    return pa.field(name, type_, nullable=nullable, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Media:
    """Header facts of a media item. Width and height are as displayed, after rotation."""

    media_type: str
    content_version: str | None = None
    size_bytes: int | None = None
    container: str | None = None
    codec: str | None = None
    pixel_format: str | None = None
    has_alpha: bool = False
    width: int
    height: int
    rotation: int = 0
    begin_seconds: float | None = None
    duration_seconds: float | None = None
    average_fps: float | None = None
    num_frames: int | None = None
    is_vfr: bool | None = None
    intrinsics: Intrinsics | None = None


MEDIA = pa.struct(
    [
        described("media_type", pa.string(), "image or video", nullable=False),
        described(
            "content_version",
            pa.string(),
            "etag, else size and modification time, of the object; a changed object is a new unit",
        ),
        described("size_bytes", pa.int64(), "size of the object", unit="bytes"),
        described("container", pa.string(), "container or image format, FFmpeg's or Pillow's name"),
        described("codec", pa.string(), "video codec, FFmpeg's name; null for images"),
        described("pixel_format", pa.string(), "FFmpeg's pixel format, or Pillow's mode"),
        described("has_alpha", pa.bool_(), "has transparency (put onto white)", nullable=False),
        described(
            "width",
            pa.int32(),
            "after rotation; pixels are taken as square, whatever the pixel aspect ratio",
            unit="px",
            nullable=False,
        ),
        described("height", pa.int32(), "after rotation", unit="px", nullable=False),
        described(
            "rotation",
            pa.int32(),
            "clockwise turn that the header asked for and that was applied (EXIF or display "
            "matrix); a mirrored EXIF orientation is applied too",
            unit="degrees",
            nullable=False,
        ),
        described("begin_seconds", pa.float64(), "PTS of the first frame", unit="s"),
        described("duration_seconds", pa.float64(), "of the video stream", unit="s"),
        described("average_fps", pa.float64(), "from the header", unit="frames/s"),
        described(
            "num_frames", pa.int64(), "from the header; null where the container does not say"
        ),
        described(
            "is_vfr",
            pa.bool_(),
            "frame times are irregular; null where the header cannot tell",
        ),
        described(
            "intrinsics",
            pa.struct([pa.field(name, pa.float64()) for name in ("fx", "fy", "cx", "cy")]),
            "the manifest's intrinsics",
            unit="px",
        ),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of the unit the model sees, and how large.

    A frame is chosen by time: frame k of ``num_frames`` is the one on display at
    ``start_seconds + k * (end_seconds - start_seconds) / num_frames``, or, as ``frames`` says, the
    nearest that others refer to, or the last key frame. The plan fixes these times, the decoder
    adds the indices and PTS of the frames it found there. To the model times are told from
    ``origin_seconds`` on.
    """

    start_seconds: float | None = None
    end_seconds: float | None = None
    origin_seconds: float = 0.0
    sample_fps: float | None = None
    num_frames: int
    resized_height: int
    resized_width: int
    grid_thw: tuple[int, int, int]
    num_vision_tokens: int
    frames: str = "exact"
    frame_indices: tuple[int | None, ...] | None = None
    pts_seconds: tuple[float, ...] | None = None
    decoder: str | None = None

    def times_seconds(self) -> list[float]:
        """The planned sample times, ``num_frames`` of them, on the PTS clock."""
        if self.start_seconds is None or self.end_seconds is None:
            return []
        step = (self.end_seconds - self.start_seconds) / self.num_frames
        return [self.start_seconds + k * step for k in range(self.num_frames)]


SAMPLING = pa.struct(
    [
        described("start_seconds", pa.float64(), "the unit's stretch begins (PTS)", unit="s"),
        described("end_seconds", pa.float64(), "the unit's stretch ends (PTS)", unit="s"),
        described(
            "origin_seconds",
            pa.float64(),
            "the PTS that the model's own times, in the raw text, count from",
            unit="s",
            nullable=False,
        ),
        described("sample_fps", pa.float64(), "frames the model sees per second", unit="frames/s"),
        described(
            "num_frames", pa.int32(), "frames the model sees; even for videos", nullable=False
        ),
        described("resized_height", pa.int32(), "of the frames", unit="px", nullable=False),
        described("resized_width", pa.int32(), "of the frames", unit="px", nullable=False),
        described(
            "grid_thw",
            pa.list_(pa.int32()),
            "patches in time, height and width (image_grid_thw, video_grid_thw)",
            nullable=False,
        ),
        described(
            "num_vision_tokens", pa.int32(), "tokens that the language model gets", nullable=False
        ),
        described(
            "frames",
            pa.string(),
            "how a sample time found its frame: exact, nearest or keyframes; null in rows from "
            "before there was a choice, which are exact",
        ),
        described(
            "frame_indices",
            pa.list_(pa.int64()),
            "index of each frame in presentation order; an index is null where a seek led to the "
            "frame and the container does not tell",
        ),
        described(
            "pts_seconds",
            pa.list_(pa.float64()),
            "presentation time of each frame, as ffprobe prints it; of a frame that is on display "
            "since before the unit's start, that earlier time",
            unit="s",
        ),
        described("decoder", pa.string(), "what decoded it: torchcodec, pyav or pillow"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An image or a video that the model sees: the unit's own, or one of its conversation."""

    uri: str
    frames: tuple[str, ...] = ()
    media: Media
    sampling: Sampling


URI = described(
    "uri",
    pa.string(),
    "the manifest's, made absolute; of a data: uri type and hash, of urls no secrets",
    nullable=False,
)
FRAMES = described("frames", pa.list_(pa.string()), "the manifest's frame list; empty if none")

PART = pa.struct(
    [
        URI,
        FRAMES,
        described("media", MEDIA, "header facts", nullable=False),
        described("sampling", SAMPLING, "what of it the model sees", nullable=False),
    ]
)
