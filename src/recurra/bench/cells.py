"""Every cell of `CELLS`: what it computes, what it costs, which laws it passes. The page docs/cells.md is made here."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch

from recurra import testing
from recurra.cells import CELLS, Cell
from recurra.state import leaves

INPUTS, UNITS, ROWS, STEPS = 64, 128, 32, 64
FIELDS = ("Output", "State", "Parameters", "Reference")


def compare(seconds: float, laws: bool = True, tell: Callable[[str], None] = lambda name: None) -> list[dict[str, Any]]:
    """One record a cell: its name, docstring in parts, number of parameters, time of a forward and backward pass beside
    that of Elman (median of rounds in which all cells take turns), and the laws it passes."""
    work = {name: _pass(kind(INPUTS, UNITS)) for name, kind in CELLS.items()}
    rounds = _rounds(work, seconds)
    records = []
    for name, kind in CELLS.items():
        tell(name)
        milliseconds = _median([round_[name] * 1e3 for round_ in rounds])
        beside = _median([round_[name] / round_["elman"] for round_ in rounds])
        records.append(
            {
                "cell": name,
                "class": kind.__name__,
                **described(kind),
                "parameters": sum(p.numel() for p in kind(INPUTS, UNITS).parameters()),
                "milliseconds": round(milliseconds, 2),
                "beside_elman": round(beside, 2),
                "laws": len(testing.check_cell(kind(4, 3))) if laws else None,
            }
        )
    return records


def described(kind: type[Cell]) -> dict[str, Any]:
    """The parts of a cell's docstring: its summary, its equations, with the words between those that stand for each other, the
    fields Output, State, Parameters, Reference, and the paragraphs that follow."""
    lines = _joined((inspect.getdoc(kind) or "").splitlines())
    fields = {}
    for line in lines:
        name, colon, text = line.partition(": ")
        if colon and name in FIELDS:
            fields[name.lower()] = text
    equations = [place for place, line in enumerate(lines) if line.startswith("    ") and line.strip()]
    last = max(place for place, line in enumerate(lines) if line.partition(": ")[0] in FIELDS)
    options = [
        f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return {
        "summary": _first_sentence(lines),
        "equations": [line.strip() for line in lines[equations[0] : equations[-1] + 1]],
        "notes": "\n".join(lines[last + 1 :]).strip(),
        "options": options,
        "blocks": list(kind.blocks),
        "formula": fields.pop("parameters", ""),
        **fields,
    }


def _joined(lines: list[str]) -> list[str]:
    """A field that goes on in the line below becomes one line."""
    joined: list[str] = []
    for line in lines:
        in_field = joined and joined[-1].partition(": ")[0] in FIELDS
        if in_field and line.strip() and line.partition(": ")[0] not in FIELDS:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line)
    return joined


def table(records: list[dict[str, Any]]) -> str:
    """The records as lines of a terminal."""
    head = f"{'cell':<16}{'parameters':>11}{'ms':>9}{'x elman':>9}{'laws':>9}"
    rows = [
        f"{r['cell']:<16}{r['parameters']:>11,}{r['milliseconds']:>9.2f}{r['beside_elman']:>9.2f}{_laws(r):>9}"
        for r in records
    ]
    return "\n".join([head, *rows, "", _setting(), *(line for r in records for line in _explained(r))])


def _explained(record: dict[str, Any]) -> list[str]:
    """What a cell computes, as lines of a terminal."""
    formulas = [f"    {line}" for line in record["equations"]]
    told = [f"  parameters: {record['formula']}", f"  reference: {record.get('reference', '')}"]
    return ["", f"{record['cell']}: {record['summary']}", *formulas, *told]


def page(records: list[dict[str, Any]]) -> str:
    """The records as a page in Markdown."""
    parts = [
        "# Cells",
        "",
        "Made by `make docs` from `recurra.cells.CELLS`; edit the docstrings there. Each name works as",
        "`recurra train language TEXT --cell NAME`, its options as `--set cell.OPTION=VALUE`.",
        "",
        "| cell | class | parameters | time, Elman = 1 | laws |",
        "| --- | --- | --- | --- | --- |",
    ]
    for r in records:
        parts.append(
            f"| [`{r['cell']}`](#{r['cell']}) | `{r['class']}` | {r['parameters']:,} | {r['beside_elman']:.1f} | {_laws(r)} |"
        )
    parts += ["", _setting()]
    for r in records:
        parts += ["", f"## {r['cell']}", "", r["summary"], "", "```", *r["equations"], "```", ""]
        parts += [
            f"- output: {r.get('output', '')}",
            f"- state: {r.get('state', '')}",
            f"- parameters: `{r['formula']}`",
        ]
        if r["blocks"]:
            parts.append(f"- rows of the weights: {', '.join(r['blocks'])}")
        if r["options"]:
            parts.append(f"- options: {', '.join(f'`{option}`' for option in r['options'])}")
        parts.append(f"- reference: {r.get('reference', '')}")
        if r["notes"]:
            parts += ["", r["notes"]]
    return "\n".join(parts) + "\n"


def _laws(record: dict[str, Any]) -> str:
    return "" if record["laws"] is None else f"{record['laws']} of {len(testing.CELL_LAWS)}"


def _setting() -> str:
    return (
        f"One forward and backward pass over {ROWS} rows of {STEPS} steps, {INPUTS} inputs, {UNITS} units, float32, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians over rounds in which the cells take turns."
    )


def _pass(cell: Cell) -> Callable[[], None]:
    xs = testing.example(cell, ROWS, STEPS)
    if not any(
        parameter.requires_grad for parameter in cell.parameters()
    ):  # a cell that does not learn passes gradients on
        xs.requires_grad_()

    def once() -> None:
        ys, last = cell.unroll(xs, cell.initial_state(ROWS))
        (ys.sum() + sum(leaf.sum() for leaf in leaves(last))).backward()

    return once


def _rounds(work: dict[str, Callable[[], None]], seconds: float) -> list[dict[str, float]]:
    """Seconds of each piece of work in each round; the first round only warms up."""
    rounds: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(rounds) < 4 or time.perf_counter() - began < seconds:
        taken = {}
        for name, once in work.items():
            once()  # what ran before has left caches and memory as it wanted them
            start = time.perf_counter()
            once()
            taken[name] = time.perf_counter() - start
        rounds.append(taken)
    return rounds[1:]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _first_sentence(lines: list[str]) -> str:
    """The words before the first empty line."""
    words: list[str] = []
    for line in lines:
        if not line.strip():
            break
        words.append(line.strip())
    return " ".join(words)
