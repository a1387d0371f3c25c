"""Stretches of a video, and how many frames of each are seen."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.segment import num_frames, segment_spans
from schemas.errors import UnitError
from schemas.job.sampling import SamplingSpec, Segmentation
from schemas.tables.media import Media


def video(seconds: float, begin: float = 0.0) -> Media:
    return Media(
        media_type="video",
        width=640,
        height=360,
        begin_seconds=begin,
        duration_seconds=seconds,
        average_fps=25.0,
    )


def windows(seconds: float = 60, min_seconds: float = 2) -> SamplingSpec:
    return SamplingSpec(
        segmentation=Segmentation(kind="window", seconds=seconds, min_seconds=min_seconds)
    )


def test_a_short_video_is_one_unit():
    assert segment_spans(video(12), None, None, windows()) == [(0.0, 12.0)]


def test_a_long_video_is_cut_and_the_rest_is_a_unit_of_its_own():
    assert segment_spans(video(130), None, None, windows()) == [(0, 60), (60, 120), (120, 130)]


def test_a_last_bit_joins_the_window_before_it():
    assert segment_spans(video(121.5), None, None, windows()) == [(0, 60), (60, 121.5)]


@given(
    seconds=st.floats(0.1, 4000),
    begin=st.floats(0, 100),
    length=st.floats(1, 90),
    share=st.floats(0, 0.5),
    min_seconds=st.floats(0, 5),
    shots=st.sets(st.integers(0, 400_000), max_size=8).map(lambda ms: sorted(t / 100 for t in ms)),
)
def test_windows_that_overlap_leave_nothing_out(seconds, begin, length, share, min_seconds, shots):
    cut = Segmentation(
        kind="shots", seconds=length, overlap_seconds=share * length, min_seconds=min_seconds
    )
    found = segment_spans(video(seconds, begin), None, None, SamplingSpec(segmentation=cut), shots)
    assert (found[0][0], found[-1][1]) == (begin, pytest.approx(begin + seconds))
    for (start, end), (later, _) in pairwise(found):
        assert start < later <= end  # no gap
        overlap = end - later
        assert overlap == pytest.approx(share * length, abs=1e-6) or overlap == 0.0
        assert overlap == 0.0 or later not in shots or share == 0
    assert all(
        end - start <= length + min_seconds + 1e-6 for start, end in found if len(shots) == 0
    )


def test_windows_may_not_overlap_by_more_than_half():
    with pytest.raises(ValueError, match="over half of seconds 10"):
        Segmentation(seconds=10, overlap_seconds=5.5)


def test_exactly_two_windows_are_two():
    assert segment_spans(video(120), None, None, windows()) == [(0, 60), (60, 120)]


def test_times_start_where_the_video_starts():
    assert segment_spans(video(70, begin=600), None, None, windows()) == [(600, 660), (660, 670)]


def test_the_manifests_span_is_cut_to_what_is_there():
    assert segment_spans(video(50), 10, 999, windows()) == [(10, 50)]


def test_a_span_beyond_the_video_says_where_the_video_is():
    message = r"requests 60\.000 to 70\.000 s, but the video runs from 0\.000 to 50\.000 s"
    with pytest.raises(UnitError, match=message):
        segment_spans(video(50), 60, 70, windows())


@given(
    seconds=st.floats(0.01, 20_000),
    begin=st.floats(0, 1000),
    length=st.floats(1, 600),
    min_seconds=st.floats(0, 10),
)
def test_windows_cover_all_once(seconds: float, begin: float, length: float, min_seconds: float):
    spans = segment_spans(video(seconds, begin), None, None, windows(length, min_seconds))
    assert spans[0][0] == begin
    assert spans[-1][1] == begin + seconds
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(start < end for start, end in spans)
    assert all(end - start <= length + min_seconds + 1e-6 for start, end in spans)


@pytest.mark.parametrize(
    ("seconds", "fps", "spec", "expected"),
    [
        (10.0, 25.0, SamplingSpec(), 20),  # 2 fps
        (10.3, 25.0, SamplingSpec(), 20),  # down to an even number
        (1.0, 25.0, SamplingSpec(), 4),  # min_frames
        (0.04, 25.0, SamplingSpec(), 2),  # one frame, shown twice
        (3600.0, 25.0, SamplingSpec(), 768),  # max_frames
        (10.0, 1.0, SamplingSpec(), 10),  # no more than there are
        (10.0, None, SamplingSpec(), 20),  # unknown frame rate
        (10.0, 25.0, SamplingSpec(num_frames=7), 8),
        (60.0, 25.0, SamplingSpec(fps=0.5), 30),
        (1.0, 25.0, SamplingSpec(min_frames=5), 6),  # an even number of them
    ],
)
def test_number_of_frames(seconds: float, fps: float | None, spec: SamplingSpec, expected: int):
    assert num_frames(0.0, seconds, fps, spec) == expected
