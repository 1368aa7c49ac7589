"""Word vectors: every format gives the same numbers, and questions are answered as by hand."""

import gzip
import json
import lzma
import math
import os
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import Shell

import recurra
from recurra.embed.evaluate import evaluate, spearman
from recurra.embed.vectors import FASTTEXT, Vectors, _hash, load, subwords

WORDS = ["king", "queen", "man", "woman", "zürich", "kingdom"]


@pytest.fixture
def vectors() -> Vectors:
    """Royal and female are directions; kingdom lies near king, and zürich nowhere near."""
    values = [[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0.1, 0, 0, -1], [1, 0, 0.9, 0.2]]
    return Vectors(WORDS, np.array(values, np.float32))


def written(vectors: Vectors, folder: Path, kind: str) -> Path:
    """The vectors as a file of one of the formats."""
    lines = [f"{word} {' '.join(repr(float(x)) for x in vectors[word])}" for word in vectors.words]
    head = f"{len(vectors)} {vectors.size}"
    path = folder / f"some{kind}"
    if kind == "":
        vectors.save(path)
    elif kind == ".bin":
        parts = [word.encode() + b" " + vectors[word].astype("<f4").tobytes() + b"\n" for word in vectors.words]
        path.write_bytes(head.encode() + b"\n" + b"".join(parts))
    elif kind.startswith(".txt"):
        text = "\n".join(lines).encode() + b"\n"
        path.write_bytes(gzip.compress(text) if kind.endswith(".gz") else text)
    else:
        text = "\n".join([head, *(line + " " for line in lines)]).encode()  # fastText leaves a blank at the end
        path.write_bytes(lzma.compress(text) if kind.endswith(".xz") else text)
    return path


@pytest.mark.parametrize("kind", ["", ".txt", ".txt.gz", ".vec", ".vec.xz", ".bin"])
def test_every_format_gives_the_same_vectors(vectors: Vectors, tmp_path: Path, kind: str) -> None:
    path = written(vectors, tmp_path, kind)
    found = load(path)
    assert found.words == WORDS
    np.testing.assert_array_equal(found.values, vectors.values)
    some = load(path, only=["woman", "zürich", "nobody"])
    assert some.words == ["woman", "zürich"]
    np.testing.assert_array_equal(some["zürich"], vectors["zürich"])
    assert some.covered(["woman", "nobody"]) == 0.5


def fasttext_model(folder: Path, words: list[str], matrix: np.ndarray, buckets: int, least: int, most: int) -> Path:
    """A model as fastText 0.9 writes it: arguments, dictionary, then the rows of words and of buckets."""
    head = struct.pack("<ii", FASTTEXT, 12) + struct.pack(
        "<12i", matrix.shape[1], 5, 5, 1, 5, 1, 2, 2, buckets, least, most, 100
    )
    head += struct.pack("<d", 1e-4) + struct.pack("<iiiqq", len(words), len(words), 0, 100, -1)
    entries = b"".join(word.encode() + b"\0" + struct.pack("<qb", 3, 0) for word in words)
    body = struct.pack("<b", 0) + struct.pack("<qq", *matrix.shape) + matrix.astype("<f4").tobytes()
    path = folder / "model.bin"
    path.write_bytes(head + entries + body)
    return path


def test_a_vector_of_fasttext_is_the_mean_of_the_word_and_its_parts(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(3 + 50, 4)).astype(np.float32)
    path = fasttext_model(tmp_path, ["</s>", "cat", "été"], matrix, 50, 3, 4)
    found = load(path)
    parts = ["<ca", "<cat", "cat", "cat>", "at>"]
    assert subwords("cat", 3, 4) == parts
    want = matrix[[1, *(3 + _hash(part) % 50 for part in parts)]].mean(0)
    np.testing.assert_allclose(found["cat"], want, rtol=1e-6)
    assert load(path, only=["été"]).words == ["été"]
    np.testing.assert_array_equal(found["</s>"], matrix[0])  # the end of a line has no parts
    path = fasttext_model(tmp_path, ["</s>", "cat", "été"], matrix[:-1], 50, 3, 4)
    with pytest.raises(recurra.DataError, match="wanted 53 x 4"):
        load(path)
    # The published test values of FNV-1a with 32 bits, and one of a byte above 127, which fastText takes as negative.
    assert (_hash(""), _hash("a"), _hash("foobar")) == (0x811C9DC5, 0xE40C292C, 0xBF9CF968)
    assert _hash("é") == (((((0x811C9DC5 ^ 0xFFFFFFC3) * 16777619) & 0xFFFFFFFF) ^ 0xFFFFFFA9) * 16777619) & 0xFFFFFFFF


def test_neighbours_and_analogies_are_those_of_the_numbers(vectors: Vectors) -> None:
    assert vectors.analogy(["king", "woman"], ["man"])[0].word == "queen"
    assert vectors.near("king", 1)[0].word == "kingdom"
    near = vectors.near("king", 5)
    assert [one.value for one in near] == sorted((one.value for one in near), reverse=True)
    cosine = 2 / (math.sqrt(2) * math.sqrt(3))
    assert {one.word: one.value for one in near}["queen"] == pytest.approx(cosine)
    far = vectors.near("king", 5, "euclidean")
    assert far[0].value == pytest.approx(math.hypot(0.1, 0.2), rel=1e-3) and far[-1].word == "zürich"
    with pytest.raises(recurra.UsageError, match="no vector of 'kin' among 6 words; there is king"):
        vectors.near("kin")
    with pytest.raises(recurra.UsageError, match="there are cosine, euclidean"):
        vectors.near("king", metric="manhattan")  # type: ignore[arg-type]


def test_questions_and_pairs_are_counted_as_by_hand(vectors: Vectors, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text(
        ": royal\nMan woman king queen\nwoman man queen king\n: places\nking zürich nowhere zürich\nman king woman kingdom\n"
    )
    report = evaluate(vectors, tmp_path / "questions.txt")
    assert (report["asked"], report["given"]) == (3, 4)
    assert report["sections"]["royal"] == {"value": 1.0, "asked": 2, "given": 2}
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert evaluate(vectors, tmp_path / "questions.txt", fold=False)["asked"] == 2
    (tmp_path / "pairs.tsv").write_text(
        "# judged\none\tother\tscore\nking\tkingdom\t9\nking\tqueen\t7.5\nking\tzürich\t1\nking\tx\t3\n"
    )
    report = evaluate(vectors, tmp_path / "pairs.tsv")
    assert (report["spearman"], report["asked"], report["given"]) == (pytest.approx(1), 3, 4)
    (tmp_path / "pairs.txt").write_text(": family\nman woman\nking queen\n")
    assert evaluate(vectors, tmp_path / "pairs.txt")["given"] == 2


def test_the_given_words_are_no_answers(tmp_path: Path) -> None:
    """b - a + c lies nearest to c itself."""
    vectors = Vectors(["a", "b", "c", "d"], np.array([[1, 0], [1, 0.2], [0, 1], [0.3, 1]], np.float32))
    (tmp_path / "questions.txt").write_text(": letters\na b c d\n")
    assert evaluate(vectors, tmp_path / "questions.txt")["accuracy"] == 1.0
    assert vectors.analogy(["b", "c"], ["a"])[0].word == "d"


def test_equal_values_share_their_rank() -> None:
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486833)
    assert math.isnan(spearman(np.array([1.0, 1]), np.array([1.0, 2])))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"king 1 2\nqueen 1\n", "line 2 has 1 numbers, wanted a word and 2"),
        ("a.txt", b"king 1 2\nqueen 1 x\n", "could not convert string to float"),
        ("a.vec", b"2 3\nking 1 2 3\nqueen 1 2\n", "line 3 has 2 numbers"),
        ("a.bin", b"2 3\nking \0\0\0\0\0\0\0\0\0\0\0\0", "ends within word 2 of 2"),
        ("a.bin", b"nothing of the kind", "wanted `words size`"),
        ("a.txt", b"\n", "wanted `word number number ...`"),
        ("a.bin", struct.pack("<ii", FASTTEXT, 12) + b"\0\0", "was cut"),
        ("a.vec.gz", b"no gzip", "a.vec.gz"),
        ("nothing.txt", None, "nothing.txt"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(recurra.DataError, match=words.replace("`", ".").replace(" ...", "")):
        load(tmp_path / name)


def test_a_word_of_glove_may_hold_a_blank(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("of 1 2\n. . 3 4\n")
    assert load(tmp_path / "glove.txt").words == ["of", ". ."]


def test_the_command_asks_the_vectors(vectors: Vectors, tmp_path: Path, shell: Shell) -> None:
    file = written(vectors, tmp_path, ".txt")
    near = json.loads(shell("embed", "near", "king", "--vectors", file, "--count", 2, "--json").out)
    assert [one["word"] for one in near["neighbours"]] == ["kingdom", "queen"]
    assert "queen" in shell("embed", "analogy", "king", "-", "man", "+", "woman", "--vectors", file).out.splitlines()[0]
    (tmp_path / "questions.txt").write_text(": royal\nman woman king queen\n")
    told = shell("embed", "evaluate", tmp_path / "questions.txt", "--vectors", file).out
    assert "100.0% right, 1 of 1 have vectors" in told
    page = tmp_path / "map.html"
    assert shell("embed", "map", "king", "queen", "man", "--vectors", file, "--out", page).code == 0
    assert "queen" in page.read_text() and 'src="http' not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["near", "emperor"], 2, "no vector of 'emperor'"),
        (["near", "king", "--metric", "taxi"], 2, "there are cosine"),
        (["analogy", "king", "man"], 2, "no + or - before 'man'"),
        (["analogy", "king", "-"], 2, "no sum of words"),
        (["map", "king", "emperor", "man"], 2, "no vector of 'emperor'"),
        (["map", "king", "man"], 2, "wanted at least 3"),
        (["near", "king", "--device", "cuda"], 2, "runs on the cpu"),
    ],
)
def test_wrong_calls_are_answered_in_words(
    vectors: Vectors, tmp_path: Path, shell: Shell, arguments: list[str], code: int, words: str
) -> None:
    answer = shell("embed", *arguments, "--vectors", written(vectors, tmp_path, ".vec"))
    assert answer.code == code and words in answer.said


@pytest.mark.parametrize("model", ["skip-gram", "cbow"])
@pytest.mark.parametrize("loss", ["negative-sampling", "hierarchical-softmax"])
@pytest.mark.parametrize("parts", [False, True])
def test_vectors_are_learnt_from_text(tmp_path: Path, shell: Shell, model: str, loss: str, parts: bool) -> None:
    pytest.importorskip("gensim", reason="gensim is not installed")
    (tmp_path / "text.txt").write_text("The cat sat on the mat\nthe dog sat on the rug\n" * 50)
    options = [
        "--model",
        model,
        "--loss",
        loss,
        "--size",
        8,
        "--epochs",
        2,
        "--lower",
        "--threads",
        1,
        *(["--subwords"] if parts else []),
    ]
    told = shell("embed", "train", tmp_path / "text.txt", "--out", tmp_path / "learnt", *options, "--json")
    assert json.loads(told.out)["words"] == 7
    assert set(load(tmp_path / "learnt").words) == {"the", "cat", "sat", "on", "mat", "dog", "rug"}
    answer = shell("embed", "train", tmp_path / "text.txt", "--out", tmp_path / "none", "--least", 1000)
    assert answer.code == 3 and "--least 1" in answer.said


# --- in a training ---


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The king and the queen saw a man and a woman. " * 60)
    return path


WORDS_RUN = {"tokens": {"kind": "words"}, "train": {"rows": 4, "chunk": 8, "validations": 2}}


def table_of(task: recurra.Task, *words: str) -> np.ndarray:
    """Rows of the embedding, of words with the blank before them."""
    tokens = task.tokens  # type: ignore[attr-defined]
    return np.stack([task.model.embedding.weight[tokens.encode(f" {word}")[0]].detach().numpy() for word in words])


@pytest.mark.parametrize(("frozen", "moved"), [(1.0, False), (0.5, True), (0.0, True)])
def test_a_training_starts_from_vectors_and_learns_them_when_it_may(
    vectors: Vectors, text: Path, tmp_path: Path, frozen: float, moved: bool
) -> None:
    file, said = written(vectors, tmp_path, ".txt"), []
    settings = {**WORDS_RUN, "embed": {"frozen": frozen}}
    note = lambda kind, **fields: said.append(fields["text"]) if kind == "note" else None  # noqa: E731
    task = recurra.train(
        "language",
        text,
        out=tmp_path / "run",
        hidden=8,
        steps=6,
        threads=1,
        vectors=str(file),
        settings=settings,
        tell=note,
    )
    rows = table_of(task, "king", "queen", "man", "woman")
    want = np.stack([vectors[word] for word in ("king", "queen", "man", "woman")])
    assert (np.abs(rows - want).max() > 1e-4) == moved
    assert np.abs(rows - want).max() < 0.5, "it began there"
    assert len(said) == 1 and said[0].startswith("44.4% of the 9 words of the vocabulary have a vector")
    file.unlink()
    again = recurra.load(tmp_path / "run")
    np.testing.assert_array_equal(table_of(again, "king"), rows[:1])


def test_a_run_with_vectors_resumes_exactly_without_their_file(vectors: Vectors, text: Path, tmp_path: Path) -> None:
    file = written(vectors, tmp_path, ".vec")
    settings = {**WORDS_RUN, "embed": {"frozen": 0.5}}
    options = dict(hidden=8, steps=6, threads=1, vectors=str(file), settings=settings)

    def stop_at_three(kind: str, **fields: object) -> None:
        if kind == "step" and fields["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    whole = recurra.train("language", text, out=tmp_path / "whole", **options)
    with pytest.raises(recurra.Interrupted):
        recurra.train("language", text, out=tmp_path / "parts", tell=stop_at_three, **options)
    file.unlink()
    parts = recurra.train("language", text, out=tmp_path / "parts")
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert one.equal(other)


def test_vectors_that_are_not_there_cannot_be_held(text: Path, tmp_path: Path) -> None:
    settings = {"tokens": {"kind": "words"}, "embed": {"frozen": 0.5}}
    with pytest.raises(recurra.UsageError, match=r"embed\.frozen holds word vectors, and there are none"):
        recurra.train("language", text, out=tmp_path / "run", steps=2, hidden=4, settings=settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens": {"kind": "characters"}}, "give --set tokens.kind=words"),
        ({"tokens": {"kind": "words"}, "embed": {"size": 7}}, "have 4 numbers, and embed.size was 7"),
        ({"tokens": {"kind": "words"}, "embed": {"tied": True}}, "embed.tied"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_and_leave_no_run(
    vectors: Vectors, text: Path, tmp_path: Path, settings: dict[str, dict[str, object]], words: str
) -> None:
    file = written(vectors, tmp_path, ".bin")
    with pytest.raises(recurra.UsageError, match=words):
        recurra.train("language", text, out=tmp_path / "run", steps=2, hidden=4, vectors=str(file), settings=settings)
    assert not (tmp_path / "run" / "config.toml").exists()
