"""The fonts of the data set: packages of the extra `dataset`, and the font inside Pillow."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from schemas.errors import UserError
from schemas.extras import install_command

# Sans, sans bold, serif, serif bold and round: package and file.
FONTS = (
    "font_roboto/Roboto-Regular.ttf",
    "font_roboto/Roboto-Bold.ttf",
    "font_source_serif_pro/SourceSerifPro-Regular.ttf",
    "font_source_serif_pro/SourceSerifPro-Bold.ttf",
    "font_fredoka_one/FredokaOne-Regular.ttf",
)


@cache
def font_files() -> tuple[str, ...]:
    """Return values for `Label.font`: "" for Pillow's own font, then the paths of ``FONTS``.

    Raises:
        UserError: the package of a font is not installed.
    """
    return "", *map(font_file, FONTS)


def font_file(font: str) -> str:
    """Return the path of a font file in its package.

    Raises:
        UserError: the package is not installed.
    """
    package, _, name = font.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the font {font} is missing: {install_command('dataset')}")
    return str(Path(spec.origin).parent / "files" / name)
