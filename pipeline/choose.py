"""Choose what the model sees of a media item: its stretches, their frames' times and sizes.

Exact: the frames' sizes follow from the header, their times from the header's index, or, where
there is none, from the packets around the few times at which a timestamp gains a digit.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.budget import Size, image_size, video_size
from pipeline.container import open_video
from pipeline.probe import VideoProbe, probe_image
from pipeline.prompt import Vision, num_digits, pair_seconds
from pipeline.segment import num_frames, stretches
from pipeline.shots import shot_starts
from pipeline.storage import MediaFile, Storage
from schemas.errors import ErrorType, UnitError
from schemas.job import Budget, SamplingSpec
from schemas.manifest import MediaItem, guess_media_type
from schemas.unit import Media, Sampling

DEFAULT_LIST_FPS = 2.0
"""Frames a second of a frame list that does not say, as in the model's reference code."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the model is to see of an image, a stretch of video or a frame list.

    stretch: start and end of a stretch of video; else None.
    """

    media: Media
    sampling: Sampling
    pts_seconds: Sequence[float] = ()
    stretch: tuple[float, float] | None = None

    @property
    def vision(self) -> Vision:
        """Its part of the prompt."""
        return Vision.of(self.media.media_type, self.sampling, self.pts_seconds)


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """Probes media items by range requests. Small and picklable: it may run in a child process."""

    budget: Budget
    storage: Storage

    def choose(self, item: MediaItem, sampling: SamplingSpec) -> list[Chosen]:
        """Probe an item. Several come of a video that ``sampling`` cuts."""
        if item.frames:
            return [self._frame_list(item)]
        media_type = item.media_type or guess_media_type(item.uri)
        with self.storage.open_media(item.uri, header_only=True) as file:
            if file.size_bytes == 0:
                raise UnitError(ErrorType.MEDIA_UNREADABLE, "the file is empty")
            if media_type == "image":
                return [self._image(item, probe_image(file))]
            if media_type == "video":
                return self._video(item, file, sampling)
            try:
                return [self._image(item, probe_image(file))]
            except UnitError:
                return self._video(item, file, sampling)

    def _image(self, item: MediaItem, media: Media) -> Chosen:
        if item.start_seconds is not None or item.end_seconds is not None:
            raise UnitError(ErrorType.BAD_REQUEST, "an image has no start_seconds or end_seconds")
        media = dataclasses.replace(media, intrinsics=item.intrinsics)
        size = image_size(media.height, media.width, self.budget, item.settings)
        return Chosen(media=media, sampling=_sampling(size, 1))

    def _video(self, item: MediaItem, file: MediaFile, sampling: SamplingSpec) -> list[Chosen]:
        cut, starts = sampling.segmentation, []
        if cut.kind == "shots":
            starts = shot_starts(file, cut.shot_threshold)
        with open_video(file) as (container, stream):
            probe = VideoProbe(file, container, stream)
            spans = stretches(probe.media, item.start_seconds, item.end_seconds, sampling, starts)
            found: list[Chosen] = []
            pairs = [(-math.inf, probe.media.begin_seconds or 0.0)]
            for start, end in spans:
                # Windows may overlap: of the one before, what was shown when this one begins.
                least = max(shown for at, shown in pairs if at <= start)
                planned = self._stretch(item, probe, sampling, (start, end), least)
                sample_times = planned.sampling.times_seconds()[1::2]
                shown = zip(sample_times, pair_seconds(planned.pts_seconds), strict=True)
                pairs = [(-math.inf, least), *shown]
                found.append(planned)
            return found

    def _stretch(
        self,
        item: MediaItem,
        probe: VideoProbe,
        spec: SamplingSpec,
        stretch: tuple[float, float],
        least: float,
    ) -> Chosen:
        """Plan a stretch. least: a time that none of its frames is before."""
        media, (start, end) = probe.media, stretch
        count = num_frames(start, end, media.average_fps, spec)
        size = video_size(count, media.height, media.width, self.budget, item.settings)
        sampling = dataclasses.replace(
            _sampling(size, count),
            start_seconds=start,
            end_seconds=end,
            origin_seconds=start if spec.clock == "unit" else 0.0,
            sample_fps=count / (end - start),
            frames=spec.frames,
        )
        times = sampling.times_seconds()
        pts = planned_pts(times, least, probe.displayed_pts, sampling.origin_seconds)
        return Chosen(media=media, sampling=sampling, pts_seconds=pts, stretch=stretch)

    def _frame_list(self, item: MediaItem) -> Chosen:
        """A video given as images: all of them, ``sample_fps`` a second, the last twice if odd."""
        if item.start_seconds is not None or item.end_seconds is not None:
            raise UnitError(
                ErrorType.BAD_REQUEST, "a frame list has no start_seconds or end_seconds"
            )
        versions, first = [], None
        for uri in item.frames:
            with self.storage.open_media(uri, header_only=True) as file:
                versions.append(file.content_version)
                first = first or probe_image(file)
        assert first is not None
        fps = item.sample_fps or DEFAULT_LIST_FPS
        count = len(item.frames) + len(item.frames) % 2
        media = dataclasses.replace(
            first,
            media_type="video",
            content_version=digest(*versions),
            size_bytes=None,
            container="frames",
            begin_seconds=0.0,
            duration_seconds=len(item.frames) / fps,
            average_fps=fps,
            num_frames=len(item.frames),
            is_vfr=False,
        )
        size = video_size(count, media.height, media.width, self.budget, item.settings)
        sampling = dataclasses.replace(
            _sampling(size, count),
            start_seconds=0.0,
            end_seconds=len(item.frames) / fps,
            sample_fps=fps,
        )
        pts = [min(k, len(item.frames) - 1) / fps for k in range(count)]
        return Chosen(media=media, sampling=sampling, pts_seconds=pts)


def planned_pts(
    times: list[float],
    least: float,
    displayed_pts: Callable[[float], float],
    origin_seconds: float = 0.0,
) -> list[float]:
    """Frame times from which the prompt's length follows exactly.

    times: the planned sample times, an even number; a frame's PTS is at or before its sample time.
    least: a time that none of the frames is before.
    displayed_pts: the exact PTS of the frame on display at a time; may have to read packets.
    origin_seconds: what the times in the prompt count from.

    A timestamp's length changes only where it gains a digit (10.0 s, 100.0 s, ...). Away from
    there the sample time stands for the PTS; near there the exact PTS is taken.
    """
    pts = list(times)

    def told(k: int) -> float:
        return pair_seconds([t - origin_seconds for t in pts[k : k + 2]])[0]

    before = max(least - origin_seconds, 0.0)
    for k in range(0, len(pts), 2):
        if num_digits(told(k) + 1e-5) > num_digits(before):
            pts[k : k + 2] = [displayed_pts(t) for t in times[k : k + 2]]
        before = told(k)
    return pts


def _sampling(size: Size, count: int) -> Sampling:
    return Sampling(
        num_frames=count,
        resized_height=size.resized_height,
        resized_width=size.resized_width,
        grid_thw=size.grid_thw,
        num_vision_tokens=size.num_tokens,
    )


def digest(*parts: str | None) -> str:
    """Hash of texts, for an id."""
    return hashlib.sha256("\x1f".join(part or "" for part in parts).encode()).hexdigest()[:24]
