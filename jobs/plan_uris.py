"""Keep signatures and passwords of urls out of the plan's file; the manifest has them."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipeline.read_messages import split_messages
from pipeline.storage import shown
from schemas.manifest import MediaItem
from schemas.unit import UNIT


def without_secrets(plan: pa.Table, items: Iterable[MediaItem]) -> pa.Table:
    """The plan as it is written: UNIT rows whose uris show no secret."""
    return _replaced(plan, {media: set(uris) for media, uris in _secret(items).items()}, shown)


def with_secrets(plan: pa.Table, items: Iterable[MediaItem]) -> pa.Table:
    """The plan as it is run: what ``without_secrets`` took out, from the manifest of now."""
    secret = _secret(items)
    found = {shown(uri): uri for uris in secret.values() for uri in uris}
    return _replaced(plan, {m: set(map(shown, uris)) for m, uris in secret.items()}, found.get)


def _secret(items: Iterable[MediaItem]) -> dict[str, list[str]]:
    """The uris of each item that have secrets; items without any are left out."""
    found = {}
    for item in items:
        uris = [item.uri, *item.frames]
        for part in split_messages(item.messages)[1] if item.messages is not None else ():
            uris += [part.uri, *part.frames]
        if secret := [uri for uri in uris if not uri.startswith("data:") and shown(uri) != uri]:
            found[item.media_id] = secret
    return found


def _replaced(plan: pa.Table, uris: dict[str, set[str]], replace: Any) -> pa.Table:
    if not uris:
        return plan
    rows = plan.to_pylist()
    for row in rows:
        mine = uris.get(row["media_id"], set())
        for part in (row, *(row["parts"] or ())):
            part["uri"] = replace(part["uri"]) if part["uri"] in mine else part["uri"]
            part["frames"] = [replace(u) if u in mine else u for u in part["frames"] or ()]
    return pa.Table.from_pylist(rows, schema=UNIT)
