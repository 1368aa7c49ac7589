"""The command `recurra`. Each command is a few lines around the library; heavy imports happen inside."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from recurra.errors import DataError, Interrupted, RecurraError, UsageError

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Recurrent networks: train, resume, evaluate and use them. Try `recurra demo`.",
)
bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure speed, beside the same thing written in torch.nn, and memory.\n\nExample: recurra bench language --seconds 5",
)
app.add_typer(bench_app, name="bench")

embed_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Word vectors: learn them, ask them, judge them.\n\nExample: recurra embed near king --vectors glove.6B.100d.txt",
)
app.add_typer(embed_app, name="embed")

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="language, classify, tag, regress, seq2seq, caption or forecast")
]
Data = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA...",
        help="A file (also .gz, .xz), several, a folder, or synthetic:NAME; of train forecast also -.",
    ),
]
ValidFiles = Annotated[list[Path] | None, typer.Option("--valid", help="Validation data; else 10 % of DATA.")]
TestFiles = Annotated[list[Path] | None, typer.Option("--test", help="Test data, scored once at the end.")]
TextColumn = Annotated[str | None, typer.Option("--text", help="The column of the text; else guessed, and said.")]
LabelColumn = Annotated[str | None, typer.Option("--label", help="The column of the label; else guessed, and said.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a bundle.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="The seed of all that is random; of no effect where nothing is.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any option of the config.")
]


@app.command()
def train(
    task: TaskName,
    data: Data,
    valid: ValidFiles = None,
    test: TestFiles = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; one that exists is resumed, exactly.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of options, such as a run's config.toml.")] = None,
    setting: Settings = None,
    cell: Annotated[str | None, typer.Option(help="A name in docs/cells.md, such as lstm, gru or elman.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Units of each layer.")] = None,
    layers: Annotated[int | None, typer.Option(min=1)] = None,
    epochs: Annotated[float | None, typer.Option(help="Train for so many passes through the data,")] = None,
    minutes: Annotated[float | None, typer.Option(help="or for so many minutes (default 5),")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="or for so many steps.")] = None,
    learner: Annotated[
        str | None, typer.Option(help="How credit goes back: bptt, rtrl, snap1, uoro, es ... (README).")
    ] = None,
    vectors: Annotated[Path | None, typer.Option(help="Word vectors where the table of words starts.")] = None,
    text: TextColumn = None,
    label: LabelColumn = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Cross-validate: so many runs, each tested on its part.")
    ] = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Look for a learning rate: raise it over 300 batches, and keep nothing.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a network on your data, or resume a run.

    Example: recurra train language corpus.txt --minutes 5 --out runs/corpus

    With - for DATA a forecast learns from standard input as rows come, one a line, {"y": 1.2} or [1.2, 3.4]: the first 100 teach
    names and scales, each one after them is forecast and then learnt from; --json prints that of each. With an --out that exists
    it goes on where it stopped; rows that came in between are lost.
    """
    from recurra import api, run
    from recurra import config as configuration
    from recurra.fit import keep_freed_memory

    keep_freed_memory()
    values = configuration.override(configuration.read(config) if config else {}, setting or [])
    short = dict(
        cell=cell, hidden=hidden, layers=layers, epochs=epochs, minutes=minutes, steps=steps,
        learner=learner, device=device, seed=seed, threads=threads, vectors=vectors and str(vectors),
        text=text, label=label, folds=folds,
    )  # fmt: skip
    values = api.merged(values, short)
    if data == [Path("-")]:
        if task != "forecast" or valid or test:
            raise UsageError("only a forecast learns from standard input, without --valid and --test; give files")
        _listen(out, values, as_json, quiet)
        return
    sources = api.as_sources(data, valid or (), test or ())
    folder = out or run.default_folder(sources, values)
    if find_lr:
        _find_rate(task, sources, folder, values, as_json, quiet)
    else:
        _train(task, sources, folder, values, as_json, quiet)


def _find_rate(task: str, sources: Any, folder: Path, values: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Run the learning rate range test, write its page beside the run folder, and print what it suggests."""
    from recurra import rates, run
    from recurra.display import Display
    from recurra.storage import replace_file

    found = run.find_rate(task, sources, values, Display(quiet or as_json))
    page = folder.with_name(f"{folder.name}-find-lr.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    replace_file(page, rates.page(found, f"{task}: loss against learning rate").encode())
    if as_json:
        _print_json({"task": task, **found._asdict(), "page": str(page)})
        return
    print(
        f"the running mean of the loss was lowest ({min(found.smoothed):.4g}) at a rate of {found.suggested * 10:.2g}"
    )
    print(f"    --set optimizer.rate={found.suggested:g}")
    print(f"nothing was trained for good; the curve is in {page}")


def _listen(out: Path | None, values: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Learn from the rows of standard input as they come; with `as_json` each is printed, with what was forecast of it."""
    from recurra import online, run
    from recurra.display import Display
    from recurra.tasks import Sources

    folder = out or run.default_folder(Sources([Path("stream")]), values)
    display = Display(quiet)

    def tell(kind: str, **fields: Any) -> None:
        if kind != "row":
            display(kind, **fields)
        elif as_json:
            _print_json(fields)

    try:
        done = online.listen(sys.stdin, folder, values, tell)
    finally:
        display.close()
    if not as_json:
        print("\n".join([*online.lines(done.report), f"The run is in {folder}"]))


def _train(task: str, sources: Any, folder: Path, values: dict[str, Any], as_json: bool, quiet: bool) -> Any:
    """Train with a display, print the report, and return what training came to."""
    from recurra import folds
    from recurra.display import Display

    display = Display(quiet or as_json)
    try:
        done = folds.train(task, sources, folder, values, display)
    finally:
        display.close()
    if as_json:
        _print_json({"run": str(folder), **done.report, "advice": done.advice})
        return done
    lines = folds.lines(done.report) if "folds" in done.report else done.task.lines(done.report)
    runs = f"A run for each fold is in {folder}" if "folds" in done.report else f"The run is in {folder}"
    for line in [*lines, *done.advice, runs]:
        print(line)
    return done


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    length: Annotated[int, typer.Option(help="Tokens to write.")] = 500,
    temperature: Annotated[float, typer.Option(help="Below 1 plainer, above 1 wilder; 0 takes the best token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among the k best tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among the best that hold this probability together.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Choose among those this share as likely as the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: shun tokens written before.")] = 1.0,
    beam: Annotated[int, typer.Option(min=0, help="Search for this many likeliest texts in place of drawing one.")] = 0,
    no_repeat: Annotated[
        int, typer.Option(min=0, help="With --beam: no run of so many tokens twice; 0: there may be.")
    ] = 0,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write text with a trained language model.

    Example: recurra generate runs/corpus --prompt "In the " --length 300 --temperature 0.7
    """
    task = _loaded(run, device, threads)
    if task.name != "language":
        raise UsageError(
            f"{run} was trained to {task.name}, and generate goes on with a text as a language model does; "
            f"wanted: recurra predict {run} FILE"
        )
    if beam:
        found = task.continuations(prompt, length, beam, no_repeat=no_repeat)
        if as_json:
            _print_json({"prompt": prompt, "continuations": [one._asdict() for one in found]})
        else:
            print("\n".join(f"{one.log_probability:9.3f}  {prompt}{one.text}" for one in found))
        return
    sampling = dict(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed or 0
    )  # fmt: skip
    pieces = task.write(prompt, length, **sampling)
    if as_json:
        _print_json({"prompt": prompt, "text": "".join(pieces)})
        return
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def evaluate(
    run: RunFolder,
    data: Data,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a trained network on other data.

    Example: recurra evaluate runs/corpus other.txt --json
    """
    task = _loaded(run, device, threads)
    report = task.evaluate(data)
    if as_json:
        _print_json(report)
    else:
        print("\n".join(task.lines(report)))


@app.command()
def predict(
    run: RunFolder,
    file: Annotated[
        str, typer.Argument(metavar="FILE | -", help="One input a line, or a table; - is standard input.")
    ] = "-",
    best: Annotated[int, typer.Option(min=1, help="How many guesses to name.")] = 5,
    beam: Annotated[int | None, typer.Option(min=1, help="Of texts: how many are followed side by side.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Of texts: above 0 favours long ones.")] = None,
    coverage_penalty: Annotated[
        float | None, typer.Option(help="Of texts: above 0 disfavours those that leave parts of the source out.")
    ] = None,
    no_repeat: Annotated[int | None, typer.Option(min=0, help="Of texts: no run of so many tokens twice.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Of texts: what they begin with.")] = None,
    phrase: Annotated[list[str] | None, typer.Option(help="Of texts: what occurs in them; may be given again.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of texts: draw one, in place of a beam.")] = None,
    top_k: Annotated[int | None, typer.Option(help="With a temperature: among the k best tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="With a temperature: among the best that hold this probability together.")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Of texts: write a page (HTML) of where the network looked, and of its search."
        ),
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a trained network says of each line, or of each row of a file.

    An input that cannot be read is passed over and named at the end, and the exit code is 3.

    Example: recurra predict runs/de-en new.de --attention map.html
    """
    from recurra.storage import replace_file
    from recurra.tasks.looks import page

    task = _loaded(run, device, threads)
    given = dict(
        width=beam, length_penalty=length_penalty, coverage_penalty=coverage_penalty, no_repeat=no_repeat, prefix=prefix,
        phrases=tuple(phrase) if phrase else None, temperature=temperature, top_k=top_k, top_p=top_p,
        seed=seed if temperature is not None else None, look=True if attention else None,
    )  # fmt: skip
    search = task.search(**{name: value for name, value in given.items() if value is not None})
    problems, looks = [], []
    for answer in task.answers(sys.stdin if file == "-" else Path(file), best, search):
        if isinstance(answer, DataError):
            problems.append(str(answer))
            continue
        if attention:
            looks.append(answer.pop("look"))
        if as_json:
            _print_json(answer)
        else:
            print(task.shown(answer), flush=True)
    if attention and looks:
        replace_file(attention, page(looks).encode())
        if not (quiet or as_json):
            print(f"where it looked is in {attention}", file=sys.stderr)
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"{len(problems)} inputs were passed over: {'; '.join(problems[:10])}{more}")


@app.command("probe")
def probe_run(
    run: RunFolder,
    given: Annotated[
        str | None, typer.Argument(metavar="[TEXT | FILE]", help="What to read; else the validation data of the run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a page (HTML) with figures here.")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Follow the gradients of this network too, on the same.")
    ] = None,
    before: Annotated[bool, typer.Option("--before", help="And of this one as it was before its training.")] = False,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="The shapes of all tensors of a step, and nothing else.")
    ] = False,
    blank: Annotated[
        bool, typer.Option("--blank", help="The shapes as a table to fill in, then the solution.")
    ] = False,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Look inside a trained network: gradients through time, gates, Jacobians, what it expected, where its state goes, the loss
    around it, and the training.

    Example: recurra probe runs/corpus "To be or not to be" --out report.html
    """
    from recurra import report
    from recurra.storage import replace_file

    _on_the_cpu("probe", device)
    task = _loaded(run, "cpu", threads)
    if shapes or blank:
        if out is not None:
            raise UsageError("--shapes and --blank print text, and --out is for the page; leave one of them out")
        told = report.shapes(task, given)
        if as_json:
            _print_json(report.as_json(told))
        else:
            print("\n".join(told.lines(blank)))
        return
    others = {str(one): _loaded(one, "cpu", threads) for one in beside or []}
    others |= {"before training": report.untrained(run)} if before else {}
    silent = quiet or as_json
    tell = lambda text: None if silent else print(f"{text} ...", file=sys.stderr, flush=True)  # noqa: E731
    found = report.examine(task, run, given, others, tell)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, report.page(found, f"{run}").encode())
    if as_json:
        _print_json({"run": str(run), **report.as_json(found), "page": str(out) if out else None})
        return
    print("\n".join(report.lines(found)))
    if out is not None and not quiet:
        print(f"figures are in {out}")


@app.command()
def check(
    task: TaskName,
    data: Data,
    valid: ValidFiles = None,
    test: TestFiles = None,
    setting: Settings = None,
    text: TextColumn = None,
    label: LabelColumn = None,
    timing: Annotated[bool, typer.Option(help="Train for a second, to say how long a pass would take.")] = True,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What the data looks like and what is wrong with it, before an hour is spent.

    Example: recurra check classify reviews.csv
    """
    from recurra import api, run
    from recurra import config as configuration
    from recurra.tasks import task_called

    values = configuration.override({}, setting or [])
    values = api.merged(values, {"text": text, "label": label, "seed": seed, "device": device, "threads": threads})
    sources = api.as_sources(data, valid or (), test or ())
    report = task_called(task).survey(configuration.build(values), sources)
    if timing:
        try:
            report |= run.estimate(task, sources, values)
        except RecurraError as error:
            report["warnings"].append(f"a training could not begin: {error}")
    if as_json:
        _print_json({"task": task, **report})
        return
    for name, value in report.items():
        if name != "warnings":
            print(f"{name.replace('_', ' '):>22}  {_shown(value)}")
    print("\n".join(f"warning: {words}" for words in report["warnings"]) or "nothing wrong was found")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_shown, value))
    if isinstance(value, str):
        return value if value.isprintable() and value.strip() else repr(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


@app.command()
def demo(
    kind: Annotated[str, typer.Argument(metavar="[KIND]", help="language or seq2seq.")] = "language",
    out: Annotated[Path | None, typer.Option(help="The run folder.  [default: runs/demo, runs/demo-seq2seq]")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long to train.  [default: 1, 2 for seq2seq]")] = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The main job on data that is always at hand: train a character LSTM on the text of Python's `help()` and let it write; or
    (seq2seq) learn to read dates as people write them in three languages, and show what is looked at.

    Example: recurra demo
    """
    kinds = {"language": (_demo_language, "runs/demo", 1.0), "seq2seq": (_demo_seq2seq, "runs/demo-seq2seq", 2.0)}
    if kind not in kinds:
        raise UsageError(f"there is no demo of {kind!r}; there are {' and '.join(kinds)}")
    show, folder, long = kinds[kind]
    options = {"minutes": minutes or long, "seed": seed, "device": device, "threads": threads}
    show(out or Path(folder), options, as_json, quiet)


def _demo_language(out: Path, options: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from recurra import api
    from recurra.demo import python_topics

    text = python_topics(out.with_name(f"{out.name}-text") / "python-topics.txt")
    exists = (out / "config.toml").exists()
    values = {} if exists else api.merged({}, options)
    if as_json:
        _train("language", api.as_sources([text]), out, values, as_json, quiet)
        return
    _introduce(text)
    done = _train("language", api.as_sources([text]), out, values, as_json, quiet)
    for temperature in (0.3, 0.7, 1.0):
        print(f"\n--- it writes, temperature {temperature} ---", flush=True)
        print("The ", end="")
        for piece in done.task.write("The ", 300, temperature=temperature, seed=1):
            print(piece, end="", flush=True)
        print()
    print(f"\nThe run is in {out}. Worth typing next:")
    print(f'    recurra generate {out} --prompt "A class is " --length 400 --temperature 0.6')
    print(f"    recurra evaluate {out} README.md")
    print("    recurra train language YOUR-TEXT.txt --minutes 5")


def _demo_seq2seq(out: Path, options: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from recurra import api
    from recurra.storage import replace_file
    from recurra.tasks.looks import page, text_lines

    exists = (out / "config.toml").exists()
    sources = api.as_sources([Path("synthetic:dates")])
    done = _train("seq2seq", sources, out, {} if exists else api.merged({}, options), as_json, quiet)
    if as_json:
        return
    asked = ["3 de marzo de 1987", "quinta-feira, 21 de abril de 2022", "July 4th, 1976"]
    looks = [answer["look"] for answer in done.task.answers(asked, 1, done.task.search(look=True))]
    for look in looks:
        print(f"\n--- {look.about}: what it wrote, and where it looked for each sign ---")
        print("\n".join(text_lines(look)))
    replace_file(out / "attention.html", page(looks).encode())
    print(f"\nThe same as a page: {out / 'attention.html'}. Worth typing next:")
    print(f'    echo "12 October 1492" | recurra predict {out} - --json')
    print("    recurra train seq2seq YOUR-PAIRS.tsv --minutes 20")


def _introduce(text: Path) -> None:
    print(f"The text: the Python language reference as `help()` shows it, {text.stat().st_size:,} bytes. It begins:\n")
    print(
        "\n".join("    " + line for line in text.read_text(encoding="utf-8").splitlines()[:6]), end="\n\n", flush=True
    )


@app.command()
def recall(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="Pictures, .npy, .npz, .csv or .tsv (also .gz, .xz), or folders."),
    ],
    memory: Annotated[str, typer.Option(help="hebb, storkey, pseudo-inverse, dense or modern.")] = "hebb",
    patterns: Annotated[int | None, typer.Option(min=1, help="Store the first so many rows; else all.")] = None,
    noise: Annotated[float, typer.Option(help="Share of the units that are turned over.")] = 0.2,
    mask: Annotated[float, typer.Option(help="Share of the picture that is hidden, from below.")] = 0.0,
    threshold: Annotated[float | None, typer.Option(help="Numbers above it are +1; else the mean of all.")] = None,
    label: Annotated[str | None, typer.Option(help="A column of a table that is left out; -1 is the last.")] = None,
    shape: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Of the picture in a row.")] = None,
    beta: Annotated[float, typer.Option(help="Inverse temperature of modern: larger tells like patterns apart.")] = 1.0,
    power: Annotated[str, typer.Option(help="Of dense: a whole number from 2, or exp.")] = "3",
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a page (HTML) with frames and energies here.")
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Store pictures or rows of a table in an associative memory, damage them, and recall them.

    Example: recurra recall digits.csv --label -1 --patterns 5 --memory storkey
    """
    import torch

    from recurra import recall as recalling
    from recurra.storage import replace_file

    if threads:
        torch.set_num_threads(threads)
    _on_the_cpu("recall", device)
    picture = _height_and_width(shape)
    done = recalling.recall(
        files, memory, patterns, recalling.Damage(noise, mask), label=label, shape=picture, threshold=threshold, beta=beta,
        power=power, seed=seed or 0,
    )  # fmt: skip
    if out is not None:
        replace_file(out, recalling.page(done).encode())
    if as_json:
        _print_json({**done.report, "page": str(out) if out else None})
        return
    print("\n".join(recalling.lines(done)))
    if out is not None and not quiet:
        print(f"frames and energies are in {out}")


def _height_and_width(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"shape was {text!r}, wanted HEIGHTxWIDTH, such as 28x28")
    return int(parts[0]), int(parts[1])


VectorsFile = Annotated[
    Path,
    typer.Option(
        "--vectors", help="Word vectors: .txt, .vec, .bin (also .gz, .xz), or a folder made by `embed train`."
    ),
]
Count = Annotated[int, typer.Option(min=1, help="How many words to name.")]


@embed_app.command("train")
def embed_train(
    text: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Files or folders; a line is a sentence.")],
    out: Annotated[Path, typer.Option(help="The folder of the vectors.")] = Path("vectors"),
    model: Annotated[str, typer.Option(help="skip-gram or cbow.")] = "skip-gram",
    loss: Annotated[str, typer.Option(help="negative-sampling or hierarchical-softmax.")] = "negative-sampling",
    size: Annotated[int, typer.Option(min=1, help="Numbers of a vector.")] = 100,
    window: Annotated[int, typer.Option(min=1, help="Words on each side that count.")] = 5,
    negative: Annotated[int, typer.Option(min=1, help="Words drawn against each true one.")] = 10,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    least: Annotated[int, typer.Option(min=1, help="Leave out words that occur less often.")] = 5,
    subwords: Annotated[bool, typer.Option(help="Vectors of the parts of words too, as fastText has it.")] = False,
    lower: Annotated[bool, typer.Option(help="All in small letters.")] = False,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn word vectors from text.

    Example: recurra embed train corpus.txt --lower --epochs 10 --out vectors
    """
    import time

    from recurra.embed.train import train as learn

    _on_the_cpu("embed train", device)
    began = time.perf_counter()
    vectors = learn(
        text, model=model, loss=loss, size=size, window=window, negative=negative, epochs=epochs, least=least,
        subwords=subwords, lower=lower, threads=threads, seed=seed or 0,
    )  # fmt: skip
    vectors.save(out)
    report = {"vectors": str(out), "words": len(vectors), "size": size, "seconds": time.perf_counter() - began}
    if as_json:
        _print_json(report)
    else:
        print(f"{len(vectors):,} words of {size} numbers in {report['seconds']:.0f} s: {out}")
        print(f"    recurra embed near {vectors.words[0]} --vectors {out}")


@embed_app.command("near")
def embed_near(
    word: Annotated[str, typer.Argument(metavar="WORD")],
    vectors: VectorsFile,
    metric: Annotated[str, typer.Option(help="cosine or euclidean.")] = "cosine",
    count: Count = 10,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The words whose vectors are nearest to that of a word.

    Example: recurra embed near king --vectors vectors --count 5
    """
    from recurra.embed.vectors import load

    _on_the_cpu("embed near", device)
    _print_neighbours(load(vectors).near(word, count, metric), metric, as_json)  # type: ignore[arg-type]


@embed_app.command("analogy")
def embed_analogy(
    words: Annotated[list[str], typer.Argument(metavar="WORD - WORD + WORD", help="Words with + and - between them.")],
    vectors: VectorsFile,
    count: Count = 10,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The words nearest to a sum and difference of words.

    Example: recurra embed analogy king - man + woman --vectors vectors
    """
    from recurra.embed.vectors import load

    _on_the_cpu("embed analogy", device)
    like, unlike = _added_and_taken_away(words)
    _print_neighbours(load(vectors).analogy(like, unlike, count), "cosine", as_json)


@embed_app.command("evaluate")
def embed_evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Questions of analogy, or judged pairs of words.")],
    vectors: VectorsFile,
    fold: Annotated[bool, typer.Option(help="Look words up in small letters.")] = True,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Hold word vectors against what people said.

    Example: recurra embed evaluate questions-words.txt --vectors vectors
    """
    from recurra.embed.evaluate import evaluate as judge
    from recurra.embed.vectors import load

    _on_the_cpu("embed evaluate", device)
    report = judge(load(vectors), file, fold=fold)
    if as_json:
        _print_json(report)
        return
    for name, score in report.get("sections", {}).items():
        print(f"{name:>28}  {score['value']:6.1%}  of {score['asked']:,} asked, {score['given']:,} given")
    value = f"{report['accuracy']:.1%} right" if "accuracy" in report else f"Spearman {report['spearman']:.3f}"
    print(f"{value}, {report['asked']:,} of {report['given']:,} have vectors")


@embed_app.command("map")
def embed_map(
    vectors: VectorsFile,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD...]", help="Which words; else the first ones.")
    ] = None,
    count: Annotated[int, typer.Option(min=3, help="How many of the first words.")] = 200,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The page (HTML).")] = Path("map.html"),
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw words where their two largest principal components are.

    Example: recurra embed map king queen man woman --vectors vectors
    """
    from recurra.embed.vectors import load, page
    from recurra.storage import replace_file

    _on_the_cpu("embed map", device)
    known = load(vectors, words or None)
    for word in words or []:
        _ = known[word]  # says which one has no vector
    drawn = known if words else known.only(known.words[:count])
    replace_file(out, page(drawn).encode())
    if as_json:
        _print_json({"page": str(out), "words": len(drawn)})
    else:
        print(f"{len(drawn)} words are in {out}")


def _print_neighbours(found: Any, metric: str, as_json: bool) -> None:
    if as_json:
        _print_json({"metric": metric, "neighbours": [{"word": one.word, "value": one.value} for one in found]})
    else:
        print("\n".join(f"{one.value:8.3f}  {one.word}" for one in found))


def _added_and_taken_away(words: list[str]) -> tuple[list[str], list[str]]:
    """Of `king - man + woman`: king and woman, and man."""
    like: list[str] = []
    unlike: list[str] = []
    sign, wanted = "+", True
    for word in words:
        if word in ("+", "-"):
            sign, wanted = word, True
        elif wanted:
            (like if sign == "+" else unlike).append(word)
            wanted = False
        else:
            raise UsageError(f"there is no + or - before {word!r}; wanted such as: king - man + woman")
    if wanted or not like:
        raise UsageError(f"{' '.join(words)!r} is no sum of words; wanted such as: king - man + woman")
    return like, unlike


def _on_the_cpu(command: str, device: str) -> None:
    if device not in ("auto", "cpu"):
        raise UsageError(f"{command} was given --device {device}; it runs on the cpu")


@bench_app.command("language")
def bench_language(
    hidden: Annotated[int, typer.Option(min=1)] = 384,
    seconds: Annotated[float, typer.Option(help="How long each side trains and writes.")] = 10.0,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Characters per second in training and writing, beside the same model written in torch.nn, in one interleaved run.

    Example: recurra bench language --seconds 5
    """
    from recurra.bench.language import compare

    report = compare(hidden, seconds, threads)
    if as_json:
        _print_json(report)
        return
    for what in ("training", "generation"):
        row = report[what]
        print(
            f"{what:>10}: recurra {row['recurra']:>10,.0f}   torch.nn {row['torch.nn']:>10,.0f} characters/s   "
            f"ratio {row['ratio']:.2f}"
        )


@bench_app.command("seq2seq")
def bench_seq2seq(
    hidden: Annotated[int, typer.Option(min=2, help="Units, and features of a token.")] = 256,
    seconds: Annotated[float, typer.Option(help="How long each side trains and searches.")] = 10.0,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Target tokens per second of an encoder-decoder in training and beam search, beside the same written in torch.nn.

    Example: recurra bench seq2seq --seconds 5
    """
    from recurra.bench.seq2seq import compare

    report = compare(hidden, seconds, threads, seed)
    if as_json:
        _print_json(report)
        return
    for what in ("training", "beam search"):
        row = report[what]
        print(
            f"{what:>11}: recurra {row['recurra']:>9,.0f}   torch.nn {row['torch.nn']:>9,.0f} target tokens/s   "
            f"ratio {row['ratio']:.2f}"
        )


@bench_app.command("cells")
def bench_cells(
    seconds: Annotated[float, typer.Option(help="How long the cells take turns.")] = 10.0,
    laws: Annotated[bool, typer.Option(help="Hold each cell against the laws too.")] = True,
    page: Annotated[Path | None, typer.Option(help="Write the page of the cells (Markdown) here.")] = None,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Every cell: parameters, time of a forward and backward pass beside Elman's, laws passed.

    Example: recurra bench cells --seconds 5 --no-laws
    """
    import torch

    from recurra.bench import cells
    from recurra.storage import replace_file

    if threads:
        torch.set_num_threads(threads)
    tell = (
        (lambda name: None) if quiet or as_json or not laws else lambda name: print(f"laws of {name}", file=sys.stderr)
    )
    records = cells.compare(seconds, laws, tell)
    if page is not None:
        replace_file(page, cells.page(records).encode())
    if as_json:
        _print_json({"cells": records, "threads": torch.get_num_threads(), "torch": torch.__version__})
    else:
        print(cells.table(records))


@bench_app.command("memory")
def bench_memory(
    task: Annotated[
        list[str] | None, typer.Option(help="A problem, such as adding; several times for several.")
    ] = None,
    length: Annotated[list[int] | None, typer.Option(min=2, help="How long; else as long as each set is.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="A name in docs/cells.md; else elman, gru and lstm.")] = None,
    learner: Annotated[list[str] | None, typer.Option(help="A learning rule; else bptt.")] = None,
    init: Annotated[list[str] | None, typer.Option(help="Where weights start; else torch.")] = None,
    clip: Annotated[list[float] | None, typer.Option(min=0, help="Largest norm of the gradient; 0: any.")] = None,
    omega: Annotated[list[float] | None, typer.Option(min=0, help="Times the penalty on vanishing gradients.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a run, at most.")] = 2000,
    minutes: Annotated[float, typer.Option(help="Minutes of a run, at most.")] = 1.0,
    setting: Settings = None,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Which networks solve the classic problems of memory. Each option may be given several times: all are tried together.

    Example: recurra bench memory --task temporal-order --length 50 --cell elman --clip 0 --clip 1 --seeds 5
    """
    import torch

    from recurra import config as configuration
    from recurra.bench import memory

    if threads:
        torch.set_num_threads(threads)
    rows = memory.grid(
        task or memory.TASKS_OF_THE_GRID, length or [None], cell or memory.CELLS_OF_THE_GRID, learner or ["bptt"],
        init or ["torch"], clip or [1.0], omega or [0.0],
    )  # fmt: skip
    tell = (lambda text: None) if quiet or as_json else lambda text: print(text, file=sys.stderr)
    records = memory.compare(rows, seeds, steps, minutes, configuration.override({}, setting or []), seed or 0, tell)
    if as_json:
        _print_json({"rows": records, "threads": torch.get_num_threads(), "torch": torch.__version__})
    else:
        print(memory.table(records))


@bench_app.command("kernels")
def bench_kernels(
    seconds: Annotated[float, typer.Option(help="How long the two sides take turns, about.")] = 20.0,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Milliseconds of an RNN, GRU and LSTM over 100 steps, beside torch.nn's own, in one interleaved run.

    Example: recurra bench kernels --seconds 10 --threads 2
    """
    from recurra.bench import kernels

    tell = (lambda case: None) if quiet or as_json else lambda case: print(case, file=sys.stderr)
    report = kernels.compare(seconds, threads, seed, tell=tell)
    if as_json:
        _print_json(report)
    else:
        print(kernels.table(report))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the versions and leave.")] = False) -> None:
    if version:
        from importlib.metadata import version as of

        from recurra import __version__
        from recurra.kernels import native

        print(
            f"recurra {__version__}, torch {of('torch')}, Python {sys.version.split()[0]}, kernels: {native.described()}"
        )
        raise typer.Exit


def main() -> None:
    """Run the command; print a user's mistake as one line on standard error and leave with its exit code."""
    for stream, errors in [(sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")]:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors=errors
            )  # what a terminal cannot show, or a pipe did not mean, is no reason to stop
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except Interrupted as stopped:
        _fail(str(stopped), stopped.exit_code)
    except RecurraError as error:
        _fail(f"error: {error}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except typer.TyperException as error:
        if "\n" in error.format_message():  # a command without arguments: the message is its help
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "recurra"
        _fail(f"error: {error.format_message().rstrip('.')}; see {command} --help", 2)


def _fail(message: str, code: int) -> None:
    print(f"recurra: {message}", file=sys.stderr)
    sys.exit(code)


def _loaded(folder: Path, device: str, threads: int | None) -> Any:
    import torch

    from recurra import api

    if threads:
        torch.set_num_threads(threads)
    return api.load(folder, device)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=sys.stdout.encoding.lower() != "utf-8", allow_nan=False), flush=True)
