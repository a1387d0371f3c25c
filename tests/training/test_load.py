"""What an export takes from the checkpoint that was trained."""

from pathlib import Path

from pipeline.training.load import export


def test_the_index_of_the_sources_weights_is_not_copied(tmp_path: Path):
    """It names files that the export does not have: readers would find no weights."""
    source, folder = tmp_path / "source", tmp_path / "export"
    source.mkdir()
    for name in ("config.json", "model.safetensors.index.json", "vocab.json"):
        (source / name).write_text("{}")
    folder.mkdir()
    (folder / "config.json").write_text('{"is": "trained"}')
    export(None, str(source), None, None, folder, has_weights=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "vocab.json"]
    assert (folder / "config.json").read_text() == '{"is": "trained"}'
