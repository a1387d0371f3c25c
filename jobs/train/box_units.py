"""Choose the unit of a data set's boxes, pixels or 0..1000, and report wrong boxes."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jobs.train.check_report import DataSet
from pipeline.training.check import AnswerBoxes
from schemas.conversation import DataProblem, ProblemType

BoxUnit = Literal["auto", "normalised", "pixels"]
"""Unit of boxes in answers: 0..1000 of the media's sides, or pixels; auto: chosen from the data."""


def add_problems(data: DataSet, unit: BoxUnit, *, will_fix: bool) -> DataSet:
    """Add the problems of samples and of boxes to those from reading, in the order of the rows.

    will_fix: boxes in pixels that can be converted are not a problem.
    """
    found = [p for checked in data.checked for p in checked.problems]
    problems = list(dict.fromkeys(data.problems + found))  # samples of one row repeat them
    boxes = [b for checked in data.checked for b in checked.boxes]
    if data.spec.annotations is not None:
        unit, note = "normalised", None  # the pipeline wrote these answers, in 0..1000
    else:
        unit, note = choose_unit(boxes, unit)
    bad = {problem.origin for problem in problems}
    sizes = {}
    for b in boxes:
        fault = b.fault_1000
        if unit == "pixels":
            fault = b.fault_pixels
            if b.width is None or b.height is None:
                fault = None if b.origin in bad else fault  # the reason is reported already
            elif fault is None:
                sizes[b.origin] = (b.width, b.height)
                fault = f"in pixels of {b.width} x {b.height}, not in 0..1000: --fix converts it"
                fault = None if will_fix else fault
        if fault is not None:
            problems.append(DataProblem(origin=b.origin, type=ProblemType.BAD_BOX, message=fault))
    order = {example.origin: k for k, example in enumerate(data.examples)}
    problems.sort(key=lambda problem: order[problem.origin])
    return dataclasses.replace(data, problems=problems, sizes=sizes, note=note)


def choose_unit(boxes: Sequence[AnswerBoxes], requested: BoxUnit) -> tuple[BoxUnit, str | None]:
    """Choose the unit of a data set's boxes.

    Returns the unit, and a note for the user if the choice is uncertain.
    """
    if requested != "auto":
        return requested, None
    sized = [b for b in boxes if b.width is not None]
    over = sum(b.is_over_1000 for b in sized)
    outside = sum(not b.is_inside for b in sized)
    if over:
        seen = f"in {over:,} of {len(sized):,} conversations with boxes some are over 1000"
        if not outside:
            return "pixels", (
                f"boxes are taken to be in pixels: {seen}, and all lie within their pictures; if "
                "that is wrong, use --boxes normalised"
            )
        return "normalised", (
            f"boxes are taken to be in 0..1000: {seen}, but in {outside:,} some lie beyond their "
            "pictures; if most are in pixels, use --boxes pixels"
        )
    if not outside and any(min(b.width or 0, b.height or 0) < 1000 for b in sized):
        return "normalised", (
            "boxes are taken to be in 0..1000, but all lie within their pictures of fewer pixels: "
            "check some of them, and use --boxes pixels if they are in pixels"
        )
    return "normalised", None
