"""Keep signatures and passwords of urls out of the plan's file; the manifest has them."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.read_messages import split_messages
from pipeline.storage import shown
from schemas.manifest import MediaItem
from schemas.unit import UNIT

_ROWS = 16384


def without_secrets(plan: pa.Table) -> pa.Table:
    """The plan as it is written: UNIT rows whose uris show no secret."""
    # In pieces: as Python's objects, the uris of a million units would take as much as the plan.
    pieces = [plan.slice(k, _ROWS) for k in range(0, plan.num_rows, _ROWS)] or [plan]
    return pa.concat_tables(_without_secrets(piece) for piece in pieces)


def _without_secrets(plan: pa.Table) -> pa.Table:
    return _with_uris(plan, [[_public(uri) for uri in uris] for uris in _uris(plan)])


def with_secrets(plan: pa.Table, items: Iterable[MediaItem]) -> pa.Table:
    """The plan as it is run: what ``without_secrets`` took out, from the manifest of now.

    By media_id and place: without their queries, uris of different media may be the same.
    """
    secret = {}
    for item in items:
        uris = _uris_of(item)
        if any(_public(uri) != uri for uri in uris):
            secret[item.media_id] = uris
    if not secret:
        return plan
    found = []
    for media_id, uris in zip(plan["media_id"].to_pylist(), _uris(plan), strict=True):
        mine = secret.get(media_id, [])
        found.append(mine if [_public(uri) for uri in mine] == uris else uris)
    return _with_uris(plan, found)


def _public(uri: str) -> str:
    return uri if uri.startswith("data:") else shown(uri)


def _uris_of(item: MediaItem) -> list[str]:
    """All uris of an item, in the order of ``_uris``."""
    uris = [item.uri, *item.frames]
    for part in split_messages(item.messages)[1] if item.messages is not None else ():
        uris += [part.uri, *part.frames]
    return uris


def _uris(plan: pa.Table) -> Iterator[list[str]]:
    """All uris of each unit: its own, those of its frames, and of its parts."""
    columns = (plan[name].to_pylist() for name in ("uri", "frames", "parts"))
    for uri, frames, parts in zip(*columns, strict=True):
        uris = [uri, *(frames or ())]
        for part in parts or ():
            uris += [part["uri"], *(part["frames"] or ())]
        yield uris


def _with_uris(plan: pa.Table, uris: list[list[str]]) -> pa.Table:
    """The plan with these uris in the places of its own."""
    if uris == list(_uris(plan)):
        return plan
    columns: dict[str, list[object]] = {"uri": [], "frames": [], "parts": []}
    rows = zip(uris, plan["frames"].to_pylist(), plan["parts"].to_pylist(), strict=True)
    for row, frames, parts in rows:
        rest = iter(row)
        columns["uri"].append(next(rest))
        columns["frames"].append([next(rest) for _ in frames or ()])
        columns["parts"].append(
            [
                part | {"uri": next(rest), "frames": [next(rest) for _ in part["frames"] or ()]}
                for part in parts or ()
            ]
        )
    for name, values in columns.items():
        field = UNIT.field(name)
        at = plan.schema.get_field_index(name)
        plan = plan.set_column(at, field, pa.array(values, field.type))
    return plan
