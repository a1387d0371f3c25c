"""Decode the frames that the model saw again, as planned, and lay them out on a sheet."""

import io
import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jobs.results.read import Selection, output_and_run
from pipeline.media.frames import Pixels
from pipeline.output.run_file import read_run_file, run_folder
from pipeline.plan.plan_file import plan_files
from pipeline.storage.parquet import read_parquet
from pipeline.storage.storage import Storage
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.errors import ErrorType, StorageError, UnitError
from schemas.job.resources import DecodeLimits
from schemas.tables.columns import from_row
from schemas.tables.media import Part

_NEAR_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Some frames as one picture, row by row.

    content: WebP. columns, cell_width, cell_height: its layout, in pixels.
    frames: the number of each frame, from 0, among those that the model saw.
    """

    content: bytes
    columns: int
    cell_width: int
    cell_height: int
    frames: tuple[int, ...]


def planned_sources(
    selection: Selection, run_ids: Collection[str], storage: Storage
) -> dict[str, dict[str, Any]]:
    """Read the sources of each unit from the plans of runs: unit id -> ``uri, frames, parts``.

    A row does not name the files of a list of frames. Runs without a plan file are left out.
    """
    output, _ = output_and_run(selection.uri)
    found: dict[str, dict[str, Any]] = {}
    columns = ["unit_id", "uri", "frames", "parts.list.element.uri", "parts.list.element.frames"]
    for run_id in run_ids:
        with suppress(FileNotFoundError, StorageError):
            for uri in plan_files(run_folder(output, run_id), storage):
                plan = read_parquet(uri, storage, columns)
                found |= {
                    row["unit_id"]: selection.media_roots.move_sources(row)
                    for row in plan.to_pylist()
                }
    return found


def seen_parts(row: dict[str, Any], planned: dict[str, Any] | None) -> list[Part]:
    """Return a row's image or video, or those of its conversation, as the model saw them.

    planned: as in ``planned_sources``. Empty if the media could not be read or decoded: what broke
        a decoder once is not decoded again.
    """
    if (row.get("error") or {}).get("stage") in ("plan", "decode"):
        return []
    if row.get("media") and row.get("sampling"):
        source = {k: planned[k] for k in ("uri", "frames")} if planned else {}
        return [from_row(row | source, Part)]
    parts = row.get("parts") or []
    sources = (planned or {}).get("parts") or [{}] * len(parts)
    return [
        from_row(part | source, Part)
        for part, source in zip(parts, sources, strict=False)
        if part["media"] and part["sampling"]
    ]


def run_decoder(
    selection: Selection, run_ids: Collection[str], storage: Storage, num_children: int = 1
) -> IsolatedDecoder:
    """Return what decodes the media of these runs again, under the limits that the runs had.

    Of several runs, the largest limits; the defaults for runs without a ``run.json``.
    """
    output, _ = output_and_run(selection.uri)
    names = set(DecodeLimits.model_fields)
    found: list[dict[str, float]] = []
    for run_id in run_ids:
        try:
            content = read_run_file(output, run_id, storage)
            given = {name: content["job"]["resources"][name] for name in names}
            found.append(DecodeLimits.model_validate(given).model_dump())
        except (FileNotFoundError, StorageError, ValueError, KeyError, TypeError):
            continue
    largest = {name: max(limits[name] for limits in found) for name in names if found}
    limits = DecodeLimits.model_validate(largest)
    return IsolatedDecoder(limits, storage, num_children=num_children, quiet=True)


def decode_again(part: Part, decoder: IsolatedDecoder) -> Pixels:
    """Decode a part as the run did: the same frames at the same size, ``uint8 [T, H, W, 3]``.

    Raises:
        UnitError: it cannot be read now, or its frames have other times than those of the run.
    """
    found = decoder.decode(part, "pyav" if part.sampling.decoder == "pyav" else "auto")
    recorded = part.sampling.pts_seconds or ()
    if len(found.pts_seconds) == len(recorded):
        offsets = np.abs(np.subtract(found.pts_seconds, recorded))
        if offsets.max(initial=0.0) <= _NEAR_SECONDS:
            return found.pixels
    raise UnitError(
        ErrorType.MEDIA_CHANGED,
        f"decoded frames at {_times(found.pts_seconds)} s, the run's were at {_times(recorded)} s",
    )


def choose_frames(
    num_frames: int, max_frames: int, pts_seconds: Sequence[float], marked: Collection[float]
) -> list[int]:
    """Choose at most ``max_frames`` of ``num_frames``: first those with marks, then evenly.

    pts_seconds: of the frames. marked: the times at which something is marked.
    """
    if num_frames <= max_frames:
        return list(range(num_frames))
    times = np.asarray(pts_seconds)
    wanted = sorted({int(np.abs(times - t).argmin()) for t in marked}) if times.size else []
    chosen = set(_evenly(wanted, max_frames))
    others = [k for k in _evenly(range(num_frames), max_frames) if k not in chosen]
    return sorted(chosen | set(_evenly(others, max_frames - len(chosen))))


def make_sheet(pixels: Pixels, frames: Sequence[int], max_side: int) -> Sheet:
    """Lay out frames, each scaled down to ``max_side`` pixels at its longer side."""
    height, width = pixels.shape[1:3]
    scale = min(1.0, max_side / max(height, width))
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    columns = math.ceil(math.sqrt(len(frames) * cell[1] / cell[0]))
    sheet = Image.new("RGB", (columns * cell[0], -(-len(frames) // columns) * cell[1]))
    for place, k in enumerate(frames):
        picture = Image.fromarray(pixels[k])
        row, column = divmod(place, columns)
        sheet.paste(
            picture if picture.size == cell else picture.resize(cell, Image.Resampling.LANCZOS),
            (column * cell[0], row * cell[1]),
        )
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=80, method=2)
    return Sheet(
        content=buffer.getvalue(),
        columns=columns,
        cell_width=cell[0],
        cell_height=cell[1],
        frames=tuple(frames),
    )


def _evenly(values: Sequence[int], num: int) -> list[int]:
    if len(values) <= num:
        return list(values)
    if num <= 0:
        return []
    step = len(values) / num
    return [values[int(k * step)] for k in range(num)]


def _times(seconds: Sequence[float]) -> str:
    shown = [f"{second:.3f}" for second in seconds[:3]]
    return ", ".join(shown + ["..."] * (len(seconds) > 3)) or "no time"
