"""``reelscribe scan``: list a folder or prefix, say what is there, write it as a manifest."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.filesize import decimal

from jobs.progress import print_summary
from pipeline.read_manifest import FoundMedia, as_items, list_media
from pipeline.storage import Storage
from pipeline.write_manifest import check_extension, write_manifest
from schemas.manifest import MEDIA_TYPES


def run(
    prefix: str, glob: str, output: str | None, storage: Storage, console: Console
) -> list[FoundMedia]:
    """List media, print how many and how large they are, and write a manifest if asked to.

    The manifest has columns ``uri``, ``media_type`` and ``content_version``: sizes are in the plan
    and the output anyway, and any further column would pass through as an attribute of every row.

    Raises:
        UserError: nothing was found, or storage or output do not work.
    """
    if output:
        check_extension(output)
    found = list_media(prefix, glob, storage)
    rows = [
        (f"{kind}s", _count([m for m in found if m.media_type == kind])) for kind in MEDIA_TYPES
    ]
    empty = sum(1 for media in found if not media.size_bytes)
    if empty:
        rows.append(("empty", f"{empty:,} of them have no bytes, and will be error rows"))
    if output:
        write_manifest(as_items(found), output, storage)
        rows.append(("manifest", output))
    print_summary(console, f"{len(found):,} media below {prefix}", rows)
    return found


def _count(media: Sequence[FoundMedia]) -> str:
    return f"{len(media):,}, {decimal(sum(m.size_bytes for m in media))}"


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["scan", *sys.argv[1:]])
