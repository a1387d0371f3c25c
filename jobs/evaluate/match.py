"""Find the annotation row of each gold row: the same media, and the same time span."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluate.gold import GoldRow
from jobs.results.read import Annotations, Row
from pipeline.manifest.formats.rows import Problems
from schemas.errors import UserError
from schemas.tables.unit import UnitStatus
from schemas.task import AnswerStatus

NEAR_SECONDS = 0.1
"""Maximum distance of gold's span from the unit's, at its start and at its end."""

NO_ROW = "no_row"
NOT_ASKED = "not_asked"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A gold row, and the annotation row of its unit; None if there is none."""

    gold: GoldRow
    row: Row | None


def match_rows(gold: Sequence[GoldRow], table: Annotations, name: str) -> list[Pair]:
    """Match by media_id, else by uri, and by the time span where gold has one.

    name: of gold, for messages. Returns a pair for each gold row, sorted by media: average
    precision depends on the order of equal scores, which must not be that of gold's file.

    Raises:
        UserError: no row has a match, a match is ambiguous, or two rows judge the same answer.
    """
    by_id: dict[str | None, list[Row]] = defaultdict(list)
    by_uri: dict[str | None, list[Row]] = defaultdict(list)
    for unit in table.rows:
        by_id[unit["media_id"]].append(unit)
        by_uri[unit["uri"]].append(unit)
    pairs: list[Pair] = []
    problems = Problems(name)
    judged: dict[tuple[str, str], str] = {}
    for of in gold:
        units = by_uri[of.uri] if of.media_id is None else by_id[of.media_id]
        if len(units) > 1 and of.start_seconds is None and of.end_seconds is None:
            problems.add(
                of.place,
                f"{of.media_id or of.uri} has {len(units)} units: give start_seconds and "
                f"end_seconds of one of them: {_spans(units)}",
            )
            continue
        near = [(_distance(of, row), number) for number, row in enumerate(units)]
        distance, number = min(near, default=(math.inf, 0))
        row = units[number] if distance <= NEAR_SECONDS else None
        span = (of.start_seconds, of.end_seconds)
        unit_id = row["unit_id"] if row else f"{of.media_id or of.uri} {span}"
        firsts = {judged.setdefault((unit_id, task), of.place) for task in of.answers}
        for first in firsts - {of.place}:
            problems.add(of.place, f"judges the same answer as {first}; keep one of them")
        pairs.append(Pair(gold=of, row=row))
    problems.check(len(pairs))
    if not any(pair.row for pair in pairs):
        raise UserError(_no_match(gold, table, name))
    return sorted(pairs, key=_order)


def answer_state(row: Row | None, task: str) -> str:
    """Return the answer's status: an AnswerStatus, NO_ROW or NOT_ASKED."""
    if row is None:
        return NO_ROW
    if row["status"] == UnitStatus.FAILED:
        return AnswerStatus.FAILED
    if row.get("responses") is None:  # a table that another tool wrote
        return AnswerStatus.UNPARSED if row.get(task) is None else AnswerStatus.OK
    states = [answer["status"] for answer in row["responses"] if answer["task"] == task]
    return states[0] if states else NOT_ASKED


def _distance(gold: GoldRow, row: Row) -> float:
    """Return the seconds between gold's span and the unit's; 0 where either has none.

    Gold's span is first clipped to the media, as the plan clips the manifest's.
    """
    sampling, media = row["sampling"] or {}, row["media"] or {}
    start, end = sampling.get("start_seconds"), sampling.get("end_seconds")
    if start is None or end is None:
        return 0.0
    begin = media.get("begin_seconds") or 0.0
    stop = begin + (media.get("duration_seconds") or math.inf)
    distances = [0.0]
    if gold.start_seconds is not None:
        distances.append(abs(max(gold.start_seconds, begin) - start))
    if gold.end_seconds is not None:
        distances.append(abs(min(gold.end_seconds, stop) - end))
    return max(distances)


def _spans(units: Sequence[Row], max_spans: int = 4) -> str:
    found = sorted(
        (s["start_seconds"], s["end_seconds"])
        for s in (row["sampling"] or {} for row in units)
        if s.get("end_seconds") is not None
    )
    more = ", ..." if len(found) > max_spans else ""
    return ", ".join(f"{start:.3f} to {end:.3f} s" for start, end in found[:max_spans]) + more


def _no_match(gold: Sequence[GoldRow], table: Annotations, name: str) -> str:
    first = gold[0]
    is_by_id = first.media_id is not None
    if table.rows:  # the media match, the spans do not
        units = [row for row in table.rows if row["media_id"] == table.rows[0]["media_id"]]
        return (
            f"no row of {name} has the time span of a unit, such as {_spans(units)} of "
            f"{units[0]['media_id'] if is_by_id else units[0]['uri']}; "
            f"{first.place} has {first.start_seconds} to {first.end_seconds} s"
        )
    ours = [repr(row.media_id if is_by_id else row.uri) for row in gold[:3]]
    theirs = [repr(media_id if is_by_id else uri) for media_id, uri in table.examples]
    return (
        f"no row of {name} is of media in the annotations: its {'media_id' if is_by_id else 'uri'} "
        f"is {', '.join(ours)}, ...; theirs are {', '.join(theirs)}, ..."
    )


def _order(pair: Pair) -> tuple[Any, ...]:
    gold = pair.gold
    return gold.media_id or "", gold.uri or "", gold.start_seconds or 0.0, gold.place
