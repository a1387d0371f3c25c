"""Manifests: the same items in every format, and one clear message for every mistake."""

import datetime
import gzip
import json
import logging

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.read import manifest_digest, read_manifest
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
from schemas.tables.manifest import MediaItem, default_media_id, guess_media_type
from tests.support.manifests import WRITERS, as_csv, as_jsonl, as_parquet

STORAGE = Storage()


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def read(request, tmp_path):
    """Read rows through each format; ``second`` is the second row's place in messages."""

    def read_rows(rows):
        path = tmp_path / f"m.{request.param}"
        path.write_bytes(WRITERS[request.param](rows))
        return read_manifest(str(path), STORAGE)

    read_rows.format = request.param
    read_rows.second = {"csv": "line 3", "jsonl": "line 2", "parquet": "row 2"}[request.param]
    return read_rows


def test_all_columns_in_every_format(read, tmp_path):
    items = read(
        [
            {
                "uri": "clips/a.mp4",
                "media_id": "a",
                "media_type": "video",
                "start_seconds": 1.5,
                "end_seconds": 9,
                "tasks": ["caption", "ocr"],
                "frames": [],
                "title": 'Ünï, "quoted"\nline',
                "year": 1999,
                "score": 0.5,
                "public": True,
            },
            {
                "uri": "s3://bucket/b.jpg",
                "title": "b",
                "year": 2001,
                "score": 1.25,
                "public": False,
            },
        ]
    )
    assert items == [
        MediaItem(
            media_id="a",
            uri=f"{tmp_path}/clips/a.mp4",
            media_type="video",
            start_seconds=1.5,
            end_seconds=9.0,
            tasks=("caption", "ocr"),
            attributes='{"title": "Ünï, \\"quoted\\"\\nline", "year": 1999, "score": 0.5, '
            '"public": true}',
        ),
        MediaItem(
            media_id=default_media_id(["s3://bucket/b.jpg"]),
            uri="s3://bucket/b.jpg",
            attributes='{"title": "b", "year": 2001, "score": 1.25, "public": false}',
        ),
    ]


def test_default_media_id_is_a_hash_of_the_uri():
    assert default_media_id(["s3://b/a.mp4"]) == "b588104d13c35505b03e"


def test_a_frame_list_needs_no_uri(read, tmp_path):
    (item,) = read([{"frames": ["f/1.png", "f/2.png"], "sample_fps": 4.0}])
    assert item.frames == (f"{tmp_path}/f/1.png", f"{tmp_path}/f/2.png")
    assert item.uri == f"{tmp_path}/f/1.png"
    assert item.media_type == "video"
    assert item.media_id == default_media_id(item.frames)


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("a.mp4", "{folder}/a.mp4"),
        ("./x/../a b.mp4", "{folder}/a b.mp4"),
        ("Interview:: part.mp4", "{folder}/Interview:: part.mp4"),
        ("/data/a.mp4", "/data/a.mp4"),
        ("file:///data/a.mp4", "file:///data/a.mp4"),
        ("https://host/a.mp4?x=1", "https://host/a.mp4?x=1"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
    ],
)
def test_relative_uris_start_at_the_manifest(read, tmp_path, uri, resolved):
    (item,) = read([{"uri": uri}])
    assert item.uri == resolved.format(folder=tmp_path)


def test_media_ids_of_a_database_are_numbers(read):
    assert [item.media_id for item in read([{"uri": "a", "media_id": 7}])] == ["7"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"uri": None}, "uri is empty"),
        ({"uri": "  "}, "uri is empty"),
        ({"media_type": "movie"}, "media_type must be image or video, got 'movie'"),
        ({"start_seconds": -1.0}, "start_seconds must not be negative, got -1.0"),
        ({"start_seconds": 5.0, "end_seconds": 5.0}, "start_seconds 5.0 must be less than end"),
        ({"end_seconds": 0.0}, "start_seconds 0.0 must be less than end_seconds 0.0"),
        ({"start_seconds": float("inf")}, "start_seconds must be a finite number, got inf"),
        ({"start_seconds": float("nan")}, "start_seconds must be a finite number, got nan"),
        ({"sample_fps": 0.0}, "sample_fps must be positive, got 0.0"),
        (
            {"tasks": ["Caption!"]},
            "tasks has 'Caption!', which is no name of a task, such as captio",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_row(read, row, message):
    rows = [{"uri": "a.mp4"}, {"uri": "b.mp4"} | row]
    if read.format == "parquet":  # one type a column
        rows[0] |= dict.fromkeys(row) | {"uri": "a.mp4"}
    with pytest.raises(ManifestError, match=f"m.{read.format}, {read.second}: {message}"):
        read(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"uri": 5}, "uri must be text, got 5"),
        ({"start_seconds": "0:30"}, "start_seconds must be a number such as 12.5, got '0:30'"),
        ({"start_seconds": True}, "start_seconds must be a number such as 12.5, got True"),
        ({"start_seconds": 10**400}, "start_seconds must be a number such as 12.5, got 1000"),
        ({"tasks": [1]}, "tasks must be a list of non-empty texts, got 1"),
        ({"tasks": {"caption": 1}}, "tasks must be a list of texts"),
        (
            {"frames": ["a.png", None]},
            "frames must be a list of non-empty texts, got None",
        ),
        ({"frames": ["a.png"], "media_type": "image"}, "must be video where frames are given"),
        ({"uri": "a.mp4", "frames": ["a.png"]}, "uri and frames are both given"),
        ({"frames": "data:image/png;base64,AA"}, "frames with data: uris must be a JSON list"),
        ({"tasks": '["caption"'}, "tasks is not valid JSON, such as"),
        ({"media_id": 1.5}, "media_id must be text, got 1.5"),
    ],
)
def test_a_wrong_type_is_named_with_its_row(tmp_path, row, message):
    path = tmp_path / "m.jsonl"
    path.write_bytes(as_jsonl([{"uri": "a.mp4"}, {"uri": "b.mp4"} | row]))
    with pytest.raises(ManifestError, match=f"m.jsonl, line 2: .*{message}"):
        read_manifest(str(path), STORAGE)


def test_the_same_time_span_twice(read):
    rows = [{"uri": "a.mp4", "end_seconds": 5.0}] * 2 + [{"uri": "a.mp4", "end_seconds": 6.0}]
    first = {"csv": "line 2", "jsonl": "line 1", "parquet": "row 1"}[read.format]
    with pytest.raises(ManifestError, match=f"{read.second}: the same time span of .* as {first}"):
        read(rows)


def test_one_media_id_for_two_uris(read):
    rows = [{"uri": "/a.mp4", "media_id": "x"}, {"uri": "/b.mp4", "media_id": "x"}]
    with pytest.raises(ManifestError, match=f"{read.second}: media_id 'x' is also that of /a.mp4"):
        read(rows)


def test_time_spans_of_one_item(read):
    rows = [{"uri": "a.mp4", "start_seconds": 10.0 * k} for k in range(3)]
    items = read(rows)
    assert [item.start_seconds for item in items] == [0.0, 10.0, 20.0]
    assert len({item.media_id for item in items}) == 1


def test_many_wrong_rows_are_counted(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(as_csv([{"uri": f"{k}.mp4", "end_seconds": k - 90} for k in range(100)]))
    with pytest.raises(ManifestError) as error:
        read_manifest(str(path), STORAGE)
    assert str(error.value).splitlines() == [
        f"{path}: 91 of 100 rows are wrong:",
        *(f"  line {k + 2}: end_seconds must not be negative, got {k - 90.0}" for k in range(5)),
        "  and 86 more",
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"url": ["a"], "title": ["b"]},
            "no `uri` column: its columns are 'url', 'title'; rename 'url' to uri",
        ),
        ({"URI": ["a"]}, "rename 'URI' to uri"),
        ({"a": ["b"]}, "no `uri` column: its columns are 'a'$"),
    ],
)
def test_no_uri_column(read, columns, message):
    with pytest.raises(ManifestError, match=message):
        read([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def test_a_separator_other_than_a_comma(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("uri;title\na.mp4;b\n")
    with pytest.raises(ManifestError, match="separate the cells by commas"):
        read_manifest(str(path), STORAGE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"", "no `uri` column: it is empty"),
        ("m.csv", b"uri\n", "m.csv has no rows"),
        ("m.csv", b"uri,title\na.mp4\n", "line 2: has 1 cells, the header has 2"),
        ("m.csv", b'uri,t\na,"x\ny"\nb,c,d\n', "line 4: has 3 cells, the header has 2"),
        ("m.csv", b'uri\n"a"b\n', "line 2: not valid CSV: ',' expected after '\"'"),
        ("m.csv", b'uri\na\n"b\nc\n', "line 3: not valid CSV: unexpected end of data"),
        ("m.csv", b"uri,uri\na,b\n", "two columns are named 'uri'"),
        ("m.csv", b"uri\na\n\xff.mp4\n", r"line 3: not UTF-8 \(byte 0xff\)"),
        ("m.csv.gz", b"uri\na\n", "not a readable gzip file"),
        ("m.csv.gz", gzip.compress(b"uri\na\n", mtime=0)[:-9], "not a readable gzip file"),
        ("m.jsonl", b"\n\n", "no `uri` column: it is empty"),
        ("m.jsonl", b'{"uri": "a"}\n\n{"uri": }\n', "line 3: not valid JSON: Expecting value"),
        ("m.jsonl", b'[{"uri": "a"}]\n', "line 1: must be a JSON object .* one a line"),
        ("m.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("m.jsonl", b'{"uri": "a\\ud83d.mp4"}\n', r"line 1: a \\u escape is half of a character"),
        (
            "m.jsonl",
            b'{"uri": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}",
            "nested too deeply|JSON",
        ),
        ("m.parquet", b"PAR1 but no more", "not a readable Parquet file"),
        ("m.parquet", b"", "not a readable Parquet file"),
        ("m.txt", b"a.mp4\n", "is not a manifest: .*To annotate a folder of media, use input.scan"),
    ],
)
def test_a_broken_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(str(tmp_path / name), STORAGE)


def test_two_parquet_columns_of_one_name(tmp_path):
    pq.write_table(pa.table([["a"], ["b"]], names=["uri", "uri"]), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="two columns are named 'uri'"):
        read_manifest(str(tmp_path / "m.parquet"), STORAGE)


def test_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match=f"there is no manifest {tmp_path}/m.csv"):
        read_manifest(f"{tmp_path}/m.csv", STORAGE)


@pytest.mark.parametrize("name", ["parts", "manifest.parquet"])
def test_a_folder_of_parquet_files_is_one_manifest(tmp_path, name):
    folder = tmp_path / name
    (folder / "day=1").mkdir(parents=True)
    (folder / "_SUCCESS").touch()
    (folder / "_delta_log").mkdir()
    (folder / "_delta_log" / "1.checkpoint.parquet").write_bytes(b"not a manifest")
    (folder / "part-0.parquet").write_bytes(as_parquet([{"uri": "a.mp4"}]))
    (folder / "day=1" / "part-1.parquet").write_bytes(as_parquet([{"uri": "b.mp4", "n": 1}]))
    items = read_manifest(str(folder), STORAGE)
    assert sorted((item.uri, item.attributes) for item in items) == [
        (f"{folder}/a.mp4", '{"n": null}'),
        (f"{folder}/b.mp4", '{"n": 1}'),
    ]
    (folder / "part-2.parquet").write_bytes(as_parquet([{"uri": "a.mp4", "n": 2}]))
    with pytest.raises(ManifestError, match=r"part-2.parquet row 1: .* as part-0.parquet row 1"):
        read_manifest(str(folder), STORAGE)


def test_gzip_and_byte_order_mark(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfuri\r\n\r\na.mp4\r\n")
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(b'{"uri": "a.mp4"}'))
    plain = read_manifest(f"{tmp_path}/m.csv", STORAGE)
    assert plain == read_manifest(f"{tmp_path}/m.jsonl.gz", STORAGE)


def test_csv_lists_may_be_separated_by_semicolons(tmp_path):
    (tmp_path / "m.csv").write_text("frames,tasks\nf/1.png; f/2.png,caption;ocr\n")
    (item,) = read_manifest(f"{tmp_path}/m.csv", STORAGE)
    assert item.frames == (f"{tmp_path}/f/1.png", f"{tmp_path}/f/2.png")
    assert item.tasks == ("caption", "ocr")


def test_csv_codes_stay_text_and_empty_cells_are_null(tmp_path):
    (tmp_path / "m.csv").write_text("uri,code,n,ok,all_empty\na,007,1,TRUE,\nb,12,,false,\n")
    attributes = [json.loads(i.attributes) for i in read_manifest(f"{tmp_path}/m.csv", STORAGE)]
    assert attributes == [
        {"code": "007", "n": 1, "ok": True, "all_empty": None},
        {"code": "12", "n": None, "ok": False, "all_empty": None},
    ]


def test_a_data_uri_is_one_long_cell(tmp_path):
    uri = "data:image/png;base64," + "A" * 300_000
    (tmp_path / "m.csv").write_text(f'uri\n"{uri}"\n')
    assert read_manifest(f"{tmp_path}/m.csv", STORAGE)[0].uri == uri


def test_the_index_of_pandas_is_not_an_attribute(tmp_path):
    frame = pd.DataFrame({"uri": ["a", "b", "c"]}).iloc[[2, 0]]
    frame.to_parquet(tmp_path / "m.parquet")
    frame.to_csv(tmp_path / "m.csv")
    for name in ("m.parquet", "m.csv"):
        assert [i.attributes for i in read_manifest(f"{tmp_path}/{name}", STORAGE)] == [None, None]


def test_attributes_have_json_types(tmp_path):
    moment = datetime.datetime(2026, 11, 22, 6, 30, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "uri": ["a"],
            "at": pa.array([moment], pa.timestamp("ns", tz="UTC")),
            "day": [moment.date()],
            "length": pa.array([90_500], pa.duration("ms")),
            "thumb": [b"\x00\xff"],
            "price": pa.array(["1.50"]).cast(pa.decimal128(5, 2)),
            "nan": [float("nan")],
            "tags": [["x", None]],
            "place": [{"lat": float("inf"), "name": "y"}],
            "kind": pa.array(["z"]).dictionary_encode(),
            "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    (item,) = read_manifest(f"{tmp_path}/m.parquet", STORAGE)
    assert json.loads(item.attributes) == {
        "at": "2026-11-22T06:30:00+00:00",
        "day": "2026-11-22",
        "length": 90.5,
        "thumb": "AP8=",
        "price": 1.5,
        "nan": None,
        "tags": ["x", None],
        "place": {"lat": None, "name": "y"},
        "kind": "z",
        "pairs": [["k", 1]],
    }


def test_a_column_with_nearly_a_known_name_is_warned_about(read, caplog):
    with caplog.at_level(logging.WARNING, "pipeline.manifest.read"):
        read([{"uri": "a", "start_second": 1, "MediaID": "x", "end": 2, "title": "t"}])
    warned = [record.args[1:] for record in caplog.records]
    assert warned == [
        ("start_second", "start_seconds"),
        ("MediaID", "media_id"),
        ("end", "end_seconds"),
    ]


def test_the_digest_depends_on_the_rows_only(tmp_path):
    a, b = {"uri": "/a", "x": 1, "y": "p"}, {"uri": "/b", "x": 2, "y": "q"}

    def digest(name, *rows):
        (tmp_path / name).write_bytes(WRITERS[name.rsplit(".")[-1]](rows))
        return manifest_digest(read_manifest(f"{tmp_path}/{name}", STORAGE))

    expected = digest("m.jsonl", a, b)
    assert expected == digest("m.csv", b, a)
    assert expected == digest("m.parquet", dict(reversed(a.items())), b)
    assert expected != digest("m.jsonl", a)
    assert expected != digest("m.jsonl", a, b | {"x": 3})
    assert expected != digest("m.jsonl", a, b | {"end_seconds": 3})
    intrinsics = {"fx": 900, "fy": 900, "cx": 640, "cy": 360}
    assert expected != digest("m.jsonl", a, b | {"intrinsics": intrinsics})


@pytest.mark.parametrize(
    ("uri", "media_type"),
    [
        ("{folder}/a.png", "image"),
        ("{folder}/b.MKV", "video"),
        ("file://{folder}/a.png", "image"),
        ("s3://bucket/clips/c.mp4", "video"),
        ("https://example.org/c.jpg?X-Sig=s", "image"),
        ("data:image/png;base64,AAAA", "image"),
    ],
)
def test_one_image_or_video_is_a_manifest_of_one_row(tmp_path, uri, media_type):
    """The same item as of a manifest with this uri as its only row."""
    uri = uri.format(folder=tmp_path)
    (item,) = read_manifest(uri, Storage())
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": uri.removeprefix("file://")}) + "\n")
    assert [item] == read_manifest(str(tmp_path / "m.jsonl"), Storage())
    assert guess_media_type(item.uri) == media_type


def test_one_relative_file_starts_at_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (item,) = read_manifest("a.png", Storage())
    assert item.uri == f"{tmp_path}/a.png"
    (tmp_path / "parts.mp4").mkdir()
    with pytest.raises(ManifestError, match="is not a manifest"):
        read_manifest("parts.mp4", Storage())
