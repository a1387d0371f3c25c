"""Remove signatures and passwords of urls from the plan file; restore them from the manifest."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.manifest.messages import split_messages
from pipeline.output.table import ids_in
from schemas.shown import redact_uri
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT

_ROWS = 16384


def remove_secrets(plan: pa.Table) -> pa.Table:
    """Return the plan for the file: UNIT rows whose uris have no secrets."""
    # In pieces: the uris of a million units as Python objects would take as much as the plan.
    pieces = [plan.slice(k, _ROWS) for k in range(0, plan.num_rows, _ROWS)] or [plan]
    return pa.concat_tables(
        _with_uris(piece, [[_public(uri) for uri in uris] for uris in _uris(piece)])
        for piece in pieces
    )


def restore_secrets(plan: pa.Table, items: Iterable[MediaItem]) -> pa.Table:
    """Return the plan to run, with the secrets that ``remove_secrets`` removed.

    items: the present manifest's. Uris are matched by ``media_id`` and position: without their
        queries, uris of different media may be equal.
    """
    secret = {}
    for item in items:
        uris = _uris_of(item)
        if any(_public(uri) != uri for uri in uris):
            secret[item.media_id] = uris
    if not secret:
        return plan
    restored = []
    for media_id, uris in zip(ids_in(plan, "media_id"), _uris(plan), strict=True):
        signed = secret.get(media_id, [])
        restored.append(signed if [_public(uri) for uri in signed] == uris else uris)
    return _with_uris(plan, restored)


def _public(uri: str) -> str:
    return uri if uri.startswith("data:") else redact_uri(uri)


def _uris_of(item: MediaItem) -> list[str]:
    """All uris of an item, in the order of ``_uris``."""
    uris = [item.uri, *item.frames]
    for part in split_messages(item.messages)[1] if item.messages is not None else ():
        uris += [part.uri, *part.frames]
    return uris


def _uris(plan: pa.Table) -> Iterator[list[str]]:
    """All uris of each unit: its own, those of its frames, then those of its parts."""
    columns = (plan[name].to_pylist() for name in ("uri", "frames", "parts"))
    for uri, frames, parts in zip(*columns, strict=True):
        uris = [uri, *(frames or ())]
        for part in parts or ():
            uris += [part["uri"], *(part["frames"] or ())]
        yield uris


def _with_uris(plan: pa.Table, uris: list[list[str]]) -> pa.Table:
    """The plan with these uris in place of its own."""
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
