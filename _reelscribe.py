"""Take the packages ``pipeline``, ``jobs`` and ``schemas`` from this folder, and from no other.

These names are common: a user's folder may hold a ``schemas.py``, and Python looks there first.
Each of the three packages imports this module before anything else; the command ``reelscribe`` and
the decoders' processes start with it.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent
PACKAGES = ("pipeline", "jobs", "schemas")


class _OwnPackages:
    """Finder of the three packages, which Python asks before it searches its path."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the package of this folder, and None for any other name."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


def _take_own_packages() -> None:
    for name in PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and Path(file).resolve().parent.parent != ROOT:
            raise ImportError(
                f"{file} has the name of Reelscribe's package {name!r} and was imported before it:"
                " rename that file"
            )
    sys.meta_path.insert(0, _OwnPackages)


_take_own_packages()


def main() -> None:
    """Run the command ``reelscribe``."""
    from jobs.cli.main import main

    main()
