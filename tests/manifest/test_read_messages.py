"""Messages in a manifest: the same items in every format, one clear message for every mistake."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.read import manifest_digest, read_manifest
from pipeline.manifest.write import write_manifest
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
from tests.support.messages import SYSTEM, assistant, image, read, text, user, video

STORAGE = Storage()
HELLO = [user(text("Hello."))]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "messages is not valid JSON"),
        ({"role": "user"}, "messages must be a list such as"),
        ("[]", "messages must be a list such as"),
        (["hello"], "message 1: must be an object such as"),
        (
            [{"role": "human", "content": "x"}],
            "message 1: role must be system, user or assistant, ",
        ),
        ([{"content": "x"}], "message 1: role must be system, user or assistant, got None"),
        ([{"role": "user"}], "message 1: content must be text or a list of parts, got None"),
        ([user()], "message 1: content must be text or a list of parts, got []"),
        ([user("x")], "message 1: a part of content must be an object such as"),
        (
            [{**HELLO[0], "name": "me"}],
            "message 1: unknown key 'name' of a message; known are role",
        ),
        (
            [*HELLO, assistant("Hi.")],
            "message 2: the last turn must be the user's, since the model answers it; ",
        ),
        ([*HELLO, SYSTEM, *HELLO], "message 2: a system turn must be the first message"),
        (
            [{"role": "system", "content": [image("a.jpg")]}, *HELLO],
            "message 1: only user turns",
        ),
        (
            [*HELLO, {"role": "assistant", "content": [image("a.jpg")]}],
            "message 2: only user turns",
        ),
        (
            [user({"type": "audio", "audio": "a.wav"})],
            "message 1: unknown content type 'audio'; kn",
        ),
        ([user({"type": "image"})], "message 1: a part of type image needs the key 'image'"),
        ([user({"type": "video", "image": "a.jpg"})], "needs the key 'video'"),
        ([user(image(["a.jpg"]))], "message 1: image must be a uri; got ['a.jpg']"),
        ([user(image(""))], "message 1: image must be a uri; got ''"),
        ([user(image({"url": "a.jpg", "detail": "low"}))], "message 1: image must be a uri; got {"),
        ([user(video([]))], "video must be a uri, or a list of the uris of its frames; got []"),
        ([user(video(["a.jpg", 3]))], "video must be a uri, or a list of the uris of its frames; "),
        ([user({"type": "text", "text": 3})], "message 1: text must be text, got 3"),
        (
            [user(image("a.jpg", max_pixel=9))],
            "unknown key 'max_pixel' of an image; known are min_",
        ),
        ([user(image("a.jpg", fps=1))], "unknown key 'fps' of an image"),
        (
            [user(video("a.mp4", sample_fps=1))],
            "unknown key 'sample_fps' of a video; known are fps",
        ),
        (
            [user(video(["a.jpg"], fps=1))],
            "unknown key 'fps' of a frame list; known are sample_fps",
        ),
        (
            [user(video("a.mp4", fps=1, num_frames=4))],
            "fps and num_frames are both given; give one",
        ),
        (
            [user({"image": "a.jpg", "image_url": "b.jpg"})],
            "image is given twice, once as image_url",
        ),
        ([user(video("a.mp4", fps=0))], "message 1: fps must be positive, got 0"),
        ([user(video("a.mp4", fps="fast"))], "message 1: fps must be a number such as 12.5, got "),
        ([user(video("a.mp4", num_frames=2.5))], "num_frames must be a whole number, got 2.5"),
        ([user(video("a.mp4", video_start=3, video_end=3))], "video_start 3.0 must be less than"),
        (
            [user(image("a.jpg", min_pixels=9, max_pixels=8))],
            "min_pixels 9 must be at most max_p",
        ),
        (
            [user(image("a.jpg", resized_height=64))],
            "give resized_height and resized_width togethe",
        ),
    ],
)
def test_a_mistake_in_messages_is_one_clear_message(tmp_path: Path, messages, problem: str):
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, {"messages": messages})
    assert problem in str(caught.value)
    assert ", line 1: message" in str(caught.value)


def test_half_a_character_is_a_mistake(tmp_path: Path):
    with pytest.raises(ManifestError, match="message 1: text must be text"):
        read(tmp_path, {"messages": '[{"role": "user", "content": "\\ud800"}]'})


def test_messages_and_a_uri_are_one_too_many(tmp_path: Path):
    for key, value in {"uri": "a.jpg", "frames": ["a.jpg"], "start_seconds": 1}.items():
        with pytest.raises(ManifestError, match=f"{key} and messages are both given"):
            read(tmp_path, {"messages": HELLO, key: value})


def test_the_same_messages_twice_need_two_media_ids(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"line 2: the same messages as line 1; remove one"):
        read(tmp_path, HELLO, HELLO)
    with pytest.raises(ManifestError, match="media_id 'a' is also that of other messages"):
        read(
            tmp_path,
            {"media_id": "a", "messages": HELLO},
            {"media_id": "a", "messages": [SYSTEM, *HELLO]},
        )
    first, second = read(tmp_path, HELLO, {"media_id": "again", "messages": HELLO})
    assert first.media_id != second.media_id == "again"


def test_every_format_gives_the_same_item(tmp_path: Path):
    messages = [SYSTEM, user(image("a.jpg", max_pixels=9000), text("?")), assistant("A."), *HELLO]
    (item,) = read(tmp_path, messages)
    assert item.uri == str(tmp_path / "a.jpg")
    (tmp_path / "m.csv").write_text('messages\n"' + json.dumps(messages).replace('"', '""') + '"\n')
    # Parquet has one struct for all parts: keys that a part lacks are null.
    parts = [
        [text("Answer in one word.")],
        messages[1]["content"],
        [text("A.")],
        HELLO[0]["content"],
    ]
    nested = [{"role": m["role"], "content": c} for m, c in zip(messages, parts, strict=True)]
    pq.write_table(pa.table({"messages": [nested]}), tmp_path / "m.parquet")
    for name in ("m.csv", "m.parquet"):
        assert read_manifest(str(tmp_path / name), STORAGE) == [item]
    for name in ("again.parquet", "again.jsonl"):
        write_manifest([item], str(tmp_path / name), STORAGE)
        assert read_manifest(str(tmp_path / name), STORAGE) == [item]
    (other,) = read(tmp_path, [SYSTEM, *HELLO])
    assert manifest_digest([item]) != manifest_digest([other])
