"""``reelscribe sql``: query the output in SQL with DuckDB, on any storage."""

from rich import box
from rich.console import Console
from rich.table import Table

from jobs.console.text import printable
from pipeline.output.views import connect
from pipeline.storage.storage import Storage, join
from schemas.errors import UserError

_SHOWN_ROWS = 100


def run(output: str, query: str, storage: Storage, console: Console, *, to: str | None) -> None:
    """Print the rows of a query, or write them to a file.

    query: of the views ``latest`` (one row for each unit) and ``annotations`` (all rows).
    to: a local .csv or .parquet file.

    Raises:
        UserError: there is no table, or DuckDB refuses the query.
    """
    import duckdb

    if not storage.list_files(join(output, "annotations"), "*/part-*.parquet"):
        raise UserError(f"{output} has no annotations: give the `output` of a job")
    with connect(output, storage) as db:
        try:
            found = db.sql(query)
            if found is None:
                return
            if to is not None:
                _write(found, to)
                return
            # Through Arrow, because DuckDB's conversion of times with a zone needs pytz.
            table = found.limit(_SHOWN_ROWS + 1).to_arrow_table()
        except duckdb.Error as error:
            raise UserError(f"the query failed: {error}") from None
    grid = Table(box=box.SIMPLE_HEAD)
    for name in table.column_names:
        grid.add_column(printable(name), overflow="fold")
    for row in zip(*table.slice(0, _SHOWN_ROWS).to_pydict().values(), strict=True):
        grid.add_row(*("" if value is None else printable(str(value)) for value in row))
    console.print(grid, markup=False)
    if table.num_rows > _SHOWN_ROWS:
        console.print(f"the first {_SHOWN_ROWS} rows; --to FILE writes all")


def _write(found: object, to: str) -> None:
    import duckdb

    assert isinstance(found, duckdb.DuckDBPyRelation)
    if to.endswith(".csv"):
        found.write_csv(to)
    elif to.endswith(".parquet"):
        found.write_parquet(to)
    else:
        raise UserError(f"--to takes a .csv or .parquet file, got {to}")
