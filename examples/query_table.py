"""Query an annotation table with DuckDB.

    make demo
    python examples/query_table.py demo/output

``latest.sql`` in the output folder defines two views: ``latest`` has one row for each unit,
``annotations`` the rows of all runs. Times are PTS in seconds, boxes are pixels of the original.
"""

import sys
from pathlib import Path

import duckdb

QUERIES = {
    "words on screen, with the second at which they were read": """
        SELECT parse_filename(uri) AS file, span.pts_seconds, span.text
        FROM (SELECT uri, unnest(text_spans) AS span FROM latest)
        WHERE span.pts_seconds IS NOT NULL
        ORDER BY file, span.pts_seconds, span.text
    """,
    "the longest events": """
        SELECT parse_filename(uri) AS file, event.start_seconds, event.caption,
               event.end_seconds - event.start_seconds AS seconds
        FROM (SELECT uri, unnest(events) AS event FROM latest)
        ORDER BY seconds DESC, file, event.start_seconds LIMIT 5
    """,
    "objects by label, with their mean area in pixels": """
        SELECT found.label, count(*) AS objects,
               round(avg((found.box.x2 - found.box.x1) * (found.box.y2 - found.box.y1))) AS area
        FROM (SELECT unnest(objects) AS found FROM latest)
        GROUP BY found.label ORDER BY objects DESC, found.label LIMIT 10
    """,
    "failed units by error type": """
        SELECT error.type, count(*) AS units, any_value(error.message) AS example
        FROM latest WHERE status = 'failed' GROUP BY ALL ORDER BY units DESC
    """,
}


def connect(output: str) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection with the views of a local output folder."""
    connection = duckdb.connect()
    connection.execute(Path(output, "latest.sql").read_text())
    return connection


def main(output: str) -> None:
    """Print the answer to each query."""
    with connect(output) as connection:
        for title, query in QUERIES.items():
            print(title)
            connection.sql(query).show()


if __name__ == "__main__":
    main(*sys.argv[1:])
