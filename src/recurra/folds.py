"""Cross-validation: as many runs as parts, each tested on its own part and trained on the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recurra import run
from recurra.errors import Interrupted, UsageError
from recurra.run import Finished, Tell
from recurra.tasks import Sources


def train(name: str, sources: Sources, out: Path, values: Mapping[str, Any], tell: Tell) -> Finished:
    """`run.train`, or with data.folds a cross-validation."""
    data = values.get("data", {})
    several = data.get("folds") is not None and data.get("fold") is None
    return (cross_validate if several else run.train)(name, sources, out, values, tell)


def cross_validate(name: str, sources: Sources, out: Path, values: Mapping[str, Any], tell: Tell) -> Finished:
    """Train the run folders `out/fold-1` and so on, or resume them, and put their scores together: of each its mean and its
    standard deviation over the folds. The task returned is that of the last fold."""
    data = values.get("data", {})
    count = int(data["folds"])
    if sources.test or sources.valid:
        raise UsageError(
            "a cross-validation takes its test and validation data from the whole; leave out --test and --valid"
        )
    done: list[Finished] = []
    for fold in range(1, count + 1):
        tell("note", text=f"fold {fold} of {count}")
        own = {**values, "data": {**data, "fold": fold}}
        try:
            done.append(run.train(name, sources, out / f"fold-{fold}", own, tell))
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped in fold {fold} of {count}, and saved; the same command with --out {out} goes on from there",
                stopped.exit_code,
            ) from stopped
    return Finished(done[-1].task, out, together([one.report for one in done]), [])


def together(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The reports of the folds as one."""
    first = reports[0]
    values = {name: [report["scores"][name] for report in reports] for name in first["scores"]}
    floors = {
        name: [report["floors"][name] for report in reports if name in report["floors"]] for name in first["floors"]
    }
    return {
        "task": first["task"],
        "data": f"{len(reports)} folds",
        "headline": first["headline"],
        "higher_is_better": first["higher_is_better"],
        "scores": {name: float(np.mean(some)) for name, some in values.items()},
        "spread": {name: float(np.std(some)) for name, some in values.items()},
        "folds": values,
        "floors": {name: float(np.mean(some)) for name, some in floors.items()},
        "n": sum(report["n"] for report in reports),
        "seconds": round(sum(report["seconds"] for report in reports), 3),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report of a cross-validation as lines for people."""
    return [
        f"{report['data']}: {report['n']:,} examples",
        *(
            f"  {name.replace('_', ' '):<32} {value:.4f}  (deviation {report['spread'][name]:.4f})"
            for name, value in report["scores"].items()
        ),
        *(f"  floor: {name:<25} {value:.4f} {report['headline']}" for name, value in report["floors"].items()),
    ]
