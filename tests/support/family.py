"""Tiny checkpoints of each model type, made once for a process."""

from pathlib import Path

import pytest

from scripts.demo_model.tiny_checkpoint import MODEL_TYPES, write_tiny_checkpoint

HYBRIDS = MODEL_TYPES[2:]
"""Model types with linear layers."""

_made: dict[str, Path] = {}


def family_checkpoint(tmp_path_factory: pytest.TempPathFactory, model_type: str) -> Path:
    """The folder of a tiny checkpoint with random weights; nobody may change it."""
    if model_type not in _made:
        folder = tmp_path_factory.mktemp(model_type)
        _made[model_type] = write_tiny_checkpoint(folder, model_type=model_type)
    return _made[model_type]
