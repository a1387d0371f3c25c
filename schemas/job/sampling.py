"""The sections ``sampling`` and ``budget`` of a job file: which frames, and at which size."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.job.section import Section


class Segmentation(Section):
    """How a long video is divided into several units."""

    kind: Literal["none", "window", "shots"] = Field(
        "window",
        description="none: one unit per item; window: time spans of equal length; shots: one unit "
        "per shot, with shots longer than `seconds` divided into windows.",
    )
    seconds: float = Field(60.0, gt=0, description="Length of a window.")
    overlap_seconds: float = Field(
        0.0,
        ge=0,
        description="Each window starts this long before the previous one ends, so that one of the "
        "two shows an event at their border in full.",
    )
    min_seconds: float = Field(
        2.0,
        ge=0,
        description="A shorter shot joins the next one. A shorter last shot, or a shorter rest "
        "after the last window, joins the span before it.",
    )
    shot_threshold: float = Field(
        27.0,
        gt=0,
        le=255,
        description="With shots: difference of two frames at a cut, 0 to 255; a higher value "
        "finds fewer cuts.",
    )

    @model_validator(mode="after")
    def _moves_on(self) -> "Segmentation":
        if self.overlap_seconds > self.seconds / 2:
            raise ValueError(
                f"overlap_seconds {self.overlap_seconds:g} is over half of seconds {self.seconds:g}"
            )
        return self


class SamplingSpec(Section):
    """Which frames of a video the model sees."""

    fps: float = Field(2.0, gt=0, le=240, description="Frames per second; see `num_frames`.")
    num_frames: int | None = Field(
        None,
        ge=1,
        description="Number of frames of every unit, instead of `fps`; rounded up to an even "
        "number, at most the frames of the unit.",
    )
    min_frames: int = Field(
        4, ge=1, description="With `fps`: minimum number of frames, if the unit has as many."
    )
    max_frames: int = Field(
        768, ge=2, description="With `fps`: maximum number of frames, evenly spaced."
    )
    segmentation: Segmentation = Field(default_factory=Segmentation, description="Long videos.")
    clock: Literal["media", "unit"] = Field(
        "media",
        description="Zero of the times that the model reads and answers: the file's own clock "
        "(PTS), or the start of the unit, for a model trained on short clips only. The table has "
        "PTS in both cases.",
    )
    frames: Literal["exact", "nearest", "keyframes"] = Field(
        "exact",
        description="exact: the frame on display at the sample time. nearest: the nearest "
        "reference frame, which is faster for videos with B-frames. keyframes: the last key "
        "frame, for a rough look at an archive; one frame may then be used for many sample times. "
        "If a frame's time could have more or fewer tokens than planned, the exact frame is used. "
        "The rows have the times of the frames that were used.",
    )
    decoder: Literal["auto", "torchcodec", "pyav"] = Field(
        "auto",
        description="auto is pyav. torchcodec returns the same frames and times, and needs several "
        "times the memory.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "SamplingSpec":
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames {self.min_frames} is over max_frames {self.max_frames}")
        return self


TokenRange = Annotated[tuple[int, int], Field(description="[min, max]")]


class Budget(Section):
    """Size limits of images and frames. A token is 32 x 32 pixels; in a video, of 2 frames."""

    image_tokens: TokenRange = Field((4, 16384), description="[min, max] tokens of an image.")
    frame_tokens: TokenRange = Field(
        (128, 768),
        description="[min, max] size of a video frame in squares of 32 x 32 px; the model sees "
        "frames in pairs, so it gets half as many tokens.",
    )
    unit_tokens: int = Field(
        24576,
        ge=4,
        description="Maximum vision tokens of one video unit, unless the minimum of "
        "frame_tokens needs more.",
    )
    video_rule: Literal["per_frame", "per_clip"] = Field(
        "per_frame",
        description="per_frame: as the model's reference code (qwen-vl-utils); per_clip: as "
        "transformers' video processor, frames x height x width within [frame_tokens min, "
        "unit_tokens x 2] squares.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Budget":
        for name in ("image_tokens", "frame_tokens"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(
                    f"{name} must be [min, max] with 1 <= min <= max, got {[low, high]}"
                )
        return self
