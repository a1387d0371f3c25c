"""A row class is declared once: its Arrow columns, writing and reading follow from it."""

from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pytest

from schemas.tables.columns import Column, from_row, from_table, schema_of, to_row, to_table


@dataclass(frozen=True, kw_only=True)
class Word:
    text: Annotated[str, Column("the word")]
    score: Annotated[float | None, Column("confidence", unit="1")] = None


@dataclass(frozen=True, kw_only=True)
class Page:
    number: Annotated[int, Column("page number", pa.int64())]
    title: Annotated[str, Column("title; null in old files", nullable=True)] = "untitled"
    first: Annotated[Word | None, Column("first word")] = None
    words: Annotated[tuple[Word, ...], Column("all words")] = ()
    sizes: Annotated[tuple[int, ...] | None, Column("sizes", unit="px")] = None


PAGES = [
    Page(number=1),
    Page(
        number=1 << 40,
        title="t",
        first=Word(text="a"),
        words=(Word(text="a"), Word(text="b", score=0.5)),
        sizes=(3, 4),
    ),
]


def test_the_schema_follows_from_the_annotations():
    schema = schema_of(Page)
    word = pa.struct([pa.field("text", pa.string(), nullable=False), ("score", pa.float64())])
    assert schema.equals(
        pa.schema(
            [
                pa.field("number", pa.int64(), nullable=False),
                ("title", pa.string()),
                ("first", word),
                pa.field("words", pa.list_(word), nullable=False),
                ("sizes", pa.list_(pa.int32())),
            ]
        )
    )
    assert schema.field("sizes").metadata == {b"description": b"sizes", b"unit": b"px"}


def test_rows_come_back_as_they_were_written():
    many = PAGES * 20
    assert from_table(to_table(many, schema_of(Page)), Page) == many


def test_a_null_in_a_column_that_an_old_file_lacked_is_the_default():
    assert from_row({"number": 1, "title": None, "words": None, "more": 2}, Page) == PAGES[0]
    assert from_row(to_row(PAGES[1]) | {"title": None}, Page).title == "untitled"
    with pytest.raises(TypeError, match="number"):
        from_row({"title": "t"}, Page)
