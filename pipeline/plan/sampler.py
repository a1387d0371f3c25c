"""Choose what the model sees of a media item: its time spans, and their frames' times and sizes.

The sizes follow from the header. The times follow from the header's index or, if there is none,
from the packets around the few times at which a timestamp gains a digit. So the prompt length is
exact without decoding; only finding shots decodes frames.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.media.container import open_video
from pipeline.media.probe import VideoProbe, probe_image
from pipeline.media.shots import shot_starts
from pipeline.media.timestamps import num_characters, pair_seconds
from pipeline.model.frame_size import Size, image_size, video_size
from pipeline.model.prompter import Vision
from pipeline.plan.segment import num_frames, segment_spans
from pipeline.storage.ids import digest
from pipeline.storage.media_file import MediaFile
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, UnitError
from schemas.job.sampling import Budget, SamplingSpec
from schemas.tables.manifest import MediaItem, guess_media_type
from schemas.tables.media import Media, Part, Sampling

DEFAULT_LIST_FPS = 2.0
"""Frames per second of a frame list without ``sample_fps``, as in the model's reference code."""


@dataclass(frozen=True, kw_only=True)
class SampledMedia:
    """What the model will see of an image, a time span of a video, or a frame list.

    pts_seconds: planned frame times, as ``planned_pts`` returns them; empty for an image.
    span: start and end in seconds of a video's time span; None for images and frame lists.
    """

    media: Media
    sampling: Sampling
    pts_seconds: Sequence[float] = ()
    span: tuple[float, float] | None = None

    @property
    def vision(self) -> Vision:
        """The vision part of the prompt."""
        return Vision.of(self.media.media_type, self.sampling, self.pts_seconds)


@dataclass(frozen=True, kw_only=True)
class FrameSampler:
    """Probes media items by range requests. Small and picklable, so that a child can run it.

    max_units: of one item.
    """

    budget: Budget
    storage: Storage
    max_units: int

    def choose_each(
        self, items: Sequence[MediaItem], sampling: SamplingSpec
    ) -> list[list[SampledMedia] | UnitError]:
        """Probe items that share one image, video or frame list; its header is read once.

        Returns for each item one element, or one for each time span that a video is cut into; or
        the error of an item that asks for what its media does not have.

        Raises:
            UnitError: the media cannot be read.
        """
        first = items[0]
        if first.frames:
            return [_attempt(partial(self._frame_list, item)) for item in items]
        media_type = first.media_type or guess_media_type(first.uri)
        with self.storage.open_media(first.uri, header_only=True) as file:
            if file.size_bytes == 0:
                raise UnitError(ErrorType.MEDIA_UNREADABLE, "the file is empty")
            if media_type == "video":
                return self._video(items, file, sampling)
            try:
                media = probe_image(file)
            except UnitError as no_image:
                if media_type == "image":
                    raise
                try:
                    return self._video(items, file, sampling)
                except UnitError:
                    if no_image.error_type == ErrorType.MEDIA_UNSUPPORTED:
                        raise no_image from None  # it names the format
                    raise
            return [_attempt(partial(self._image, item, media)) for item in items]

    def _image(self, item: MediaItem, media: Media) -> list[SampledMedia]:
        if item.start_seconds is not None or item.end_seconds is not None:
            raise UnitError(ErrorType.BAD_REQUEST, "an image has no start_seconds or end_seconds")
        media = dataclasses.replace(media, intrinsics=item.intrinsics)
        size = image_size(media.height, media.width, self.budget, item.settings)
        return [SampledMedia(media=media, sampling=_sampling(size, 1))]

    def _video(
        self, items: Sequence[MediaItem], file: MediaFile, sampling: SamplingSpec
    ) -> list[list[SampledMedia] | UnitError]:
        segmentation, shots = sampling.segmentation, []
        if segmentation.kind == "shots":
            shots = shot_starts(file, segmentation.shot_threshold)
        with open_video(file) as (container, stream):
            probe = VideoProbe(file, container, stream)
            spans = partial(self._spans, probe=probe, sampling=sampling, shots=shots)
            return [_attempt(partial(spans, item)) for item in items]

    def _spans(
        self, item: MediaItem, probe: VideoProbe, sampling: SamplingSpec, shots: Sequence[float]
    ) -> list[SampledMedia]:
        """Plan the time spans into which a video, or the part that an item requests, is cut."""
        spans = segment_spans(
            probe.media, item.start_seconds, item.end_seconds, sampling, shots, self.max_units
        )
        found: list[SampledMedia] = []
        pairs = [(-math.inf, probe.media.begin_seconds or 0.0)]
        for start, end in spans:
            # Spans may overlap: take the previous span's latest pair at or before `start`.
            min_pts_seconds = max(pts for time, pts in pairs if time <= start)
            planned = self._span(item, probe, sampling, (start, end), min_pts_seconds)
            sample_times = planned.sampling.times_seconds()[1::2]
            pair_pts = zip(sample_times, pair_seconds(planned.pts_seconds), strict=True)
            pairs = [(-math.inf, min_pts_seconds), *pair_pts]
            found.append(planned)
        return found

    def _span(
        self,
        item: MediaItem,
        probe: VideoProbe,
        spec: SamplingSpec,
        span: tuple[float, float],
        min_pts_seconds: float,
    ) -> SampledMedia:
        """Plan a time span. min_pts_seconds: no frame of the span has an earlier PTS."""
        media, (start, end) = probe.media, span
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
        pts = planned_pts(times, min_pts_seconds, probe.displayed_pts, sampling.origin_seconds)
        return SampledMedia(media=media, sampling=sampling, pts_seconds=pts, span=span)

    def _frame_list(self, item: MediaItem) -> list[SampledMedia]:
        """Plan a video given as images: all are seen, the last one twice if their number is odd."""
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
        return [SampledMedia(media=media, sampling=sampling, pts_seconds=pts)]


def planned_pts(
    times: list[float],
    min_pts_seconds: float,
    displayed_pts: Callable[[float], float],
    origin_seconds: float = 0.0,
) -> list[float]:
    """Return frame times that give the exact prompt length.

    times: the sample times, an even number, in seconds. A frame's PTS is at or before its sample
        time.
    min_pts_seconds: no frame has an earlier PTS.
    displayed_pts: returns the exact PTS of the frame on display at a time; may read packets.
    origin_seconds: the zero of the times in the prompt.

    A timestamp in the prompt changes its length only where it gains a digit (10.0 s, 100.0 s, ...).
    The exact PTS is read only there; elsewhere the sample time is returned.
    """
    pts = list(times)

    def prompt_seconds(k: int) -> float:
        return pair_seconds([t - origin_seconds for t in pts[k : k + 2]])[0]

    before = max(min_pts_seconds - origin_seconds, 0.0)
    for k in range(0, len(pts), 2):
        if num_characters(prompt_seconds(k) + 1e-5) > num_characters(before):
            pts[k : k + 2] = [displayed_pts(t) for t in times[k : k + 2]]
        before = prompt_seconds(k)
    return pts


def exact_pts(video: Part, storage: Storage) -> list[float]:
    """Return the frame times of a planned video as ``planned_pts`` does; reads its header again.

    Raises:
        UnitError: the media cannot be read.
    """
    with storage.open_media(video.uri, header_only=True) as file, open_video(file) as opened:
        probe = VideoProbe(file, *opened)
        begin = max(video.media.begin_seconds or 0.0, 0.0)
        return planned_pts(video.sampling.times_seconds(), begin, probe.displayed_pts)


def _attempt(choose: Callable[[], list[SampledMedia]]) -> list[SampledMedia] | UnitError:
    """Return what ``choose`` returns, or the UnitError that it raises."""
    try:
        return choose()
    except UnitError as error:
        return error


def _sampling(size: Size, count: int) -> Sampling:
    return Sampling(
        num_frames=count,
        resized_height=size.resized_height,
        resized_width=size.resized_width,
        grid_thw=size.grid_thw,
        num_vision_tokens=size.num_tokens,
    )
