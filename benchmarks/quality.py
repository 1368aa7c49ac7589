"""How good the tasks are on known data: trains each trial by the command line, and writes benchmarks/QUALITY.md.

python benchmarks/prepare.py ../shared/data SETS
python benchmarks/quality.py run SETS RUNS [TRIAL...]        resumes: a trial that is in RUNS/results.jsonl is not run again
python benchmarks/quality.py page RUNS > benchmarks/QUALITY.md
"""

import itertools
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Trial(NamedTuple):
    """`command` is what follows `recurra train`, with {sets} and {case}; a run is made for each case and seed."""

    command: str
    scores: dict[str, str]  # the bars of the issue by the name of the score: ">= 0.785"
    published: str
    cases: tuple[str, ...] = ("",)
    seeds: tuple[int, ...] = (0,)


GLOVE = "--vectors {sets}/glove-100d"
MR = "classify {sets}/mr/train-{case}.csv --test {sets}/mr/test-{case}.csv --steps 1600"
SST = "classify {sets}/sst/train.tsv --valid {sets}/sst/valid.tsv --test {sets}/sst/test.tsv --steps 1400"
TREC = "classify {sets}/trec-questions/train.csv --test {sets}/trec-questions/test.csv --steps 1500"
MTOD = (
    "tag {sets}/mtod-slots/train.tsv --valid {sets}/mtod-slots/valid.tsv --test {sets}/mtod-slots/test.tsv --steps 1700"
)
LENER = (
    "tag {sets}/lener-br/train.conll --valid {sets}/lener-br/valid.conll --test {sets}/lener-br/test.conll --hidden 128 "
    "--set model.input_dropout=0.5 --set embed.word_dropout=0.2 --steps 3600"
)
MUSIC = (
    "forecast {sets}/polyphonic-music/NAME/train.npz --valid {sets}/polyphonic-music/NAME/valid.npz "
    "--test {sets}/polyphonic-music/NAME/test.npz --set task.output=binary"
)
MULTI30K = (
    "seq2seq {sets}/multi30k-en-de/train.ONE {sets}/multi30k-en-de/train.OTHER --valid {sets}/multi30k-en-de/valid.ONE "
    "--valid {sets}/multi30k-en-de/valid.OTHER --test {sets}/multi30k-en-de/test.ONE --test {sets}/multi30k-en-de/test.OTHER"
)
PARTS = "{sets}/SET/train.END --valid {sets}/SET/valid.END --test {sets}/SET/test.END"
EMOJI = (
    "caption {sets}/emoji-captions/train.csv {sets}/emoji-captions/train.npy --valid {sets}/emoji-captions/valid.csv "
    "--valid {sets}/emoji-captions/valid.npy --test {sets}/emoji-captions/test.csv --test {sets}/emoji-captions/test.npy "
    "--label {case} --steps 700 --set task.score=chrf --set task.length_penalty=1.5 --set task.image=every-step "
    "--set model.dropout=0.5 --set model.input_dropout=0.4"
)
PIXELS = (
    "classify {sets}/mnist-pixels/train.npz --test {sets}/mnist-pixels/test.npz --minutes 28 --set model.init=chrono "
    "--set task.bidirectional=false --set task.pooling=mean --set train.rows=64 --set model.input_dropout=0"
)
SHAKESPEARE = (
    "language {sets}/tinyshakespeare/input.txt --layers 3 --hidden 384 --set train.rows=32 --set train.chunk=128 "
    "--set train.validations=10 --set model.block=true --set model.convolved=4 --set model.dropout=0.4 "
    "--set model.input_dropout=0.2 --set optimizer.rate=2e-3 --set optimizer.weight_decay=1"
)
FOLDS = tuple(map(str, range(10)))

TRIALS = {
    "mr": Trial(f"{MR} {GLOVE}", {"accuracy": ">= 0.785"}, "LSTM 80.3, CNN static 81.0", FOLDS),
    "mr, fold 9": Trial(f"{MR} {GLOVE}", {"accuracy": ">= 0.785"}, "", ("9",), (1, 2)),
    "mr, fold 9, without vectors": Trial(MR, {"accuracy": ""}, "CNN 76.1", ("9",), (0, 1, 2)),
    "sst": Trial(f"{SST} {GLOVE}", {"accuracy": ">= 0.825"}, "BiLSTM 87.5 with phrases", seeds=(0, 1, 2)),
    "trec-questions": Trial(f"{TREC} {GLOVE}", {"accuracy": ">= 0.925"}, "BLSTM 93.0", seeds=(0, 1, 2)),
    "trec-questions, without vectors": Trial(TREC, {"accuracy": ""}, "", seeds=(0, 1, 2)),
    "mtod-slots es": Trial(MTOD, {"f1": ">= 0.82", "intent_accuracy": "> 0.974"}, "slots 81.0, intent 97.3", seeds=(0, 1, 2)),
    "lener-br": Trial(LENER, {"f1": ">= 0.80"}, "86.61 with large vectors"),
    "restaurant8k": Trial(
        f"tag {{sets}}/restaurant8k/train.jsonl --test {{sets}}/restaurant8k/test.jsonl --steps 3000 {GLOVE}",
        {"f1": ">= 0.94"}, "0.94 to 0.96", seeds=(0, 1, 2),
    ),
    "lener-br, vectors of machado-pt and its own text": Trial(
        f"{LENER} --vectors {{sets}}/vectors-pt", {"f1": ">= 0.84"}, "86.61 with large vectors"
    ),
    "JapaneseVowels": Trial(
        "classify {sets}/ucr/JapaneseVowels_TRAIN.ts --test {sets}/ucr/JapaneseVowels_TEST.ts --cell gru --steps 400",
        {"accuracy": ">= 0.97"}, "LSTM 95 to 98", seeds=(0, 1, 2),
    ),
    "GunPoint": Trial(
        "classify {sets}/ucr/GunPoint_TRAIN.ts --test {sets}/ucr/GunPoint_TEST.ts --cell gru --layers 2 --hidden 64 --steps 600 "
        "--set model.dropout=0.2 --set model.input_dropout=0 --set train.rows=16 --set train.patience=30", {"accuracy": ">= 0.97"},
        "", seeds=(0, 1, 2),
    ),
    "spoken-digits": Trial(
        "classify {sets}/spoken-digits/train --test {sets}/spoken-digits/test --cell gru --steps 600", {"accuracy": ">= 0.97"}, "",
        seeds=(0, 1, 2),
    ),
    "mnist by rows": Trial(
        "classify {sets}/mnist/train.npz --test {sets}/mnist/test.npz --steps 3500 --set train.rows=128", {"accuracy": ">= 0.985"},
        "", seeds=(0, 1, 2),
    ),
    "mnist by pixels, mingru": Trial(
        f"{PIXELS} --cell mingru --layers 3 --hidden 96 --set model.dropout=0.1 --set optimizer.rate=5e-3 --set optimizer.clip=2",
        {"accuracy": ">= 0.97"}, "GRU 96.2",
    ),
    "mnist by pixels, lru": Trial(
        f"{PIXELS} --cell lru --layers 2 --hidden 64 --set model.block=true --set model.dropout=0 --set cell.r_min=0.9 "
        "--set cell.r_max=0.999 --set cell.max_phase=0.314 --set optimizer.clip=5", {"accuracy": ">= 0.97"}, "",
    ),
    "mnist by pixels, lstm": Trial(
        f"{PIXELS} --cell lstm --hidden 128 --set model.dropout=0", {"accuracy": ">= 0.97"}, "LSTM 87.2",
    ),
    "tinyshakespeare, mingru": Trial(f"{SHAKESPEARE} --cell mingru --steps 2000", {"bits_per_character": "<= 2.236"}, "1.548 nats"),
    "tinyshakespeare, minlstm": Trial(
        f"{SHAKESPEARE} --cell minlstm --steps 1500", {"bits_per_character": "<= 2.236"}, "1.555 nats"
    ),
    "ett-h1, 96 -> 96": Trial(
        "forecast {sets}/ett-h1/ETTh1.csv --cell gru --steps 640 --set task.train_steps=8640 --set task.valid_steps=2880 "
        "--set task.test_steps=2880 --set task.context=96 --set task.horizon=96", {"mse_scaled": "<= 0.385"}, "SegRNN 0.368",
        seeds=(0, 1, 2),
    ),
    "m4-hourly": Trial(
        "forecast {sets}/m4-hourly/train.csv --test {sets}/m4-hourly/test.csv --cell gru --steps 4200 --set task.context=336 "
        "--set task.horizon=48 --set task.log=true --set task.valid_steps=48", {"smape": "< 12.0", "mase": "< 1.0"},
        "ES-RNN 9.33 / 0.893",
    ),
    "JSB chorales": Trial(MUSIC.replace("NAME", "jsb") + " --steps 4800", {"nats_per_step": "<= 8.45"}, "LSTM 8.45"),
    "Piano-midi": Trial(MUSIC.replace("NAME", "piano-midi") + " --steps 4600", {"nats_per_step": "<= 7.6"}, "SGD-CR 7.46"),
    "multi30k de-en": Trial(
        MULTI30K.replace("ONE", "de").replace("OTHER", "en") + " --steps 1476", {"bleu": ">= 33"}, "GRU with attention 28.8",
    ),
    "multi30k en-de": Trial(
        MULTI30K.replace("ONE", "en").replace("OTHER", "de") + " --steps 2700", {"bleu": ">= 31"}, "GRU with attention about 38",
    ),
    "tatoeba en-es": Trial(
        f"seq2seq {PARTS} --text 1 --label 2".replace("SET", "tatoeba-en-es").replace("END", "tsv")
        + " --steps 2608 --set task.batch_tokens=5000 --set model.dropout=0.2", {"bleu": ">= 40"}, "",
    ),
    "debian summaries": Trial(
        f"seq2seq {PARTS} --text 3 --label 2".replace("SET", "debian-summaries").replace("END", "tsv")
        + " --steps 422 --set data.longest=150 --set task.score=rouge-l --set task.pointer=true",
        {"rouge_l": "> 0.2712 (lead-1)"}, "",
    ),
    "sgd, next system turn": Trial(
        f"seq2seq {PARTS}".replace("SET", "sgd-dialogues").replace("END", "jsonl")
        + " --steps 450 --set task.speaker=second --set task.context=3", {"bleu": "> nearest neighbour"}, "",
    ),
    "nlvr-captions": Trial(
        "caption {sets}/nlvr-captions/train.csv {sets}/nlvr-captions/dev-images.zip --valid {sets}/nlvr-captions/valid.csv "
        "--valid {sets}/nlvr-captions/dev-images.zip --test {sets}/nlvr-captions/test.csv "
        "--test {sets}/nlvr-captions/test-images.zip --steps 600", {"bleu": "> nearest neighbour"}, "",
    ),
    "emoji-captions": Trial(EMOJI, {"chrf": "> nearest neighbour", "exact": "> nearest neighbour"}, "", ("es", "en", "pt")),
}  # fmt: skip


def run(sets: Path, runs: Path, names: list[str]) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    results = runs / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(one["trial"], one["case"], one["seed"]) for one in map(json.loads, lines)}
    for name in names or list(TRIALS):
        trial = TRIALS[name]
        for case, seed in itertools.product(trial.cases, trial.seeds):
            if (name, case, seed) not in done and (record := one_run(sets, runs, name, case, seed)):
                with results.open("a") as file:
                    file.write(json.dumps(record) + "\n")


def one_run(sets: Path, runs: Path, name: str, case: str, seed: int) -> dict[str, Any] | None:
    out = runs / f"{name}-{case}-{seed}".replace(" ", "-").replace(",", "").replace(">", "")
    began = time.monotonic()
    given = shlex.split(TRIALS[name].command.format(sets=sets, case=case))
    command = [sys.executable, "-m", "recurra", "train", *given, "--seed", str(seed), "--out", str(out), "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        print(f"{name} {case} {seed}: {made.stderr[-500:]}", file=sys.stderr, flush=True)
        return None
    report = json.loads(made.stdout)
    print(name, case, seed, report["scores"], flush=True)
    kept = {key: report.get(key) for key in ("scores", "floors", "intent_floors")}
    return {"trial": name, "case": case, "seed": seed, "minutes": (time.monotonic() - began) / 60, **kept}


def page(runs: Path) -> str:
    records = [json.loads(line) for line in (runs / "results.jsonl").read_text().splitlines()]
    lines = [
        "| set | score | reached | spread | wanted | strongest floor | published | runs | minutes each |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    commands = []
    for name, trial in TRIALS.items():
        own = [record for record in records if record["trial"] == name]
        if not own:
            continue
        for score, bar in trial.scores.items():
            values = [record["scores"][score] for record in own]
            floors = own[0]["intent_floors"] if score == "intent_accuracy" else own[0]["floors"]
            pick = min if bar.startswith("<") else max
            best = pick(floors.items(), key=lambda item: item[1]) if floors else ("", float("nan"))
            spread = statistics.pstdev(values) if len(values) > 1 else 0.0
            minutes = statistics.mean(record["minutes"] for record in own)
            lines.append(
                f"| {name} | {score} | {statistics.mean(values):.4f} | {spread:.4f} | {bar} | {best[1]:.4f} ({best[0]}) | "
                f"{trial.published} | {len(own)} | {minutes:.1f} |"
            )
        seeds = sorted({record["seed"] for record in own})
        commands.append(
            f"    recurra train {trial.command}   # seeds {', '.join(map(str, seeds))}".replace(
                "{sets}", "SETS"
            ).replace("{case}", "K")
        )
    return "\n".join([*lines, "", *commands])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", sets, runs, *names]:
            run(Path(sets), Path(runs), names)
        case ["page", runs]:
            print(page(Path(runs)))
        case _:
            sys.exit(__doc__)
