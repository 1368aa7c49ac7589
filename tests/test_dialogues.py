"""Dialogues as pairs: what was said last, and what is said next."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data.dialogues import dialogues
from recurra.data.pairs import pairs
from recurra.errors import DataError, UsageError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
FOUR = ["hello", "hi, how can I help?", "a table for two", "for which day?"]


def lines(path: Path, *objects: Any) -> list[Path]:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")
    return [path]


def test_each_turn_answers_those_before_it(tmp_path: Path) -> None:
    found = dialogues(lines(tmp_path / "a.jsonl", {"turns": FOUR[:2]}, {"turns": FOUR}))
    assert found.inputs == ["hello", "hello", "hello\nhi, how can I help?", "hi, how can I help?\na table for two"]
    assert found.targets == [(FOUR[1],), (FOUR[1],), (FOUR[2],), (FOUR[3],)]
    assert [place.removeprefix(str(tmp_path)) for place in found.places] == [
        *("/a.jsonl:1 turn 2", "/a.jsonl:2 turn 2", "/a.jsonl:2 turn 3", "/a.jsonl:2 turn 4")
    ]
    assert found.notes == ["turns are under 'turns': text is up to 2 turns before each turn, label is that turn"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(2, 7), min_size=1, max_size=4), context=st.integers(1, 8))
def test_no_turn_is_lost_and_none_is_seen_too_early(tmp_path: Path, sizes: list[int], context: int) -> None:
    told = [[f"{dialogue}.{turn}" for turn in range(size)] for dialogue, size in enumerate(sizes)]
    paths = lines(tmp_path / "a.jsonl", *({"turns": turns} for turns in told))
    whole = dialogues(paths, context=context)
    assert whole.targets == [(turn,) for turns in told for turn in turns[1:]]
    for source, (target,) in zip(whole.inputs, whole.targets or [], strict=True):
        dialogue, turn = map(int, target.split("."))
        assert source.split("\n") == [f"{dialogue}.{at}" for at in range(turn)][-context:]
    parts = {side: dialogues(paths, context=context, speaker=side).targets or [] for side in ("second",)}
    if max(sizes) > 2:
        parts["first"] = dialogues(paths, context=context, speaker="first").targets or []
    assert sorted(target for some in parts.values() for target in some) == sorted(whole.targets or [])
    assert all(int(target.split(".")[1]) % 2 == (side == "second") for side in parts for (target,) in parts[side])


@pytest.mark.parametrize(
    ("text", "speaker"), [("text", "speaker"), ("utterance", "role"), ("value", "from"), ("content", None)]
)
def test_turns_may_be_objects(tmp_path: Path, text: str, speaker: str | None) -> None:
    told = [{text: turn, **({speaker: "UB"[at % 2]} if speaker else {}), "frames": []} for at, turn in enumerate(FOUR)]
    found = dialogues(lines(tmp_path / "a.jsonl", {"dialogue": told}), "dialogue", speaker="second", context=1)
    assert found.inputs == FOUR[::2] and found.targets == [(FOUR[1],), (FOUR[3],)]


def test_who_speaks_is_what_turns_say_and_not_their_order(tmp_path: Path) -> None:
    told = [{"speaker": who, "text": text} for who, text in zip("abbac", "vwxyz", strict=True)]
    paths = lines(tmp_path / "a.jsonl", {"turns": told})
    assert dialogues(paths, speaker="second").targets == [("w",), ("x",)]
    assert dialogues(paths, speaker="first").targets == [("y",)]
    assert dialogues(paths).targets == [("w",), ("x",), ("y",), ("z",)]


def test_white_space_inside_a_turn_does_not_make_two_of_it(tmp_path: Path) -> None:
    found = dialogues(lines(tmp_path / "a.jsonl", {"turns": [" one\r\n two\u2028", "b", "c"]}))
    assert found.inputs == ["one two", "one two\nb"]


def test_empty_turns_are_passed_over_and_their_speakers_are_not(tmp_path: Path) -> None:
    paths = lines(tmp_path / "a.jsonl", {"turns": ["a", "b", "", "d", " ", "", "g"]})
    found = dialogues(paths, context=3)
    assert found.inputs == ["a", "a\nb", "a\nb\nd"] and found.targets == [("b",), ("d",), ("g",)]
    assert [place.rsplit(" ")[-1] for place in found.places] == ["2", "4", "7"]
    assert "3 empty turns are passed over" in found.notes
    assert dialogues(paths, speaker="second").targets == [("b",), ("d",)]
    assert dialogues(paths, speaker="first").targets == [("g",)]


def test_to_predict_is_to_answer_the_last_turn(tmp_path: Path) -> None:
    paths = lines(tmp_path / "a.jsonl", {"turns": FOUR}, {"turns": FOUR[:1]})
    for found in (dialogues(paths, wanted=False, speaker="first"), pairs(paths, wanted=False)):
        assert found.inputs == ["a table for two\nfor which day?", "hello"] and found.targets is None
        assert [place.rsplit(":")[-1] for place in found.places] == ["1 turn 5", "2 turn 2"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"id": 1}, "has no list of turns under 'turns'"),
        ({"turns": "hello"}, "has no list of turns under 'turns'"),
        ({"turns": []}, "has no turn"),
        ({"turns": ["alone"]}, "has one turn only"),
        ({"turns": ["a", 3, "c"]}, "has a turn 2 that is no text"),
        (
            {"turns": ["a", {"words": "b"}]},
            "has a turn 2 that is no text: wanted a text, or an object with a text as text,",
        ),
        ({"turns": ["a", {"text": None}]}, "has a turn 2 that is no text"),
        ({"turns": ["a", " \n"]}, "has one turn only"),
        (["a", "b"], "is JSON, but no object"),
    ],
)
def test_a_line_that_is_no_dialogue_is_said_with_its_place(tmp_path: Path, bad: Any, words: str) -> None:
    paths = lines(tmp_path / "a.jsonl", {"turns": FOUR}, bad, {"turns": FOUR})
    with pytest.raises(DataError) as caught:
        dialogues(paths)
    assert str(caught.value).startswith(f"{paths[0]}:2 {words}")
    found = dialogues(paths, tolerant=True)
    assert len(found) == 6 and len(found.problems) == 1 and found.problems[0].startswith(f"{paths[0]}:2 {words}")


def test_a_turn_without_a_name_among_named_ones_matters_only_where_names_do(tmp_path: Path) -> None:
    told = [{"speaker": "a", "text": "x"}, {"text": "y"}, {"speaker": "b", "text": "z"}]
    paths = lines(tmp_path / "a.jsonl", {"turns": told})
    assert dialogues(paths).targets == [("y",), ("z",)]
    with pytest.raises(DataError, match=r"a.jsonl:1 has a turn 2 that does not say who speaks"):
        dialogues(paths, speaker="first")


def test_dialogues_without_a_pair_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 dialogues in which the first speaker never answers"):
        dialogues(lines(tmp_path / "a.jsonl", {"turns": FOUR[:2]}), speaker="first")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"b.jsonl holds no dialogue"):
        dialogues([tmp_path / "b.jsonl"])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"context": 0}, "context was given as 0 turns"), ({"speaker": "third"}, "speaker was given as 'third'")],
)
def test_a_wrong_call_of_dialogues_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        dialogues(lines(tmp_path / "a.jsonl", {"turns": FOUR}), **options)


def test_only_json_lines_hold_dialogues(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("hello\n")
    with pytest.raises(DataError, match=r"b.txt was given as dialogues: wanted a .jsonl file"):
        dialogues([*lines(tmp_path / "a.jsonl", {"turns": FOUR}), tmp_path / "b.txt"])


@pytest.mark.parametrize("column", ["turns", "dialogue", "dialog", "conversation"])
def test_pairs_know_dialogues_by_their_lists(tmp_path: Path, column: str) -> None:
    paths = lines(tmp_path / "a.jsonl", {"id": 1, column: FOUR})
    for found in (pairs(paths), pairs(paths, text=column)):
        assert found == dialogues(paths, column)
    assert pairs(paths, context=1, speaker="second") == dialogues(paths, column, context=1, speaker="second")


def test_pairs_take_lists_of_any_name_that_is_given(tmp_path: Path) -> None:
    paths = lines(tmp_path / "a.jsonl", {"acts": FOUR, "text": "a play", "label": "a summary"})
    assert pairs(paths, text="acts").targets == [(turn,) for turn in FOUR[1:]]
    assert pairs(paths).targets == [("a summary",)]


def test_a_dialogue_that_is_one_text_is_a_column_like_others(tmp_path: Path) -> None:
    paths = lines(tmp_path / "a.jsonl", {"dialogue": "A: hello. B: hi.", "summary": "They greet."})
    assert pairs(paths, text="dialogue", label="summary").targets == [("They greet.",)]


def test_pairs_refuse_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'turns' holds turns, which are both sides"):
        pairs(lines(tmp_path / "a.jsonl", {"turns": FOUR, "summary": "x"}), text="turns", label="summary")
    (tmp_path / "b.tsv").write_text("en\tes\na\tb\n")
    for options in ({"context": 1}, {"speaker": "first"}):
        with pytest.raises(UsageError, match=r"b.tsv holds no dialogues, and context and speaker are for them"):
            pairs([tmp_path / "b.tsv"], text="en", label="es", **options)  # type: ignore[arg-type]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("part", "told", "turns"), [("train", 3_830, 58_306), ("dev", 2_098, 38_768), ("test", 2_921, 49_726)]
)
def test_real_dialogues_have_the_counts_of_their_source(part: str, told: int, turns: int) -> None:
    path = SHARED / "sgd-dialogues" / f"{part}.jsonl.gz"
    if not path.exists():
        pytest.skip("the shared data sets are absent")
    empty = 2 if part == "test" else 0
    assert len(pairs([path])) == turns - told - empty
    system = len(pairs([path], speaker="second"))
    assert system + len(pairs([path], speaker="first")) == turns - told - empty
    assert system == turns // 2 - empty  # users begin, and the system has the last word
    assert len(pairs([path], wanted=False)) == told
