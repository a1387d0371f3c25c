"""torchcodec gets the bytes of a container that holds its own frames, and nothing else."""

import dataclasses
import shutil
import sys
import types
from pathlib import Path

import pytest

from pipeline.media import decode
from pipeline.media.decode import decode_unit
from pipeline.storage.storage import Storage
from schemas.errors import UnitError
from tests.support.clips import numbered_frames, video_unit, write_clip


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a stand-in for torchcodec is given; it refuses everything."""
    sources: list[object] = []

    class VideoDecoder:
        def __init__(self, source: object, **options: object) -> None:
            sources.append(source)
            raise RuntimeError("not today")

    module = types.ModuleType("torchcodec.decoders")
    module.VideoDecoder = VideoDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    monkeypatch.setattr(decode, "torchcodec_problem", lambda: None)
    return sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A secret film, a film of the archive, and playlists in its place that name the secret one."""
    folder = tmp_path_factory.mktemp("films")
    for name in ("secret.mp4", "film.mp4", "film.mkv", "film.avi", "film.ts"):
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        write_clip(folder / name, numbered_frames(20, 64, 48), fps=10, codec=codec)
    return folder


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi"])
def test_it_gets_the_bytes_of_a_local_file(given: list[object], folder: Path, name: str):
    frames = decode_unit(video_unit(folder / name), Storage(), decoder="torchcodec")
    assert given == [(folder / name).read_bytes()]
    assert frames.decoder == "pyav"  # which decodes what torchcodec cannot


def test_it_gets_no_stream_without_an_index(given: list[object], folder: Path):
    frames = decode_unit(video_unit(folder / "film.ts"), Storage(), decoder="torchcodec")
    assert (given, frames.decoder) == ([], "pyav")


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1" mimeType="video/mp4"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("decoder", ["torchcodec", "pyav"])
def test_a_playlist_is_refused(given, folder, tmp_path, kind: str, decoder: str):
    """It takes the place of the film after the plan."""
    shutil.copy(folder / "film.mp4", tmp_path / "film.mp4")
    unit = video_unit(tmp_path / "film.mp4")
    unit = dataclasses.replace(unit, media=dataclasses.replace(unit.media, content_version=None))
    (tmp_path / "film.mp4").write_text(PLAYLISTS[kind].format(folder / "secret.mp4"))
    with pytest.raises(UnitError):
        decode_unit(unit, Storage(), decoder=decoder)
    assert given == []


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_film_that_is_also_a_playlist_is_left_to_pyav(given, folder, tmp_path, kind: str):
    """A Matroska file may begin with anything: an element that readers pass over."""
    content = (folder / "film.mkv").read_bytes()
    header_bytes = 4 + 1 + (content[4] & 0x7F) if content[4] & 0x80 else 12 + content[11]
    text = PLAYLISTS[kind].format(folder / "secret.mp4").encode()
    void = b"\xec" + (0x4000 | len(text)).to_bytes(2, "big") + text
    path = tmp_path / "film.mkv"
    path.write_bytes(content[:header_bytes] + void + content[header_bytes:])
    frames = decode_unit(video_unit(path), Storage(), decoder="torchcodec")
    assert (given, frames.decoder) == ([], "pyav")
