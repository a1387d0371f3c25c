"""A checkpoint's files: weights, their identity, and JSON files that may be missing."""

import hashlib
import json
from pathlib import Path
from typing import Any

from schemas.errors import ModelError
from schemas.shown import one_line

_NUM_SAMPLES, _SAMPLE_BYTES = 1024, 1 << 16
"""A weight file over 64 MB is hashed by this many evenly spaced pieces, to cover all layers."""


def optional_json(source: str, revision: str | None, name: str) -> Any:
    """Read a JSON file that a checkpoint may lack, from its folder or the hub; None: it lacks it.

    A hub that does not answer has not said that there is no such file. Then the machine's cache is
    what is known: the hub's earlier answer, or a checkpoint with its weights.

    Raises:
        ModelError: it is not known whether there is such a file, or it is no JSON.
    """
    file = Path(source) / name if Path(source).is_dir() else _of_hub(source, revision, name)
    if file is None or not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model.source: {file} cannot be read: {error}; copy the checkpoint again"
        ) from None


def _of_hub(source: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except LocalEntryNotFoundError as error:  # the hub was not asked, or did not answer
        if _is_settled_in_cache(source, revision, name):
            return None
        reason: Exception = error.__cause__ if isinstance(error.__cause__, Exception) else error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # its other answers are OSErrors
        reason = error
    raise ModelError(
        f"model.source: it is not known whether {source} has a {name}: it is not in this machine's "
        "cache, and the hub's client says: "
        f"{one_line(str(reason) or type(reason).__name__)}; try again, set HF_TOKEN if the "
        "checkpoint is gated, or copy it to this machine and give its folder"
    )


def _is_settled_in_cache(source: str, revision: str | None, name: str) -> bool:
    """Whether the cache says that a checkpoint has no such file."""
    from huggingface_hub import try_to_load_from_cache

    found, config = (
        try_to_load_from_cache(source, some, revision=revision) for some in (name, "config.json")
    )
    if found is not None:  # the mark of an earlier answer that there is none
        return True
    return isinstance(config, str) and any(Path(config).parent.glob("*.safetensors"))


def check_weights(folder: Path) -> None:
    """Open every weight file: a missing or truncated one would fail later, in an actor.

    Raises:
        ModelError: names the file.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, set[str]] = {path.name: set() for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            for tensor, name in json.loads(index.read_text())["weight_map"].items():
                tensors.setdefault(name, set()).add(tensor)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"model.source: {index} cannot be read: {error!r}") from None
    if not tensors:
        raise ModelError(f"model.source: {folder} has no *.safetensors weights")
    for name, expected in sorted(tensors.items()):
        try:
            with safe_open(folder / name, framework="np") as file:
                missing = sorted(expected - set(file.keys()))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model.source: {folder / name} cannot be read: {error}") from None
        if missing:
            raise ModelError(
                f"model.source: {folder / name} lacks {len(missing):,} tensors that {index.name} "
                f"says it has, such as {missing[0]}: copy the checkpoint again"
            )


def folder_digest(folder: Path) -> str:
    """Hash a checkpoint's files: small ones whole, large weights by 1,024 pieces of 64 KB."""
    weights = sorted(folder.glob("*.safetensors"))
    configs = [*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.txt")]
    digest = hashlib.sha256()
    for path in sorted(configs):
        digest.update(path.name.encode() + path.read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name}{size}".encode())
        step = max(size // _NUM_SAMPLES, _SAMPLE_BYTES)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
