"""Media that break decoders: about 300 files of 30 kinds, the same for the same seed."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.support.hostile.case import (
    BROKEN,
    CHANGED,
    IMAGES,
    LARGE,
    MISSING,
    OK,
    UNSUPPORTED,
    VIDEOS,
    Case,
    Sound,
    case,
)
from tests.support.hostile.images import bombs, depths, huge, odd_sizes, palettes
from tests.support.hostile.videos import (
    absurd_rates,
    boxes,
    changing_resolution,
    duplicate_times,
    edit_lists,
    formats,
    odd_counts,
    timestamps,
    without_pictures,
)


def cases(seed: int, folder: Path) -> list[Case]:
    """Make all cases. folder: for the valid files from which they are made."""
    sound = Sound(folder)
    found = [case for kind in KINDS for case in kind(np.random.default_rng(seed), sound)]
    assert len({case.id for case in found}) == len(found)
    return found


def truncated(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in VIDEOS + IMAGES:
        content = sound[name]
        places = np.unique(np.linspace(1, len(content) - 1, 7).astype(int))
        for at in places:
            yield case("truncated", f"{at} of {name}", content[:at], OK, BROKEN, UNSUPPORTED)


def bit_flipped(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in VIDEOS + IMAGES:
        for k in range(5):
            content = bytearray(sound[name])
            for at in rng.integers(0, len(content), size=1 + 4 * k):
                content[at] ^= 1 << int(rng.integers(8))
            allowed = (OK, BROKEN, UNSUPPORTED, LARGE)
            yield case("bit-flipped", f"{k} {name}", bytes(content), *allowed)


def zeroed(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in (*VIDEOS, "image.jpg", "image.png", "image.gif"):
        content = bytearray(sound[name])
        start = int(rng.integers(len(content) // 3, len(content) // 2))
        content[start : start + len(content) // 4] = bytes(len(content) // 4)
        yield case("zero bytes", f"inside {name}", bytes(content), OK, BROKEN, UNSUPPORTED)
        yield case("zero bytes", f"all of {name}", bytes(len(content)), BROKEN)
        yield case("empty", name, b"", BROKEN)


def wrong_extension(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    yield case("wrong extension", "png.mp4", sound["image.png"], OK)
    yield case("wrong extension", "jpg.mp4", sound["image.jpg"], OK)
    yield case("wrong extension", "jpg.png", sound["image.jpg"], OK)
    yield case("wrong extension", "mp4.jpg", sound["clip.mp4"], BROKEN)
    yield case("wrong extension", "mkv.mp4", sound["clip.mkv"], OK)
    yield case("wrong extension", "avi.dat", sound["clip.avi"], OK)
    yield case("wrong extension", "png.dat", sound["image.png"], OK)
    yield case("wrong extension", "mp4", sound["clip.mp4"], OK)


def not_media(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    page = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n" * 20
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    concat = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    sdp = b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) (r) file\n"
    texts = {"page": page, "list": playlist, "concat": concat, "svg": svg, "sdp": sdp, "eps": eps}
    for name, text in texts.items():
        for suffix in ("mp4", "jpg", "dat"):
            yield case("not media", f"{name}.{suffix}", text, BROKEN, UNSUPPORTED)
    noise = rng.bytes(5000)
    for suffix in ("mp4", "mkv", "ts", "jpg", "png"):
        yield case("noise", f"noise.{suffix}", noise, BROKEN, UNSUPPORTED)


def growing(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in ("clip.mkv", "clip.ts", "faststart.mp4", "image.png"):
        content = sound[name]

        def grow(path: Path, content: bytes = content) -> None:
            path.write_bytes(content + content[len(content) // 2 :])

        yield case("growing file", name, content, CHANGED, later=grow)
        yield case("removed file", name, content, MISSING, later=Path.unlink)


def names(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in (
        "new\nline.png",
        "quo'te\".png",
        "tab\t.mp4",
        "per%20cent%.png",
        "ques?tion#hash.png",
        "c:olon::chain.png",
        "  spaces  .mp4",
        "-i dash.mp4",
        "$(touch x).png",
        "\u202eleft.png",
        "émoji 🎬.mp4",
        "*star[0-9].png",
        "{brace}.png",
        "back\\slash.png",
        "x" * 240 + ".png",
    ):
        content = sound["clip.mp4" if name.endswith("mp4") else "image.png"]
        yield case("names", name, content, OK)


def not_files(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    def good(path: Path) -> None:
        (path.parent / "target.png").write_bytes(sound["image.png"])
        path.symlink_to("target.png")

    yield case("symlinks", "good.png", good, OK)
    yield case("symlinks", "dangling.png", lambda path: path.symlink_to("nowhere"), MISSING)
    yield case("symlinks", "loop.png", lambda path: path.symlink_to(path.name), MISSING)
    yield case("symlinks", "folder.mp4", lambda path: path.symlink_to("."), MISSING)
    yield case("symlinks", "endless.png", lambda path: path.symlink_to("/dev/zero"), MISSING)
    for suffix in ("mp4", "png", "dat"):
        yield case("FIFOs", f"pipe.{suffix}", os.mkfifo, MISSING)
    yield case("FIFOs", "folder.mp4", Path.mkdir, MISSING)


KINDS = (
    truncated,
    bit_flipped,
    zeroed,
    wrong_extension,
    not_media,
    without_pictures,
    odd_counts,
    absurd_rates,
    huge,
    bombs,
    depths,
    palettes,
    odd_sizes,
    timestamps,
    edit_lists,
    duplicate_times,
    changing_resolution,
    formats,
    boxes,
    growing,
    names,
    not_files,
)
