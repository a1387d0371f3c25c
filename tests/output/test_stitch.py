"""Events of neighbouring units become one list."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.output.stitch import UnitEvents, stitch

STEP = 0.5


def event(start: float, end: float, caption: str = "a red square appears") -> dict:
    return {"start_seconds": start, "end_seconds": end, "caption": caption}


def seen(start: float, end: float, *events: dict) -> UnitEvents:
    return UnitEvents(start_seconds=start, end_seconds=end, step_seconds=STEP, events=events)


def test_an_event_across_touching_windows_is_one():
    units = [seen(0, 10, event(7, 10)), seen(10, 20, event(10, 13))]
    assert stitch(units) == [event(7, 13)]


def test_an_event_in_the_overlap_is_one():
    units = [seen(0, 10, event(8.5, 9.5)), seen(8, 18, event(8.5, 9.5))]
    assert stitch(units) == [event(8.5, 9.5)]


def test_an_event_that_the_first_window_cuts_ends_where_the_second_says():
    units = [seen(0, 10, event(8.75, 10)), seen(8, 18, event(8.75, 14))]
    assert stitch(units) == [event(8.75, 14)]


def test_of_what_several_windows_saw_the_median_counts():
    """Each saw the begin and the end; the borders of none lie near them."""
    times_of_units = [(3.0, 5.0), (3.5, 5.5), (4.0, 5.25)]
    units = [seen(k, k + 10, event(*times)) for k, times in enumerate(times_of_units)]
    assert stitch(units) == [event(3.5, 5.25)]


def test_an_event_that_no_window_saw_begin_begins_where_the_first_says():
    units = [seen(0, 10, event(0, 10)), seen(8, 18, event(8, 14))]
    assert stitch(units) == [event(0, 14)]


def test_an_event_over_many_windows_is_one():
    units = [seen(k, k + 10, event(max(3, k), min(37, k + 10))) for k in range(0, 40, 8)]
    assert stitch(units) == [event(3, 37)]


def test_unlike_captions_stay_apart():
    units = [
        seen(0, 10, event(7, 10, "a red square appears")),
        seen(10, 20, event(10, 13, "the word KESTREL is shown")),
    ]
    assert len(stitch(units)) == 2


def test_two_alike_events_that_both_windows_saw_whole_stay_two():
    units = [
        seen(0, 10, event(4, 5), event(8.2, 8.7)),
        seen(7, 17, event(8.2, 8.7), event(12, 13)),
    ]
    assert stitch(units) == [event(4, 5), event(8.2, 8.7), event(12, 13)]


def test_alike_events_on_both_sides_of_a_border_that_do_not_reach_it_stay_two():
    units = [seen(0, 10, event(4, 6)), seen(10, 20, event(14, 16))]
    assert stitch(units) == [event(4, 6), event(14, 16)]


def test_nothing_is_joined_over_what_no_unit_saw():
    units = [seen(0, 10, event(7, 10)), seen(20, 30, event(20, 23))]
    assert stitch(units) == [event(7, 10), event(20, 23)]


def test_the_caption_is_that_of_the_unit_which_saw_most():
    units = [
        seen(0, 10, event(9, 10, "a red square")),
        seen(8, 18, event(9, 17, "a red square moves")),
    ]
    assert [e["caption"] for e in stitch(units)] == ["a red square moves"]


@given(
    st.lists(st.tuples(st.integers(0, 1900), st.integers(11, 400)), max_size=12),
    st.integers(40, 200),
    st.integers(12, 20),
)
def test_windows_of_a_truthful_model_give_back_what_happened(pairs, length, overlap):
    """Whatever the windows: each event once, at its own times. Captions tell events apart."""
    truth = [event(s / 10, (s + n) / 10, f"thing{k} appears{k}") for k, (s, n) in enumerate(pairs)]
    units = []
    for start in range(0, 2400, length - overlap):
        begin, end = start / 10, (start + length) / 10
        reported = [
            event(max(e["start_seconds"], begin), min(e["end_seconds"], end), e["caption"])
            for e in truth
            if e["start_seconds"] < end - STEP and e["end_seconds"] > begin + STEP
        ]
        units.append(seen(begin, end, *reported))
    expected = sorted(truth, key=lambda e: (e["start_seconds"], e["end_seconds"]))
    got = stitch(units)
    assert [e["caption"] for e in got] == [e["caption"] for e in expected]
    for one, other in zip(got, expected, strict=True):
        assert abs(one["start_seconds"] - other["start_seconds"]) <= STEP
        assert abs(one["end_seconds"] - other["end_seconds"]) <= STEP
