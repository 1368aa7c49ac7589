"""Texts with labels: every form of a file gives the same examples, and what is wrong is said with its line."""

import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data.examples import Examples
from recurra.data.labelled import labelled
from recurra.data.read import sources
from recurra.errors import DataError, UsageError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
ROWS = [
    ("What a film, and what music", "pos"),
    ("Two hours\tof my life", "neg"),
    ('He said "never", twice', "neg"),
    ("Ünïcode 漢字 👩‍👩‍👧", "pos"),
]
FORMS = ["csv", "csv.gz", "tsv", "jsonl", "ndjson.xz", "parquet", "parquet.gz", "txt", "ft", "folders"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), min_size=1).filter(
    str.strip
)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(rows: list[tuple[str, ...]], mark: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=mark).writerows(rows)
    return out.getvalue()


def written(folder: Path, form: str, rows: list[tuple[str, str]]) -> list[Path]:
    """The rows as files of a form."""
    kind, _, pack = form.partition(".")
    if kind == "folders":
        for number, (text, label) in enumerate(rows):
            write(folder / "data" / label / str(number), text + "\n")
        return sources([folder / "data"])
    if kind == "parquet":
        out = io.BytesIO()
        polars.DataFrame({"text": [text for text, _ in rows], "label": [label for _, label in rows]}).write_parquet(out)
        content = out.getvalue()
    elif kind in ("csv", "tsv"):
        content = table([("text", "label"), *rows], "," if kind == "csv" else "\t").encode()
    elif kind in ("jsonl", "ndjson"):
        content = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()
    else:
        content = "".join(f"__label__{label} {text}\n" for text, label in rows).encode()
    content = {"gz": gzip.compress, "xz": lzma.compress}.get(pack, bytes)(content)
    return [write(folder / f"some.{form}", content)]


def read(path: Path, content: str | bytes, **options: object) -> Examples:
    return labelled([write(path, content)], **options)  # type: ignore[arg-type]


def refusal(path: Path, content: str | bytes, **options: object) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        read(path, content, **options)
    return str(caught.value)


# The forms


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(tmp_path: Path, form: str) -> None:
    found = labelled(written(tmp_path, form, ROWS))
    assert sorted(zip(found.inputs, found.targets or [], strict=True)) == sorted((text, (a,)) for text, a in ROWS)
    assert found.kind == "text" and found.heads is None and not found.problems
    assert len(found.places) == len(ROWS)
    unlabelled = labelled(written(tmp_path, form, ROWS), wanted=False)
    assert unlabelled.inputs == found.inputs and unlabelled.targets is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(ANY_TEXT, st.sampled_from(["pos", "neg", "so so"])), min_size=1, max_size=6),
    form=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
)
def test_any_text_comes_out_of_a_table_as_it_is(tmp_path: Path, rows: list[tuple[str, str]], form: str) -> None:
    if form == "tsv":  # a cell with tabs and line ends both is taken for stray quotes
        rows = [(text.replace("\n", " "), label) for text, label in rows]
        rows = [row for row in rows if row[0].strip()] or ROWS
    found = labelled(written(tmp_path, form, rows))
    assert found.inputs == [text for text, _ in rows]
    assert found.targets == [(label,) for _, label in rows]


def test_a_place_is_the_line_where_a_row_begins(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", 'text,label\r\n"one\r\ntwo",a\r\n\r\nthree,b\r\n')
    assert found.inputs == ["one\r\ntwo", "three"]
    assert [place.rsplit(":", 1)[1] for place in found.places] == ["2", "5"]
    assert "1 blank lines are passed over" in found.notes


def test_files_follow_one_another_and_notes_that_differ_name_their_files(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", "text,label\ngood,pos\n")
    two = write(tmp_path / "two.jsonl", '{"review": "bad", "stars": 1}\n')
    found = labelled([one, two])
    assert (found.inputs, found.targets) == (["good", "bad"], [("pos",), ("1",)])
    assert found.notes == [
        f"{one}: text is column 'text', label is column 'label'",
        f"{two}: text is column 'review', label is column 'stars'",
    ]
    assert labelled([one, one]).notes == ["text is column 'text', label is column 'label'"]


def test_a_tsv_without_quoting_keeps_its_quotes(tmp_path: Path) -> None:
    lines = ['1\t" conan " is back', '0\t"', '1\t"a whole line"', "0\tplain"]
    found = read(tmp_path / "a.tsv", "label\ttext\n" + "\n".join(lines) + "\n")
    assert found.inputs == [line[2:] for line in lines]
    two = read(tmp_path / "b.tsv", 'label\ttext\n0\t"open\n1\tshut"\n')
    assert two.inputs == ['"open', 'shut"']
    quoted = read(tmp_path / "c.tsv", 'label\ttext\n0\t"a ""b"" c"\n1\t"d\n""e"""\n')
    assert quoted.inputs == ['a "b" c', 'd\n"e"']
    assert 'quotes (") around cells are taken off' in quoted.notes


@pytest.mark.parametrize(("mark", "said"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_csv_may_have_other_marks(tmp_path: Path, mark: str, said: str) -> None:
    found = read(tmp_path / "a.csv", table([("texto", "clase"), ("uno, dos", "a"), ("tres", "b")], mark))
    assert (found.inputs, found.targets) == (["uno, dos", "tres"], [("a",), ("b",)])
    assert f"columns are parted by {said}" in found.notes


def test_a_byte_order_mark_and_a_missing_last_line_end_change_nothing(tmp_path: Path) -> None:
    for name, content in [
        ("a.csv", "text,label\r\nx,a\r\ny,b"),
        ("a.jsonl", '{"text":"x","label":"a"}\r\n{"text":"y","label":"b"}'),
    ]:
        found = read(tmp_path / name, content.encode("utf-8-sig"))
        assert (found.inputs, found.targets) == (["x", "y"], [("a",), ("b",)])


def test_labels_are_written_as_their_file_writes_them(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": %s}' % label for label in ("3", "true", "false", '" pos "', "-2.5")]  # noqa: UP031
    assert read(tmp_path / "a.jsonl", "\n".join(lines)).targets == [("3",), ("true",), ("false",), ("pos",), ("-2.5",)]


def test_several_labels(tmp_path: Path) -> None:
    content = '{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": ["y"]}\n{"text": "c", "label": []}\n'
    assert read(tmp_path / "a.jsonl", content).targets == [("x", "y"), ("y",), ()]
    content = "text,label\na,x|y \nb,y\n"
    assert read(tmp_path / "a.csv", content, separator="|").targets == [("x", "y"), ("y",)]
    assert read(tmp_path / "a.csv", content).targets == [("x|y",), ("y",)]
    assert read(tmp_path / "a.txt", "__label__x __label__y\ta b\n__label__y c __label__d").targets == [
        ("x", "y"),
        ("y",),
    ]
    assert read(tmp_path / "a.txt", "__label__x __label__y\ta b\n__label__y c __label__d").inputs == [
        "a b",
        "c __label__d",
    ]
    frame = polars.DataFrame({"text": ["a", "b"], "label": [["x", "y"], ["y"]]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert labelled([tmp_path / "a.parquet"]).targets == [("x", "y"), ("y",)]
    assert read(tmp_path / "a.jsonl", '{"text": "a", "label": [" x ", 2]}').targets == [("x", "2")]


# Folders


def test_the_folder_of_a_text_is_its_label(tmp_path: Path) -> None:
    for name, text in [("pos/1.txt", "one\n\ntwo\n"), ("pos/2.txt", "three"), ("neg/1.txt", "a\tb")]:
        write(tmp_path / name, text)
    found = labelled(sources([tmp_path]))
    assert (found.inputs, found.targets) == (["a\tb", "one\n\ntwo", "three"], [("neg",), ("pos",), ("pos",)])
    assert found.notes == ["each file is one text, and the name of its folder the label"]
    assert labelled(sources([tmp_path]), wanted=False).notes == ["each file is one text"]


def test_files_with_marks_in_two_folders_are_no_classes(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / name, "\ufeff__label__x one\n__label__y two\n") for name in ("a/train.txt", "b/train.txt")
    ]
    assert labelled(paths).targets == [("x",), ("y",)] * 2
    paths = [write(tmp_path / name, "text,label\none,x\ntwo,y\n") for name in ("a/train.csv", "b/train.csv")]
    assert labelled(paths).targets == [("x",), ("y",)] * 2


def test_a_file_of_a_class_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    write(tmp_path / "pos" / "1", "fine")
    write(tmp_path / "neg" / "1", b"caf\xe9")
    write(tmp_path / "neg" / "2", " \n")
    with pytest.raises(DataError, match="not UTF-8"):
        labelled(sources([tmp_path]))
    found = labelled(sources([tmp_path]), tolerant=True)
    assert found.inputs == ["fine"]
    assert "not UTF-8" in found.problems[0] and found.problems[1].endswith("2:1 has no text")


# Which columns


def test_columns_are_known_by_their_names(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "id,Stars,title,Review\n1,5,On it,Good\n2,1,Off,Bad\n")
    assert (found.inputs, found.targets) == (["Good", "Bad"], [("5",), ("1",)])
    assert found.notes == ["text is column 'Review', label is column 'Stars'; not read: 'id', 'title'"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("2\tin his first stab at the form\n1\tone long string of cliches\n2\tif you ever\n1\tno\n", False),
        ("DESC\tHow did it leave\nNUM\tHow far\nDESC\tWhy\nNUM\tHow far is it\n", False),
        ("question\tHow are you\norder\tA coffee\nquestion\tWhy is that\norder\tTwo teas\n", False),
        ("good film\tpos\nbad film\tneg\n", False),
        ("klass\topinion held\na\tone thing\nb\tother\na\tthird thing\nb\tfourth\n", True),
        ("punkte\topinion held\n1\tone thing\n4\tother\n7\tthird thing\n", True),
    ],
)
def test_a_line_of_names_is_told_from_data(tmp_path: Path, content: str, names: bool) -> None:
    found = read(tmp_path / "a.tsv", content)
    assert len(found) == content.count("\n") - names
    assert any("no line of names" in note for note in found.notes) is not names
    assert {target for (target,) in found.targets or []} <= {
        "1",
        "2",
        "4",
        "7",
        "a",
        "b",
        "pos",
        "neg",
        "DESC",
        "NUM",
        "question",
        "order",
    }


def test_the_text_is_the_longest_column_that_seldom_repeats_itself(tmp_path: Path) -> None:
    content = "".join(f"word{i}\tthe very long name of a class {i % 3}\n" for i in range(40))
    found = read(tmp_path / "a.tsv", content)
    assert found.inputs[0] == "word0" and len(set(found.targets or [])) == 3
    assert read(tmp_path / "a.tsv", "yes\ta\nwhat a day\tb\n").inputs == ["yes", "what a day"]


def test_columns_said_by_name_or_number_win(tmp_path: Path) -> None:
    content = "a\tpos\tx one\nb\tneg\tx two\n"
    found = read(tmp_path / "a.tsv", content, text="-1", label="2")
    assert (found.inputs, found.targets) == (["x one", "x two"], [("pos",), ("neg",)])
    assert read(tmp_path / "a.tsv", content, text="1", label="3").inputs == ["a", "b"]
    content = "text,label,other,kind\nlong enough,a,short,b\n"
    found = read(tmp_path / "b.csv", content, text="other", label="kind")
    assert (found.inputs, found.targets) == (["short"], [("b",)])
    assert read(tmp_path / "b.csv", content, label="-1").targets == [("b",)]
    assert read(tmp_path / "c.csv", "2,1\nx y,a\n", text="2", label="1").inputs == ["1", "a"]


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (
            "NUM\tdist\tHow far is it\nLOC\tcity\tWhat county\n",
            {},
            ["label cannot be told", "2 such as 'dist'", "--label NUMBER"],
        ),
        ("a,b\n" * 2 + "".join(f"w{i},v{i}\n" for i in range(30)), {}, ["text cannot be told", "--text NUMBER"]),
        ("text\nx\n", {}, ["label cannot be told"]),
        ("text,label\nx,y\n", {"label": "stars"}, ["no column 'stars'", "'label' such as 'y'", "--label NAME"]),
        ("text,label\nx,y\n", {"label": "3"}, ["no column '3'"]),
        ("text,label\nx,y\n", {"label": "0"}, ["no column '0'"]),
        ("text,label\nx,y\n", {"label": "²"}, ["no column '²'"]),
        ("text,label\nx,y\n", {"text": "label", "label": "2"}, ["both given as column 'label'"]),
        ("text,label,label\nx,y,z\n", {}, ["2 columns 'label'", "by number"]),
        ("text,text,label\nx,y,z\n", {"text": "text"}, ["2 columns 'text'"]),
    ],
)
def test_columns_that_cannot_be_told_are_listed(tmp_path: Path, content: str, options: dict, said: list[str]) -> None:
    path = write(tmp_path / ("a.tsv" if "\t" in content else "a.csv"), content)
    with pytest.raises(UsageError) as caught:
        labelled([path], **options)
    assert all(part in str(caught.value) for part in said), caught.value


def test_labels_are_not_needed_to_predict(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "text,label\nx,\ny,b\n", wanted=False)
    assert (found.inputs, found.targets) == (["x", "y"], None)
    assert found.notes == ["text is column 'text'; not read: 'label'"]
    assert read(tmp_path / "a.csv", "text\nx\n", wanted=False, label="label").inputs == ["x"]
    assert read(tmp_path / "a.csv", "no\nyes\nyes\nyes", wanted=False).inputs == ["no", "yes", "yes", "yes"]
    found = read(tmp_path / "a.txt", "one\ttext\r\n\n__label__x two\n", wanted=False)
    assert found.inputs == ["one\ttext", "two"]
    assert "1 lines have marks __label__, which are not read" in found.notes
    assert "1 blank lines are passed over" in found.notes


def test_a_table_that_is_named_txt_is_read_as_one(tmp_path: Path) -> None:
    found = read(tmp_path / "yelp.txt", "Loved this place\t1\nNot good at all\t0\n")
    assert (found.inputs, found.targets) == (["Loved this place", "Not good at all"], [("1",), ("0",)])


# What is wrong


@pytest.mark.parametrize(
    ("name", "content", "first", "kept"),
    [
        ("a.csv", "text,label\nx,a\n ,b\nz,c\n", "3 has no text", ["x", "z"]),
        ("a.csv", "text,label\nx,a\ny, \nz,c\n", "3 has no label", ["x", "z"]),
        ("a.csv", "text,label\nx,a\ny\nz,c,\n", "3 has 1 columns, and the first row has 2 (and 1 more)", ["x"]),
        ("a.csv", 'text,label\nx,a\n"y" y,b\nz,c\n', "3 goes on after a closing quote", ["x", "z"]),
        ("a.csv", 'text,label\nx,a\n"y,b\nz,c\n', "3 opens a quote that is never closed", ["x"]),
        ("a.csv", "text,label\nx,a\ny\ry,b\nz,c\n", "3 has a carriage return", ["x", "z"]),
        ("a.tsv", "text\tlabel\nx\ta\ny\ty\tb\nz\tc\n", "3 has 3 columns", ["x", "z"]),
        (
            "a.jsonl",
            '{"text":"x","label":"a"}\n\n{"text":"y","label\n{"text":"z","label":1}',
            "3 is no JSON",
            ["x", "z"],
        ),
        ("a.jsonl", '{"text":"x","label":"a"}\n[1]\n', "2 is JSON, but no object", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n{"text":"y"}\n', "2 has no label", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n{"text":"y","label":{"z":1}}\n', "2 has no label", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n{"text":"y","label":["z",null]}\n', "2 has no label", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n{"text":"y","label":NaN}\n', "2 has no label", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n{"text":["y"],"label":"b"}\n', "2 has no text", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n{"text":"\\ud800","label":"b"}\n', "2 holds half of a surrogate", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n' + "[" * 200_000, "2 is JSON that cannot be read", ["x"]),
        ("a.jsonl", '{"text":"x","label":"a"}\n{"label":' + "9" * 5000 + "}", "2 is JSON that cannot be read", ["x"]),
        ("a.txt", "__label__a x\ny\n__label__b\n", "2 has no label (and 1 more)", ["x"]),
    ],
)
def test_a_row_that_cannot_be_read_is_said_with_its_line(
    tmp_path: Path, name: str, content: str, first: str, kept: list[str]
) -> None:
    message = refusal(tmp_path / name, content)
    assert f"{name}:{first}" in message
    found = read(tmp_path / name, content, tolerant=True)
    assert found.inputs == kept and len(found.targets or []) == len(kept) == len(found.places)
    assert len(found.problems) == (2 if "1 more" in first else 1)
    assert first.removesuffix(" (and 1 more)") in found.problems[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\n", "only the names of columns"),
        ("a.csv", "\n\n", "holds no row"),
        ("a.jsonl", "\n", "holds no row"),
        ("a.txt", "one\ntwo\n", "no line begins with a label"),
        ("a.csv", b"text,label\ncaf\xe9,a\n", "line 2) is not UTF-8"),
        ("a.csv", "text,label\nx,a\n".encode("utf-16"), "UTF-16"),
        ("a.csv.gz", gzip.compress(b"text,label\nx,a\n", mtime=0)[:-9], "cut or damaged"),
        ("a.parquet", b"PAR1 and no more", "no whole Parquet file"),
        ("a.json", "[]", "one object a line"),
        ("a.xlsx", b"PK\3\4", "save it as .csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    message = refusal(tmp_path / name, content)
    assert said in message and name.removesuffix(".gz") in message


def test_numbers_of_a_parquet_file_are_labels_and_nan_is_none(tmp_path: Path) -> None:
    frame = polars.DataFrame({"text": ["a", "b", "c", "d"], "label": [1.5, float("nan"), None, 2.0]})
    frame.write_parquet(tmp_path / "a.parquet")
    found = labelled([tmp_path / "a.parquet"], tolerant=True)
    assert (found.inputs, found.targets) == (["a", "d"], [("1.5",), ("2.0",)])
    assert [problem.rsplit(":", 1)[1] for problem in found.problems] == ["2 has no label", "3 has no label"]


def test_a_parquet_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    polars.DataFrame({"text": ["a", "b"] * 50, "label": ["x", "y"] * 50}).write_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for cut in range(1, len(whole), 37):
        assert "no whole Parquet file" in refusal(tmp_path / "b.parquet", whole[:cut])


def test_columns_are_not_asked_of_plain_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no columns"):
        read(tmp_path / "a.txt", "__label__a x\n", label="stars")


def test_absurd_sizes_are_read(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert read(tmp_path / "a.csv", f'text,label\n"{long}",a\nx,b\n').inputs == [long, "x"]
    hostile = "".join(json.dumps({"text": "x", "label": "a", f"key {i}": i}) + "\n" for i in range(5000))
    found = read(tmp_path / "a.jsonl", hostile)
    assert len(found) == 5000 and len(found.notes[0]) < 500


def test_a_hostile_name_is_printed_tamely(tmp_path: Path) -> None:
    message = refusal(tmp_path / os.fsdecode(b"a\x1b[2J\n\xe9.csv"), "text,label\nx,\n")
    assert message.isprintable() and "\\x1b[2J\\n" in message
    message = refusal(tmp_path / "a.csv", "te\x1b[2J,la\nb\x07,c\n", label="x")
    assert message.isprintable()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "options", "count", "classes"),
    [
        ("mr/mr.tsv.gz", {}, 10_662, 2),
        ("sst/fine.train.tsv.gz", {}, 8_544, 5),
        ("trec-questions/train.tsv.gz", {"label": "1"}, 5_452, 6),
        ("trec-questions/test.tsv.gz", {"label": "1"}, 500, 6),
        ("sentences-uci/sentences.tsv.gz", {}, 3_000, 2),
        ("opener-hotels/es.train.jsonl.gz", {}, 1_438, 4),
    ],
)
def test_real_data_has_the_counts_of_its_source(name: str, options: dict, count: int, classes: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data sets are absent")
    found = labelled([SHARED / name], **options)
    assert (len(found), len(set(found.targets or []))) == (count, classes)
