"""A job's storages: each refusal is named, each hang ends, and nothing is left in the output."""

import json
from pathlib import Path

import pytest

from jobs.doctor import finding
from jobs.doctor.finding import Finding, State
from jobs.doctor.storage import input_findings, output_findings
from pipeline.storage.storage import Storage
from schemas.job.job import Input
from tests.support.faulty_s3 import FaultyS3

STEPS = ["list", "write", "replace", "conditional write", "remove"]


@pytest.fixture
def faulty(s3):
    with FaultyS3(s3.endpoint_url) as proxy:
        proxy.bucket = s3.new_bucket()
        yield proxy


def storage_of(url: str, **more) -> Storage:
    return Storage({"s3": {"endpoint_url": url, "key": "k", "secret": "s", **more}})


def by_name(findings: list[Finding]) -> dict[str, tuple[State, str]]:
    return {each.name: (each.state, each.text) for each in findings}


def left_in(faulty: FaultyS3, s3) -> list[str]:
    """The objects in the bucket, past the proxy."""
    files = storage_of(s3.endpoint_url).list_files(faulty.bucket.uri(), "**/*")
    return [file["uri"] for file in files]


# The output


def test_a_bucket_that_can_do_all(faulty, s3):
    found = output_findings(faulty.bucket.uri("out"), storage_of(faulty.url))
    assert [each.name for each in found] == STEPS
    assert {each.state for each in found} == {State.OK}
    assert by_name(found)["conditional write"][1] == "a second one was refused"
    assert left_in(faulty, s3) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_is_left_as_it_was(tmp_path: Path, exists: bool):
    folder = tmp_path / "deep" / "out"
    if exists:
        folder.mkdir(parents=True)
        (folder / "kept").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    found = output_findings(str(folder), Storage())
    assert {each.state for each in found} == {State.OK}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["s4://bucket/out", "https://nohost.invalid/out"])
def test_an_output_that_is_no_storage(output: str):
    found = by_name(output_findings(output, Storage()))
    assert found["write"][0] == State.TO_DO


def test_a_folder_as_a_uri(tmp_path: Path):
    found = output_findings(f"file://{tmp_path}/deep/out", Storage())
    assert {each.state for each in found} == {State.OK}
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_may_only_be_read(faulty, s3):
    faulty.read_only = True
    found = by_name(output_findings(faulty.bucket.uri("out"), storage_of(faulty.url)))
    assert found["list"][0] == State.OK
    state, text = found["write"]
    assert state == State.TO_DO and "access denied; check credentials and permissions" in text
    assert list(found) == ["list", "write"]
    assert left_in(faulty, s3) == []


@pytest.mark.parametrize("conditions", ["ignored", "unknown"])
def test_a_bucket_without_conditional_writes(faulty, s3, conditions: str):
    """It is no trouble: a lease is watched. The line says so."""
    faulty.conditions = conditions
    found = by_name(output_findings(faulty.bucket.uri("out"), storage_of(faulty.url)))
    state, text = found["conditional write"]
    assert state == State.OK and text.startswith("the storage has none; nothing here needs one")
    assert found["remove"][0] == State.OK
    assert left_in(faulty, s3) == []


def test_a_bucket_that_keeps_what_is_removed(faulty, s3):
    faulty.refuses = ("DELETE",)
    found = by_name(output_findings(faulty.bucket.uri("out"), storage_of(faulty.url)))
    state, text = found["remove"]
    assert state == State.TO_DO and "access denied" in text
    (left,) = left_in(faulty, s3)
    assert f"{left} may be left: remove it" in text


def test_a_bucket_that_may_only_be_written(faulty, s3):
    faulty.refuses = ("GET", "HEAD")
    found = by_name(output_findings(faulty.bucket.uri("out"), storage_of(faulty.url)))
    assert [found[name][0] for name in ("list", "write", "replace", "remove")] == [
        *("to do", "ok", "to do", "ok")
    ]
    assert "access denied; check credentials and permissions" in found["list"][1]
    assert left_in(faulty, s3) == []


def test_expired_credentials(faulty):
    faulty.expired = True
    found = by_name(output_findings(faulty.bucket.uri("out"), storage_of(faulty.url)))
    assert found["list"][0] == found["write"][0] == State.TO_DO
    assert "access denied; check credentials" in found["write"][1]


def test_a_bucket_that_does_not_exist(s3):
    found = by_name(output_findings("s3://no-such-bucket/out", storage_of(s3.endpoint_url)))
    assert found["write"] == (State.TO_DO, found["write"][1])
    assert found["write"][1].endswith("the bucket does not exist")


def test_reads_that_are_out_of_date(tmp_path: Path):
    """As of a cache in front of a bucket: a driver would not see that another has its lease."""

    class Cached(Storage):
        def read_bytes(self, uri: str) -> bytes:
            return b"1"

    found = by_name(output_findings(str(tmp_path), Cached()))
    state, text = found["replace"]
    assert state == State.TO_DO and "b'2' was written, and b'1' read afterwards" in text
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_outputs_place(tmp_path: Path):
    (tmp_path / "out").write_text("x")
    found = by_name(output_findings(str(tmp_path / "out"), Storage()))
    assert found["write"][0] == State.TO_DO
    assert "cannot create the folder" in found["write"][1]


def test_an_endpoint_that_hangs(silent: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(finding, "SECONDS", 0.5)
    monkeypatch.setattr("jobs.doctor.storage.REMOVE_SECONDS", 0.5)
    found = output_findings("s3://bucket/out", storage_of(silent))
    listed, _ = input_findings(Input(scan="s3://bucket/clips"), storage_of(silent))
    late = "no answer within 0.5 s: is its address right, and is it up? A run waits longer"
    assert [(each.name, each.text) for each in found[:2]] == [("list", late), ("write", late)]
    assert found[2].text.startswith(late) and "may be left: remove it" in found[2].text
    assert [(each.state, each.text) for each in listed] == [(State.TO_DO, late)]


# The input


def test_media_in_a_folder(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x" * 3000)
    (tmp_path / "b.mp4").write_bytes(b"x")
    found, uri = input_findings(Input(scan=str(tmp_path), glob="images/*"), Storage())
    assert [(each.name, each.state) for each in found] == [("list", "ok"), ("read", "ok")]
    assert uri == f"{tmp_path}/images/a.jpg"
    assert found[1].text == f"{uri}: 3,000 of 3,000 bytes"


def test_a_manifest_of_media_in_a_bucket(s3_env, tmp_path: Path):
    Storage().write_bytes(s3_env.uri("a.jpg"), b"x" * 100_000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": s3_env.uri("a.jpg")}) + "\n")
    found, uri = input_findings(Input(manifest=str(tmp_path / "m.jsonl")), Storage())
    assert uri == s3_env.uri("a.jpg")
    assert found[1].text == f"{uri}: 65,536 of 100,000 bytes"


def test_a_conversation_without_media(tmp_path: Path):
    row = {"messages": [{"role": "user", "content": "Hello"}]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    found, uri = input_findings(Input(manifest=str(tmp_path / "m.jsonl")), Storage())
    assert [each.state for each in found] == [State.OK] and uri is None


@pytest.mark.parametrize(
    ("row", "name", "text"),
    [
        ({"uri": "gone.mp4"}, "read", "gone.mp4 does not exist"),
        ({"uri": "http://127.0.0.1/a.mp4"}, "read", "set input.allow_private_hosts"),
        ({"uri": "s3://no-such-bucket-here/a.mp4"}, "read", "nor does its bucket"),
        ({"url": "a.mp4"}, "list", "has no `uri` column"),
        ({"uri": "a\x1b[2Jb.mp4"}, "read", "a\\x1b[2Jb.mp4 does not exist"),
    ],
)
def test_input_in_trouble(s3_env, tmp_path: Path, row: dict, name: str, text: str):
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    found = by_name(input_findings(Input(manifest=str(tmp_path / "m.jsonl")), Storage())[0])
    assert found[name][0] == State.TO_DO and text in found[name][1]
    assert found[name][1].isprintable()


def test_no_manifest_and_an_empty_folder(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("x")
    for spec in (Input(manifest=str(tmp_path / "m.csv")), Input(scan=str(tmp_path))):
        ((found,), uri) = input_findings(spec, Storage())
        assert found.state == State.TO_DO and uri is None
        assert "there is no manifest" in found.text or "notes.txt" in found.text


def test_a_credential_that_may_not_read_media(faulty, s3):
    storage_of(s3.endpoint_url).write_bytes(faulty.bucket.uri("clips/a.mp4"), b"x")
    faulty.expired = True
    (found,), uri = input_findings(Input(scan=faulty.bucket.uri("clips")), storage_of(faulty.url))
    assert found.state == State.TO_DO and "access denied" in found.text and uri is None
