"""Packages that only some jobs need, as ``pyproject.toml`` names them in its extras."""

from importlib import metadata


def install_command(extra: str) -> str:
    """Return the pip command that installs an extra's packages by their own names.

    Not by ours: Reelscribe is not on PyPI, where anyone could take its name.
    """
    requirements = metadata.requires("reelscribe") or []
    pairs = (requirement.partition(";")[::2] for requirement in requirements)
    packages = [package.strip() for package, marker in pairs if f'extra == "{extra}"' in marker]
    return "pip install " + " ".join(f"'{package}'" for package in packages)
