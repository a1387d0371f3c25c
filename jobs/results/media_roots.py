"""Media that moved since the run: the same files below another folder or prefix."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from schemas.errors import UserError
from schemas.shown import redact_uri


@dataclass(frozen=True, kw_only=True)
class MediaRoots:
    """Folders or prefixes of media, as rows name them, and where these media are now.

    pairs: (old, new); of several that fit a uri, the longest is used.
    """

    pairs: tuple[tuple[str, str], ...] = ()

    def move(self, uri: str) -> str:
        """Return the uri at which a media object is now."""
        for old, new in sorted(self.pairs, key=lambda pair: -len(pair[0])):
            for form in (str, _file_uri):
                if _is_below(uri, form(old)):
                    return form(new).rstrip("/") + uri[len(form(old).rstrip("/")) :]
        return uri

    def move_rows(self, rows: list[dict[str, Any]], *, must_match: bool) -> list[dict[str, Any]]:
        """Return rows of the table with the uris of today.

        What moved has no content version: a copy has another time, and another storage other etags.

        must_match: raise an error if an old root is none of these rows'.

        Raises:
            UserError: no uri is below an old root.
        """
        if not self.pairs:
            return rows
        if must_match:
            self._check_old({uri for row in rows for uri in _uris(row)})
        return [self._move_row(row) for row in rows]

    def move_sources(self, sources: dict[str, Any]) -> dict[str, Any]:
        """Return ``uri, frames, parts`` of the plan with the uris of today."""
        parts = [self.move_sources(part) for part in sources.get("parts") or ()]
        frames = [self.move(uri) for uri in sources.get("frames") or ()]
        return sources | {"uri": self.move(sources["uri"]), "frames": frames, "parts": parts}

    def _move_row(self, row: dict[str, Any]) -> dict[str, Any]:
        uri = self.move(row["uri"])
        moved: dict[str, Any] = {"uri": uri}
        if row.get("frames"):
            moved["frames"] = [self.move(frame) for frame in row["frames"]]
        if row.get("parts"):
            moved["parts"] = [self._move_row(part) for part in row["parts"]]
        if uri != row["uri"] and row.get("media"):
            moved["media"] = row["media"] | {"content_version": None}
        return row | moved

    def _check_old(self, uris: Iterable[str]) -> None:
        known = sorted(uris)
        for old, new in self.pairs:
            if not any(_is_below(uri, old) or _is_below(uri, _file_uri(old)) for uri in known):
                some = ", ".join(redact_uri(uri) for uri in known[:3])
                raise UserError(
                    f"--media-root {old}={new}: none of the media is below {old}; they are such as "
                    f"{some}"
                )


def _file_uri(root: str) -> str:
    """Return a folder as it is in the uris of names that are not UTF-8; other roots as they are."""
    return PurePosixPath(root).as_uri() if root.startswith("/") else root


def _is_below(uri: str, root: str) -> bool:
    root = root.rstrip("/")
    return uri == root or uri.startswith(root + "/")


def _uris(row: dict[str, Any]) -> Sequence[str]:
    return [row["uri"], *(part["uri"] for part in row.get("parts") or ())]
