"""Driver and workers must run the same code: compare its hash."""

import functools
import hashlib
from pathlib import Path

from schemas.errors import ResourceError


@functools.cache
def code_digest() -> str:
    """Return a hash of the code that runs in actors."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted([*root.glob("schemas/**/*.py"), *root.glob("pipeline/**/*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def check_code(expected: str) -> None:
    """Compare this worker's code with the driver's.

    Raises:
        ResourceError: they differ.
    """
    if code_digest() != expected:
        raise ResourceError(
            f"this worker runs other code ({code_digest()}) than the driver ({expected}): "
            "install the same version of reelscribe on every node"
        )
