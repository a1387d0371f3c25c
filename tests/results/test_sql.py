"""`reelscribe sql`: readable at any width, formats for programs, and hints that are right."""

import csv
import io
import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from jobs.cli.main import main
from jobs.results import sql
from pipeline.output.file_names import file_name
from pipeline.output.rows import ITEM
from pipeline.output.views import write_views
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage
from schemas.errors import UserError
from tests.support.latest_sql import latest_sql
from tests.support.units import answer, clip_unit, failed_unit, unit, write_table

LONG = "A red tram passes the old gate. " * 40
ALL = "SELECT * FROM latest ORDER BY uri, unit_id"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("queried")
    units = [
        unit(answer("caption", LONG), uri="s3://b/東京 タワー.mp4"),
        clip_unit("m2", caption='It\'s "quoted",\nin two lines'),
        failed_unit("bad\x1b[31m.mp4"),
    ]
    return Path(write_table(folder / "out", *units))


def printed(output: Path, query: str, width: int, form: str = "table") -> str:
    console = Console(file=io.StringIO(), width=width)
    sql.run(str(output), query, Storage(), console, form=form, to=None)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [20, 37, 60, 80, 120, 200])
@pytest.mark.parametrize(
    "query",
    [
        ALL,
        "SELECT uri, caption, status, media FROM latest",
        "SELECT caption FROM latest",
        "SELECT status, count(*) AS units FROM latest GROUP BY ALL",
    ],
)
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(output, query: str, width: int):
    text = printed(output, query, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    seen = "".join(text.split())
    if "row 1" not in text and width < 200:
        return  # in a narrow table a cell is on several lines
    rows = duckdb.sql(f"{latest_sql(output)} {query}").to_arrow_table().to_pylist()
    values = [value for row in rows for value in row.values() if isinstance(value, str | int)]
    for value in values:
        assert "".join(str(value).replace("\x1b", "\\x1b")[:12].split()) in seen
    assert values


def test_a_table_that_fits_is_one_and_what_does_not_is_row_below_row(output):
    assert "─" in printed(output, "SELECT status, recipe_id FROM latest", 40)
    text = printed(output, ALL, 100)
    assert "─" not in text and "row 3" in text and "row 4" not in text
    assert "..." in text and LONG not in text.replace("\n", " ")
    assert printed(output, "FROM latest WHERE false", 80) == "no rows\n"


def test_csv_and_json_have_all_rows_and_types_as_duckdb_reads_them(output, tmp_path: Path):
    query = (
        "SELECT uri, caption, media, sampling.pts_seconds AS pts, sum(2) AS two, "
        "'nan'::DOUBLE AS n, timings.finished_at AS finished, NULL AS nothing "
        "FROM latest GROUP BY ALL ORDER BY uri"
    )
    (tmp_path / "x.json").write_text(printed(output, query, 30, "json"))
    (tmp_path / "x.csv").write_text(printed(output, query, 30, "csv"))
    # Without the time, for which DuckDB's Python objects need a package more.
    wanted = duckdb.sql(f"{latest_sql(output)} SELECT * EXCLUDE (finished) FROM ({query})")
    rows = json.loads((tmp_path / "x.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [[name for name in row if name != "finished"] for row in rows] == [wanted.columns] * 3
    for row, line, (uri, caption, media, pts, *_) in zip(
        rows, lines, wanted.fetchall(), strict=True
    ):
        assert (row["uri"], row["caption"], row["media"], row["pts"]) == (uri, caption, media, pts)
        assert (row["two"], row["n"], row["nothing"]) == (2, None, None)
        assert (line["uri"], line["caption"], line["two"]) == (uri, caption or "", "2")
        assert (json.loads(line["media"]) if media else line["media"]) == (media or "")
    read = duckdb.sql(f"SELECT uri, caption FROM read_json('{tmp_path}/x.json') ORDER BY uri")
    assert read.fetchall() == [row[:2] for row in wanted.fetchall()]
    assert duckdb.sql(f"SELECT count(*) FROM read_csv('{tmp_path}/x.csv')").fetchall() == [(3,)]


def test_columns_of_one_name_are_all_there(output):
    (row, *_) = json.loads(printed(output, "SELECT 1 AS a, 2 AS a, 3 AS a", 80, "json"))
    assert row == {"a": 1, "a_1": 2, "a_2": 3}
    assert printed(output, "SELECT 1 AS a, 2 AS a", 80, "csv") == "a,a_1\n1,2\n"


def test_more_rows_than_a_table_shows(output, tmp_path: Path):
    query = "SELECT range AS k FROM range(2500)"
    assert "the first 100 rows" in printed(output, query, 80)
    assert len(json.loads(printed(output, query, 80, "json"))) == 2500
    for suffix in ("csv", "json", "parquet"):
        file = tmp_path / f"rows.{suffix}"
        assert call(output, query, "--to", file).exit_code == 0
        assert duckdb.sql(f"SELECT sum(k) FROM '{file}'").fetchall() == [(2500 * 2499 // 2,)]


def call(output: Path, query: str, *options: object):
    return CliRunner().invoke(main, ["sql", str(output), query, *map(str, options)])


def test_the_command_takes_formats(output, tmp_path: Path):
    result = call(output, "SELECT uri FROM latest ORDER BY uri", "--format", "csv")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "uri" and "bad\x1b[31m.mp4" in result.stdout
    assert call(output, "SELECT 1", "--format", "xml").exit_code == 2
    result = call(output, "SELECT 1", "--to", tmp_path / "x.xlsx")
    assert result.exit_code == 2 and "--to takes a .csv, .json or .parquet file" in result.output
    result = call(output, "SELECT 1", "--to", tmp_path / "none" / "x.csv")
    assert result.exit_code == 2 and "cannot be written" in result.output


def test_whole_videos_are_a_view(tmp_path: Path):
    output = Path(write_table(tmp_path / "out", clip_unit("m1", caption="x")))
    assert printed(output, "SELECT count(*) AS n, any_value(summary) FROM items", 80, "json") == (
        '[\n{"n": 0, "any_value(summary)": null}\n]\n'
    )
    names = {"run_id": "r", "recipe_id": "c", "items_id": "i", "status": "ok"}
    item = names | {"item_id": "1", "media_id": "m1", "uri": "/m1.mp4", "num_units": 2}
    table = pa.Table.from_pylist([item | {"num_failed_units": 0, "summary": "A film."}], ITEM)
    folder = output / "items" / "run_date=2026-01-01"
    write_parquet(table, f"{folder}/{file_name('r', 'i')}", Storage())
    assert "A film." in printed(output, "SELECT summary FROM items", 80)
    write_views(str(output), Storage())
    script = (output / "latest.sql").read_text()
    assert duckdb.sql(f"{script} SELECT summary FROM items").fetchall() == [("A film.",)]


@pytest.mark.parametrize(
    ("query", "hint", "wrong"),
    [
        ("SELECT captoin FROM latest", "did you mean caption?", "Candidate"),
        ("SELECT media.width_px FROM latest", "did you mean width?", "Candidate"),
        ("SELECT cuont(*) FROM latest", "did you mean count?", "views"),
        ("SELECT * FROM annotation", "did you mean annotations?", "single quotes"),
        ("SELECT * FROM item", "did you mean items?", "latest?"),
        ("SELECT * FROM rows", "the views are annotations, items and latest", "did you mean"),
        ("SELECT weather FROM latest", "`DESCRIBE latest` lists columns", "did you mean"),
        ('SELECT uri FROM latest WHERE status = "ok"', "single quotes: 'ok'", "did you mean"),
        ("SELECT * FORM latest", 'syntax error at or near "latest"', "did you mean"),
        ("SELECT status, count(*) FROM latest", "add it to the GROUP BY list", "did you mean"),
        ("SELECT caption + 1 FROM latest", "explicit type casts", "TINYINT"),
    ],
)
def test_the_hint_is_right(output, query: str, hint: str, wrong: str):
    with pytest.raises(UserError, match="the query failed") as error:
        printed(output, query, 80)
    assert hint in str(error.value) and wrong not in str(error.value), str(error.value)
