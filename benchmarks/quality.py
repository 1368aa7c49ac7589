"""How good the tasks are on known data: trains each trial by the command line, and writes benchmarks/QUALITY.md.

    python benchmarks/prepare.py ../shared/data SETS
    python benchmarks/quality.py run SETS RUNS [TRIAL...]        resumes: a trial that is in RUNS/results.jsonl is not run again
    python benchmarks/quality.py page RUNS > benchmarks/QUALITY.md
"""

import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


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
MTOD = "tag {sets}/mtod-slots/train.tsv --valid {sets}/mtod-slots/valid.tsv --test {sets}/mtod-slots/test.tsv --steps 1700"
LENER = "tag {sets}/lener-br/train.conll --valid {sets}/lener-br/valid.conll --test {sets}/lener-br/test.conll --steps 3000"
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
        "tag {sets}/restaurant8k/train.jsonl --test {sets}/restaurant8k/test.jsonl --steps 1500", {"f1": ">= 0.94"}, "0.94 to 0.96",
        seeds=(0, 1, 2),
    ),
    "JapaneseVowels": Trial(
        "classify {sets}/ucr/JapaneseVowels_TRAIN.ts --test {sets}/ucr/JapaneseVowels_TEST.ts --steps 500",
        {"accuracy": ">= 0.97"}, "LSTM 95 to 98", seeds=(0, 1, 2),
    ),
    "GunPoint": Trial(
        "classify {sets}/ucr/GunPoint_TRAIN.ts --test {sets}/ucr/GunPoint_TEST.ts --steps 800",
        {"accuracy": ">= 0.97"}, "", seeds=(0, 1, 2),
    ),
    "spoken-digits": Trial(
        "classify {sets}/spoken-digits/train --test {sets}/spoken-digits/test --steps 800", {"accuracy": ">= 0.97"}, "",
        seeds=(0, 1, 2),
    ),
    "mnist by rows": Trial(
        "classify {sets}/mnist/train.npz --test {sets}/mnist/test.npz --steps 6000", {"accuracy": ">= 0.985"}, ""
    ),
}  # fmt: skip


def run(sets: Path, runs: Path, names: list[str]) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    results = runs / "results.jsonl"
    done = {(one["trial"], one["case"], one["seed"]) for one in map(json.loads, results.read_text().splitlines())} if results.exists() else set()
    for name in names or list(TRIALS):
        trial = TRIALS[name]
        for case in trial.cases:
            for seed in trial.seeds:
                if (name, case, seed) in done:
                    continue
                out = runs / f"{name}-{case}-{seed}".replace(" ", "-").replace(",", "")
                command = trial.command.format(sets=sets, case=case)
                began = time.monotonic()
                made = subprocess.run(
                    [sys.executable, "-m", "recurra", "train", *shlex.split(command), "--seed", str(seed), "--out", str(out), "--json"],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                if made.returncode:
                    print(f"{name} {case} {seed}: {made.stderr[-500:]}", file=sys.stderr)
                    continue
                report = json.loads(made.stdout)
                kept = {"scores": report["scores"], "floors": report["floors"], "intent_floors": report.get("intent_floors")}
                record = {"trial": name, "case": case, "seed": seed, "minutes": (time.monotonic() - began) / 60, **kept}
                with results.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(name, case, seed, report["scores"], flush=True)


def page(runs: Path) -> str:
    records = [json.loads(line) for line in (runs / "results.jsonl").read_text().splitlines()]
    lines = ["| set | score | reached | spread | wanted | strongest floor | published | runs | minutes each |", "|---|---|---|---|---|---|---|---|---|"]
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
        commands.append(f"    recurra train {trial.command}   # seeds {', '.join(map(str, seeds))}".replace("{sets}", "SETS").replace("{case}", "K"))
    return "\n".join([*lines, "", *commands])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", sets, runs, *names]:
            run(Path(sets), Path(runs), names)
        case ["page", runs]:
            print(page(Path(runs)))
        case _:
            sys.exit(__doc__)
