"""Records to texts, and lists of records line by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar.data.metadata import read_rows
from mmar.data.packed import PackedRecords
from mmar.data.records import Texts, relative_path, texts_of, turns_of
from mmar.data.skipped import BadSample, Reason


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


GOOD = [
    ({"text": " A cat.\n"}, Texts("A cat.", (), ())),
    ({"text": ["A cat.", "One cat.", "A cat."]}, Texts("A cat.", ("One cat.",), ())),
    ({"text": "A cat.", "caption": "One cat.", "id": 7}, Texts("A cat.", ("One cat.",), ())),
    ({"caption": "猫", "text": None}, Texts("猫", (), ())),
    ({"conversations": said("<image>\nWhat?", "A cat.")}, Texts(None, (), (("What?", "A cat."),))),
    (
        {"conversations": said("What?\n<image>", "A cat.", "Where?", "Here.")},
        Texts(None, (), (("What?", "A cat."), ("Where?", "Here."))),
    ),
    ({"text": "", "conversations": said("<image>What?", "A cat.")}, Texts(None, (), (("What?", "A cat."),))),
    ({"text": "A cat.", "conversations": ""}, Texts("A cat.", (), ())),
    ({"text": "A cat.", "conversations": json.dumps(said("<image>Q", "A"))}, Texts("A cat.", (), (("Q", "A"),))),
]
BAD: list[tuple[dict[str, Any], Reason]] = [
    ({}, Reason.NO_TEXT),
    ({"label": 3, "text": None, "conversations": []}, Reason.NO_TEXT),
    ({"text": ""}, Reason.EMPTY_CAPTION),
    ({"text": " \n\t"}, Reason.EMPTY_CAPTION),
    ({"text": []}, Reason.EMPTY_CAPTION),
    ({"text": 7}, Reason.BAD_RECORD),
    ({"text": {"en": "A cat."}}, Reason.BAD_RECORD),
    ({"text": ["A cat.", 7]}, Reason.BAD_RECORD),
    ({"text": "half a pair \ud83d"}, Reason.NOT_UTF8),
    ({"text": "<image> of a cat"}, Reason.MARKER_IN_TEXT),
    ({"text": "a <|image_pad|>"}, Reason.MARKER_IN_TEXT),
    ({"text": "a cat<|im_end|>"}, Reason.MARKER_IN_TEXT),
    ({"conversations": {"from": "human"}}, Reason.BAD_CONVERSATION),
    ({"conversations": 7}, Reason.BAD_CONVERSATION),
    ({"conversations": "not JSON"}, Reason.BAD_RECORD),
    ({"conversations": "[]"}, Reason.BAD_CONVERSATION),
    ({"conversations": ["Q", "A"]}, Reason.BAD_CONVERSATION),
    ({"conversations": [{"from": "human"}]}, Reason.BAD_CONVERSATION),
    ({"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "A"}]}, Reason.BAD_CONVERSATION),
    ({"conversations": said("<image>Q")}, Reason.BAD_CONVERSATION),
    ({"conversations": said("<image>Q", "A", "Q")}, Reason.BAD_CONVERSATION),
    ({"conversations": said("<image>Q", "A")[::-1]}, Reason.BAD_CONVERSATION),
    ({"conversations": [{"from": "system", "value": "Be good."}, *said("<image>Q", "A")]}, Reason.BAD_CONVERSATION),
    ({"conversations": said("Q", "A")}, Reason.BAD_CONVERSATION),
    ({"conversations": said("Q", "A", "<image>Q", "A")}, Reason.BAD_CONVERSATION),
    ({"conversations": said("<image><image>Q", "A")}, Reason.BAD_CONVERSATION),
    ({"conversations": said("<image>", "A")}, Reason.BAD_CONVERSATION),
    ({"conversations": said("<image>Q", " ")}, Reason.BAD_CONVERSATION),
    ({"conversations": said("<image>Q", "<image>")}, Reason.MARKER_IN_TEXT),
    ({"conversations": said("<image>Q", "A", "<image>Q", "A")}, Reason.MARKER_IN_TEXT),
    ({"conversations": said("<image>Q<|vision_start|>", "A")}, Reason.MARKER_IN_TEXT),
    ({"text": "A cat.", "conversations": said("Q", "A")}, Reason.BAD_CONVERSATION),  # half a record is not used either
]


@pytest.mark.parametrize(("record", "expected"), GOOD)
def test_texts(record: dict[str, Any], expected: Texts) -> None:
    assert texts_of(record, "list:1") == expected


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_reasons(record: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(BadSample) as caught:
        texts_of(record, "list:1")
    assert caught.value.reason is reason, caught.value
    assert str(caught.value).startswith(f"list:1: {reason}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["<image>Q", "human", "gpt", "[]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "caption", "conversations", "from", "value", "image"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.dictionaries(st.sampled_from(["text", "caption", "conversations"]), JSON, max_size=3))
def test_any_record_gives_texts_or_a_reason(record: dict[str, Any]) -> None:
    try:
        texts = texts_of(record, "here")
    except BadSample:
        return
    assert texts.caption or texts.turns
    for text in (texts.caption or "x", *texts.captions, *(t for turn in texts.turns for t in turn)):
        assert text == text.strip() != ""


@pytest.mark.parametrize(
    "name",
    [
        "../x.jpg",
        "a/../../x.jpg",
        "/etc/passwd",
        "..",
        "a\\..\\..\\x.jpg",
        "C:\\x.jpg",
        "c:x.jpg",
        "\\\\host\\share\\x.jpg",
        "\\x",
    ],
)
def test_paths_that_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(BadSample, match="relative without") as caught:
        relative_path(name, "here")
    assert caught.value.reason is Reason.PATH_LEAVES_FOLDER


def test_paths_that_stay() -> None:
    kept = {"a.jpg": "a.jpg", "./b//a.jpg": "b/a.jpg", "..a/b...jpg": "..a/b...jpg", "http://host/a.jpg": "http:/host/a.jpg"}
    assert {name: relative_path(name, "here") for name in kept} == kept
    for name in (None, "", " ", 7, ["a.jpg"]):
        with pytest.raises(BadSample) as caught:
            relative_path(name, "here")
        assert caught.value.reason is Reason.NO_IMAGE


def test_a_conversation_of_many_turns() -> None:
    texts = [f"{kind} {i}" for i in range(50) for kind in ("question", "answer")]
    assert turns_of(said(f"<image>\n{texts[0]}", *texts[1:]), "") == tuple(zip(texts[::2], texts[1::2], strict=True))


def reasons(path: Path) -> list[tuple[str, str | None]]:
    rows = [(where, row.reason if isinstance(row, BadSample) else None) for where, row in read_rows(path, path.name)]
    for where, row in read_rows(path, path.name):
        assert not isinstance(row, BadSample) or str(row).startswith(f"{where}: ")
    return rows


def test_json_lines_go_on_after_a_bad_one(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"file_name": "a", "text": "with a byte-order mark"}',
        b"",
        b'{"file_name": "a", ',
        b'{"text": "caf\xe9"}',
        b"[1, 2]",
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b"\0\0",
        b'{"text": "one", "text": "another"}',
        b'{"file_name": "b"}\r',
    ]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines))
    good, bad = None, Reason.BAD_RECORD
    found = [good, bad, Reason.NOT_UTF8, bad, bad, bad, bad, bad, good]
    assert reasons(tmp_path / "m.jsonl") == [(f"m.jsonl:{i}", found.pop(0)) for i in (1, 3, 4, 5, 6, 7, 8, 9, 10)]


def test_csv_goes_on_after_a_bad_row(tmp_path: Path) -> None:
    lines = [
        b"\xef\xbb\xbffile_name,text",
        b'a.jpg,"A ""cat"", here"',
        b"b.jpg",
        b'c.jpg,"over\ntwo lines"',
        b"d.jpg,1,2",
        b"",
        b'e.jpg,"x"y',
        b"f.jpg,caf\xe9",
        b"g.jpg," + b"x" * (csv.field_size_limit() + 1),
        b"h.jpg,good",
        b'i.jpg,"never closed',
    ]
    (tmp_path / "m.csv").write_bytes(b"\n".join(lines))
    rows = list(read_rows(tmp_path / "m.csv", "m.csv"))
    assert [where for where, _ in rows] == [f"m.csv:{i}" for i in (2, 3, 5, 6, 8, 9, 10, 11, 12)]
    assert [i for i, (_, row) in enumerate(rows) if isinstance(row, BadSample)] == [1, 3, 4, 6, 8]
    assert rows[0][1] == {"file_name": "a.jpg", "text": 'A "cat", here'}
    assert rows[2][1] == {"file_name": "c.jpg", "text": "over\ntwo lines"}
    with pytest.raises(BadSample) as caught:  # a byte that is not UTF-8 spoils its own row only
        texts_of(rows[5][1], "m.csv:9")
    assert caught.value.reason is Reason.NOT_UTF8


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.json", b'[{"image": ', "must be JSON in UTF-8"),
        ("b.json", b'{"image": "a"}', "must be a JSON list of records, got dict"),
        ("c.json", b"\xff\xfe[\0", "must be JSON in UTF-8"),
        ("d.csv", b"name,text\n", "must name each column once and one file_name"),
        ("e.csv", b"file_name,text,text\n", "must name each column once"),
        ("f.csv", b"", "must name each column once"),
        ("g.parquet", b"", "must end in .jsonl, .csv, .json"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(read_rows(tmp_path / name, name))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.lists(st.text() | st.none(), max_size=4), max_size=10))
def test_packed_records_are_a_list(records: list[Any]) -> None:
    packed = PackedRecords(records)
    assert [packed[i] for i in range(len(packed))] == records
    assert packed.fingerprint == PackedRecords(iter(records)).fingerprint
    assert packed.fingerprint != PackedRecords([*records, None]).fingerprint
    with pytest.raises(IndexError, match="index must lie in"):
        packed[len(packed)]
    with pytest.raises(IndexError, match="index must lie in"):
        packed[-1]
