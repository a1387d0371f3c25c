"""``reelscribe scan``: list the media of a folder or prefix, and write them as a manifest."""

from collections.abc import Sequence

from rich.console import Console
from rich.filesize import decimal

from jobs.console.progress import print_summary
from pipeline.manifest.listing import FoundMedia, LeftOut, as_items, list_media
from pipeline.manifest.write import check_extension, write_manifest
from pipeline.storage.storage import Storage
from schemas.tables.manifest import MEDIA_TYPES


def run(
    prefix: str, glob: str, output: str | None, storage: Storage, console: Console
) -> list[FoundMedia]:
    """List media, and print their number and size, and what was left out.

    output: where to write a manifest; None: nowhere. Its columns are ``uri``, ``media_type`` and
        ``content_version``. Any further column would become an attribute of every output row.

    Raises:
        UserError: no media were found, or the storage or the output does not work.
    """
    if output:
        check_extension(output)
    left_out = LeftOut()
    found = list_media(prefix, glob, storage, left_out)
    rows = [
        (f"{kind}s", _count([m for m in found if m.media_type == kind])) for kind in MEDIA_TYPES
    ]
    rows += [("left out", line) for line in left_out.lines()]
    empty = sum(1 for media in found if not media.size_bytes)
    if empty:
        rows.append(("empty", f"{empty:,} of them have no bytes and will be error rows"))
    if output:
        write_manifest(as_items(found), output, storage)
        rows.append(("manifest", output))
    print_summary(console, f"{len(found):,} media below {prefix}", rows)
    return found


def _count(media: Sequence[FoundMedia]) -> str:
    return f"{len(media):,}, {decimal(sum(m.size_bytes for m in media))}"
