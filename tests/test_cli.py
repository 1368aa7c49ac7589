"""The command line: one clear line and the right exit code for whatever is wrong, and nothing lost."""

import io
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer, Shell

import recurra
import recurra.errors
from recurra import cli

SOURCES = str(Path(recurra.errors.__file__).parents[1])
COMMANDS = [
    "train",
    "generate",
    "evaluate",
    "predict",
    "check",
    "probe",
    "demo",
    "recall",
    "embed",
    "embed train",
    "embed near",
    "embed analogy",
    "embed evaluate",
    "embed map",
    "bench",
    "bench language",
    "bench cells",
    "bench kernels",
    "bench seq2seq",
    "bench memory",
]
SETTINGS = [part for setting in ("train.rows=4", "train.chunk=8") for part in ("--set", setting)]
SMALL = ["--hidden", "8", "--threads", "1", *SETTINGS]


def child(*arguments: object, **more: Any) -> Answer:
    """The command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "recurra", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1", **more.pop("env", {})},
        **more,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, some = tmp_path_factory.mktemp("text") / "text.txt", random.Random(0)
    path.write_text("".join(some.choice(["the ", "cat ", "sat.\n", "é "]) for _ in range(700)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A run folder."""
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = {"train": {"rows": 4, "chunk": 8, "validations": 2}}
    recurra.train("language", text, out=out, hidden=8, steps=4, threads=1, settings=settings)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Bad data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["data.txt", "does not exist"]),
        (b"", ["data.txt", "empty"]),
        (b"a", ["1 character", "wanted at least 21", "--valid"]),
        (b"ab\0\x01cd" * 50, ["data.txt", "binary", "--set tokens.kind=bytes"]),
        (b"a line\ncaf\xe9 au lait" * 20, ["data.txt", "byte 0xE9 at offset 10 (line 2)", "iconv"]),
        ("text ".encode("utf-16") * 50, ["UTF-16", "iconv"]),
    ],
    ids=["missing", "empty", "one character", "binary", "latin-1", "utf-16"],
)
def test_bad_data_is_refused_with_its_place_and_remedy(
    content: bytes | None, words: list[str], shell: Shell, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "data.txt").write_bytes(content)
    answer = shell("train", "language", "data.txt", "--out", "run", "--steps", 2, *SMALL)
    assert answer.code == 3
    assert answer.out == ""
    assert all(word in answer.said for word in words), answer.said
    if content is not None:
        assert (tmp_path / "data.txt").read_bytes() == content
    (tmp_path / "data.txt").write_text("better text " * 50)  # the folder can be used once the data is mended
    assert shell("train", "language", "data.txt", "--out", "run", "--steps", 2, *SMALL).code == 0


def test_a_folder_with_nothing_in_it_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in (["train", "language", "empty", "--out", "run"], ["check", "language", "empty"]):
        answer = shell(*command)
        assert answer.code == 3
        assert "empty holds no file" in answer.said


def test_bytes_take_any_file(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(random.Random(0).randbytes(900))
    out = tmp_path / "run"
    assert (
        shell("train", "language", "data.bin", "--out", out, "--steps", 2, *SMALL, "--set", "tokens.kind=bytes").code
        == 0
    )
    assert shell("generate", out, "--length", 5).code == 0


def test_a_line_of_five_megabytes_is_checked_and_its_length_is_told(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("short\n" + "word " * 1_000_000)
    answer = shell("check", "language", "long.txt", "--json")
    assert answer.code == 0
    report = json.loads(answer.out)
    assert (report["longest_line"], report["lines"], report["characters"]) == (5_000_000, 2, 5_000_006)
    assert any("longest line" in words for words in report["warnings"])


def test_evaluating_bad_data_is_refused_and_leaves_the_run_as_it_was(
    shell: Shell, trained: Path, tmp_path: Path
) -> None:
    before = contents(trained)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("nosuch.txt", "latin.txt"):
        answer = shell("evaluate", trained, name)
        assert answer.code == 3
        assert name in answer.said
    assert contents(trained) == before


# Wrong calls


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cell", "lsmt"], ["'lsmt'", "lstm"]),
        (["--learner", "bppt"], ["'bppt'", "bptt"]),
        (["--set", "model.hiden=3"], ["model.hiden", "did you mean 'hidden'"]),
        (["--set", "optimiser.rate=3"], ["optimiser", "did you mean 'optimizer'"]),
        (["--set", "cell.nosuch=3"], ["cell.nosuch"]),
        (["--set", "task.nosuch=3"], ["task.nosuch", "language has none"]),
        (["--set", "hidden=3"], ["'hidden=3'", "section.key=value"]),
        (["--set", "model.dropout=2"], ["model.dropout was 2", "less than 1", "auto"]),
        (["--set", "model.hidden=-1"], ["model.hidden was -1"]),
        (["--set", "optimizer.rate=-1"], ["optimizer.rate was -1"]),
        (["--set", "optimizer.name=adamm"], ["optimizer.name", "'adamm'", "'adamw'"]),
        (["--set", "train.seed=99999999999999999999999"], ["train.seed"]),
        (["--set", "embed.kind=onehot", "--set", "embed.tied=true"], ["one-hot", "embed.tied"]),
        (["--steps", "0"], ["--steps"]),
        (["--hidden", "-1"], ["--hidden"]),
        (["--hidden", "many"], ["--hidden"]),
        (["--threads", "0"], ["--threads"]),
        (["--epochs", "-1"], ["train.epochs was -1"]),
        (["--minutes", "-1"], ["train.minutes was -1"]),
        (["--minutes", "nan"], ["train.minutes was nan"]),
        (["--minutes", "inf"], ["train.minutes was inf"]),
        (["--epochs", "1e300"], ["train.epochs was 1e+300"]),
        (["--steps", "9" * 400], ["train.steps was 999"]),
        (["--steps", "5", "--minutes", "1"], ["--minutes", "--steps", "one of them"]),
        (["--device", "nosuch"], ["'nosuch'", "cpu"]),
        (["--config", "nosuch.toml"], ["nosuch.toml", "TOML"]),
        (["--lenth", "3"], ["--lenth"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_named_and_leaves_nothing_behind(
    options: list[str], words: list[str], shell: Shell, text: Path, tmp_path: Path
) -> None:
    budget = [] if set(options) & {"--steps", "--minutes", "--epochs"} else ["--steps", "2"]
    answer = shell("train", "language", text, "--out", "run", *budget, *SETTINGS, *options)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert all(word in answer.said for word in words), answer.said
    assert not (tmp_path / "run").exists()


def test_a_refused_start_of_folds_or_of_a_stream_leaves_nothing_behind_either(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell("train", "classify", "synthetic:parity", "--folds", 2, "--cell", "nosuch").code == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("no row\n"))
    assert shell("train", "forecast", "-").code == 3
    assert not (tmp_path / "runs").exists()


def test_what_was_there_before_a_refused_start_stays(shell: Shell, text: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert shell("train", "language", text, "--out", "run", "--steps", 2, "--cell", "nosuch").code == 2
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"


def test_a_folder_with_a_config_of_something_else_is_no_damaged_run(shell: Shell, text: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.toml").write_text("mine = 1")
    answer = shell("train", "language", text, "--out", "project", "--steps", 2)
    assert answer.code == 2
    assert "not of recurra; choose another --out" in answer.said
    assert (tmp_path / "project" / "config.toml").read_text() == "mine = 1"


def test_a_run_is_asked_for_what_it_was_trained_to(shell: Shell, trained: Path, tmp_path: Path) -> None:
    parity = ("classify", "synthetic:parity:5", "--hidden", 4, "--steps", 1, "--threads", 1)
    assert shell("train", *parity, "--out", "parity").code == 0
    answer = shell("generate", "parity")
    assert answer.code == 2 and "trained to classify" in answer.said and "recurra predict parity FILE" in answer.said
    answer = shell("predict", "parity", trained / "config.toml", "--beam", 2, "--attention", "page.html")
    assert answer.code == 2 and "by beam, attention" in answer.said and "trained to classify" in answer.said
    assert shell("train", *parity, "--out", "folds", "--folds", 2).out.endswith("A run for each fold is in folds\n")
    answer = shell("generate", "folds")
    assert answer.code == 3 and f"name one of them, such as {Path('folds/fold-1')}" in answer.said


def test_a_page_cannot_take_the_place_of_a_folder(shell: Shell, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    answer = shell("probe", trained, "the cat", "--out", "folder")
    assert answer.code == 2 and "'folder' is a directory" in answer.said


@pytest.mark.parametrize(
    ("source", "words"),
    [("synthetic:parity", "a set of examples that is made"), ("-", "standard input is taken by predict")],
)
def test_what_a_text_cannot_be_read_from_is_said(source: str, words: str, shell: Shell, trained: Path) -> None:
    for command in (("check", "language"), ("evaluate", trained)):
        answer = shell(*command, source)
        assert answer.code == 3 and words in answer.said


@pytest.mark.parametrize(
    "arguments", [[], ["bench"], ["train"], ["nosuch"], ["train", "language"], ["bench", "nosuch"]]
)
def test_an_incomplete_call_is_answered_without_a_traceback(arguments: list[str], shell: Shell) -> None:
    answer = shell(*arguments)
    assert answer.code == 2
    assert "--help" in answer.err
    assert "Traceback" not in answer.err


def test_an_unknown_task_is_refused_with_those_there_are(shell: Shell, text: Path) -> None:
    for command in ("train", "check"):
        answer = shell(command, "languag", text)
        assert answer.code == 2
        assert "'languag'" in answer.said
        assert "language" in answer.said.replace("'languag'", "")


@pytest.mark.parametrize("where", ["recurra.models.stack", "recurra.learn.bptt.BPTT.__call__"])
def test_a_model_that_does_not_fit_into_memory_is_refused(
    where: str, shell: Shell, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes.")

    monkeypatch.setattr(where, full)
    answer = shell("train", "language", text, "--out", "run", "--steps", 1, "--layers", 3, *SMALL)
    assert answer.code == 1
    assert "3 layers of 8 units, 4 rows of 8 steps, do not fit into the memory of" in answer.said
    assert "--hidden" in answer.said
    assert (tmp_path / "run" / "config.toml").exists() == ("learn" in where)  # a run that began is kept


# Places


@pytest.mark.parametrize("out", ["/proc/x", "file.txt", "file.txt/below", "a" * 300, "/dev/null/x"])
def test_an_impossible_place_for_the_run_is_refused(out: str, shell: Shell, text: Path, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    answer = shell("train", "language", text, "--out", out, "--steps", 2, *SMALL)
    assert answer.code in (1, 2)
    assert out in answer.said
    assert (tmp_path / "file.txt").read_text() == "mine"
    assert shell("demo", "--out", out, "--minutes", "0.01").code in (1, 2)


def test_the_demo_of_dates_shows_where_it_looked(shell: Shell, tmp_path: Path) -> None:
    done = shell("demo", "seq2seq", "--out", tmp_path / "run", "--minutes", "0.02", "--threads", "1")
    assert done.code == 0 and "July 4th, 1976: what it wrote" in done.out
    assert "<td" in (tmp_path / "run" / "attention.html").read_text()
    wrong = shell("demo", "chess")
    assert wrong.code == 2 and "language and seq2seq" in wrong.err


def test_texts_are_written_as_they_are_asked_for(shell: Shell, tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "map.html"
    assert not shell(
        "train", "seq2seq", "synthetic:dates", "--out", run, "--steps", "2", "--hidden", "8", "--quiet"
    ).code
    asked = tmp_path / "asked.txt"
    asked.write_text("3 de marzo de 1987\n{}\nMay 1, 2000\n")
    told = shell(
        "predict",
        run,
        asked,
        "--prefix",
        "19",
        "--phrase",
        "-0",
        "--beam",
        "9",
        "--best",
        "2",
        "--attention",
        page,
        "--json",
    )
    answers = [json.loads(line) for line in told.out.splitlines()]
    assert told.code == 3 and "line 2" in told.err and len(answers) == 2
    for answer in answers:
        assert len(answer["best"]) == 2 and all(one["written"].startswith("19") for one in answer["best"])
        assert all("-0" in one["written"] or one["unmet"] for one in answer["best"])
    assert page.read_text().count("3 de marzo de 1987") and "--w:" in page.read_text()
    drawn = [shell("predict", run, asked, "--temperature", "1", "--seed", seed).out for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    assert shell("predict", run, asked, "--temperature", "1", "--prefix", "2").code == 2


@pytest.mark.parametrize("name", ["mine.txt", "data/mine.txt", "best/mine.txt", "checkpoints/mine.txt", "log.txt"])
def test_files_of_the_user_in_the_run_folder_are_never_destroyed(
    name: str, shell: Shell, text: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    answer = shell("train", "language", text, "--out", "run", "--steps", 2, *SMALL)
    assert answer.code == (2 if name.startswith(("data", "best")) else 0), answer
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("place", ["nosuch", "folder", "file.txt", "a" * 300, "/dev/null/x"])
@pytest.mark.parametrize("command", [["generate"], ["predict"], ["evaluate", "file.txt"]], ids=" ".join)
def test_a_folder_that_is_no_run_is_refused(command: list[str], place: str, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("mine")
    answer = shell(command[0], place, *command[1:])
    assert answer.code == 3
    assert place in answer.said
    assert "run folder" in answer.said


class Stop(Exception):  # noqa: N818 - raised to stop a training
    """Raised from `tell`."""


def test_a_full_disk_ends_the_run_with_its_checkpoints_whole_and_it_goes_on_afterwards(
    text: Path, tmp_path: Path
) -> None:
    settings = {"train": {"rows": 4, "chunk": 8, "checkpoint_seconds": 1e-9, "validations": 3}}

    def train(out: Path, stop_at: int = -1) -> None:
        def tell(kind: str, **fields: Any) -> None:
            if kind == "step" and fields["step"] == stop_at:
                raise Stop

        recurra.train("language", text, out=out, settings=settings, tell=tell, steps=12, hidden=8, threads=1)

    with pytest.raises(Stop):
        train(tmp_path / "run", stop_at=6)
    before = contents(tmp_path / "run" / "checkpoints")
    full = child(
        *("train", "language", text, "--out", tmp_path / "run"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000)),
    )
    assert full.code == 1, full
    assert "free" in full.said.lower()
    assert str(tmp_path / "run") in full.said
    assert contents(tmp_path / "run" / "checkpoints") == before
    train(tmp_path / "run")
    train(tmp_path / "straight")
    name = "best/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


# Writing


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--length", "-1"], "length was -1"),
        (["--temperature", "-1"], "temperature was -1"),
        (["--temperature", "nan"], "temperature was nan"),
        (["--top-p", "2"], "top_p was 2"),
        (["--top-k", "-1"], "top_k was -1"),
        (["--min-p", "1.5"], "min_p was 1.5"),
        (["--repetition-penalty", "0"], "repetition_penalty was 0"),
        (["--repetition-penalty", "inf"], "repetition_penalty was inf"),
        (["--seed", "99999999999999999999999"], "seed was 9999"),
        (["--length", "x"], "--length"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_way_to_write_is_named(options: list[str], word: str, shell: Shell, trained: Path) -> None:
    answer = shell("generate", trained, *options)
    assert answer.code == 2
    assert answer.out == ""
    assert word in answer.said


@pytest.mark.parametrize("prompt", ["", "the", "你好", "🎉🎉", "e\u0301", "x\ty\n", "\udce9"])
def test_any_prompt_is_continued(prompt: str, shell: Shell, trained: Path) -> None:
    answer = shell("generate", trained, "--prompt", prompt, "--length", 7, "--json")
    assert answer.code == 0, answer
    written = json.loads(answer.out)
    assert written["prompt"] == prompt
    assert len(written["text"]) <= 7


@pytest.mark.parametrize("temperature", ["0", "1e-300", "1e-40", "1e-9", "1e-3", "1e30", "inf"])
def test_every_temperature_writes(temperature: str, shell: Shell, trained: Path) -> None:
    answer = shell("generate", trained, "--temperature", temperature, "--length", 5)
    assert answer.code == 0, answer
    if float(temperature) < 1e-8:
        assert answer == shell("generate", trained, "--temperature", "0", "--length", 5)


def test_a_length_of_zero_writes_the_prompt_and_nothing_more(shell: Shell, trained: Path) -> None:
    assert shell("generate", trained, "--prompt", "the", "--length", 0) == Answer(0, "the\n", "")


def test_the_same_seed_writes_the_same_text_and_another_one_another(shell: Shell, trained: Path) -> None:
    texts = [shell("generate", trained, "--length", 60, "--seed", seed).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_many_lines_are_predicted_one_object_each(shell: Shell, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes("the\n\n你好\ncaf\xe9\n".encode() + b"\xff\n")
    answer = shell("predict", trained, "lines.txt", "--json", "--best", 3)
    assert answer.code == 0, answer
    objects = [json.loads(line) for line in answer.out.splitlines()]
    assert [one["text"] for one in objects] == ["the", "", "你好", "café", "\ufffd"]
    for one in objects:
        chances = [next_["probability"] for next_ in one["next"]]
        assert len(chances) == 3
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1


def test_a_pipe_that_is_no_unicode_and_a_screen_that_knows_only_ascii_do_not_stop_it(trained: Path) -> None:
    command = [sys.executable, "-m", "recurra", "predict", str(trained), "-", "--json", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, input=b"caf\xe9\n", capture_output=True, check=False, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["text"].startswith("caf")


# Divergence


def test_a_training_that_diverges_leaves_its_updates_out_and_ends_with_the_remedy(
    shell: Shell, text: Path, tmp_path: Path
) -> None:
    wild = ["--set", "optimizer.rate=1e30", "--set", "optimizer.clip=0"]
    answer = shell("train", "language", text, "--out", "run", "--steps", 400, *SMALL, *wild)
    assert answer.code == 1
    assert "not finite 10 times in a row" in answer.said
    assert "lower --set optimizer.rate" in answer.said
    assert "update left out" in answer.err
    answer = shell("generate", "run")  # no model was ever saved
    assert answer.code == 3
    assert "has not saved a model yet" in answer.said


def test_a_model_that_diverged_is_called_so_and_not_used(shell: Shell, text: Path) -> None:
    wild = ["--set", "optimizer.rate=1e30", "--set", "optimizer.clip=0", "--set", "train.patience=1"]
    shell("train", "language", text, "--out", "run", "--steps", 3, *SMALL, *wild)
    answer = shell("generate", "run", "--length", 20)
    assert answer.code in (0, 1, 3)
    if answer.code:
        assert "recurra: error: " in answer.said


# What programs read


def test_json_is_one_object_on_standard_output_and_nothing_else(shell: Shell, text: Path, tmp_path: Path) -> None:
    trained = shell("train", "language", text, "--out", "run", "--steps", 3, *SMALL, "--json")
    again = shell("train", "language", text, "--out", "run", "--json")
    checked = shell("check", "language", text, "--json")
    evaluated = shell("evaluate", "run", text, "--json", "--threads", 1)
    written = shell("generate", "run", "--length", 9, "--json")
    for answer in (trained, again, checked, evaluated, written):
        assert answer.code == 0, answer
        assert answer.out.count("\n") == 1
        assert isinstance(json.loads(answer.out), dict)
    report = json.loads(evaluated.out)
    assert {"task", "scores", "floors", "n", "seconds"} <= set(report)
    assert report["scores"]["bits_per_character"] > 0
    assert json.loads(trained.out)["run"] == "run"


def test_progress_goes_to_standard_error_and_quiet_silences_it(shell: Shell, text: Path) -> None:
    loud = shell("train", "language", text, "--out", "loud", "--steps", 3, *SMALL)
    quiet = shell("train", "language", text, "--out", "quiet", "--steps", 3, *SMALL, "--quiet")
    assert "step" in loud.err
    assert "step" not in loud.out
    assert quiet.err == ""
    assert quiet.out.replace("quiet", "loud") == loud.out


def test_a_config_of_a_run_makes_the_same_run_again(shell: Shell, text: Path, tmp_path: Path) -> None:
    assert shell("train", "language", text, "--out", "first", "--steps", 3, *SMALL).code == 0
    answer = shell("train", "language", text, "--out", "second", "--config", "first/config.toml")
    assert answer.code == 0, answer
    name = "best/model.safetensors"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(
    command: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = shell(*command.split(), "--help")
    assert (answer.code, answer.err) == (0, "")
    examples = [line.partition("Example: ")[2] for line in answer.out.splitlines() if "Example: " in line]
    assert examples
    for example in examples:
        words = shlex.split(example.rpartition("| ")[2])
        assert words[0] == "recurra"
        node, left = cli.typer.main.get_command(cli.app), words[1:]
        while getattr(node, "commands", None):
            node, left = node.commands[left[0]], left[1:]
        context = node.make_context("recurra", list(left))  # raises where an option is unknown or an argument is wanted
        assert context.args == []


def test_the_version_is_told(shell: Shell) -> None:
    answer = shell("--version")
    assert answer.code == 0
    assert answer.out.startswith(f"recurra {recurra.__version__}, torch {torch.__version__.partition('+')[0]}")


def test_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys; sys.argv = ['recurra', '--help']\nfrom recurra.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'pydantic', 'safetensors', 'rich.progress'} & set(sys.modules)), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    times = []
    for _ in range(5):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        times.append(time.monotonic() - began)
        assert done.stderr.strip() == "[]"
        assert "train" in done.stdout
    assert min(times) < 1.0


def test_generate_searches_for_the_likeliest_texts(trained: Path, shell: Shell) -> None:
    answer = shell("generate", trained, "--prompt", "the ", "--length", 6, "--beam", 3, "--json")
    found = json.loads(answer.out)["continuations"]
    assert len(found) == 3 and [one["log_probability"] for one in found] == sorted(
        (one["log_probability"] for one in found), reverse=True
    )
    lines = shell("generate", trained, "--prompt", "the ", "--length", 6, "--beam", 3).out
    assert all(f"the {one['text']}" in lines for one in found)
