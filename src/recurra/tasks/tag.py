"""The tagging task: a label for every step of a sequence, and one for the whole of it where the data has such."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import Config
from recurra.crf import CRF, bio_allowed
from recurra.data.batch import Batch
from recurra.data.columns import split_with_offsets, tagged
from recurra.data.examples import Examples
from recurra.data.feed import Ragged
from recurra.data.series import is_series, series
from recurra.data.survey import survey_examples
from recurra.errors import DataError, UsageError
from recurra.models import Encoder, ManyToMany
from recurra.spans import bio_problems, span_scores, spans
from recurra.state import State, within
from recurra.tasks import scores
from recurra.tasks.base import Sources, Unit, Validation
from recurra.tasks.examples import OnExamples, Part, in_one_line, lengths_of, options, record_of, series_of
from recurra.tasks.floors import label_floors, tag_floors
from recurra.tasks.inputs import Inputs


@dataclass(kw_only=True, frozen=True)
class Options:
    """`[task]` of the config."""

    bidirectional: bool = True
    crf: bool | Literal["auto"] = "auto"
    letters: bool = True


class Targets(NamedTuple):
    """The tags of sequences, and the labels of whole ones where there are some."""

    tags: Ragged
    heads: np.ndarray | None


class Guesses(NamedTuple):
    """Tags and labels of whole sequences as the network says them, and its mean loss; 0 where that is not known."""

    tags: list[list[str]]
    heads: list[str] | None
    loss: float


@final
class Tag(OnExamples):
    """A label for every step (many to many, synchronous): slots, entities, parts of speech, frames; and with them an intent.

    Loss: the surprise of all labels of a sequence in nats, summed over its steps, by a conditional random field or step by step.
    Scores: where tags are in BIO, the F1 of whole spans as conlleval has it; else the accuracy.
    """

    name = "tag"
    unit = Unit("nats", 1.0, "sequences")
    Options = Options
    model: ManyToMany

    @classmethod
    def read_files(cls, config: Config, paths: Sequence[Path], wanted: bool, tolerant: bool) -> Examples:
        if is_series(paths):
            return series(paths, label=config.data.label, wanted=wanted, tolerant=tolerant, each_step=True)
        return tagged(paths, wanted=wanted, tolerant=tolerant)

    @classmethod
    def learn(cls, config: Config, parts: Mapping[str, Examples], inputs: Inputs) -> dict[str, Any]:
        train = parts["train"]
        counts = {tag for part in parts.values() for tags in _tags_of(part) for tag in tags}
        heads = {head for part in parts.values() for head in part.heads or ()}
        names = sorted(counts, key=lambda name: (name != "O", name))
        if len(names) < 2:
            raise DataError(f"every step has the tag {names[0] if names else 'of nothing'!r}; wanted at least two tags")
        apart = [split_again(" ".join(words)) == words for words in train.inputs] if train.kind == "words" else [False]
        return {
            "tags": names,
            "heads": sorted(heads) if train.heads and len(heads) > 1 else [],  # one alone says nothing
            "bio": any(name.startswith("B-") for name in names),
            "split": sum(apart) > 0.9 * len(apart),
        }

    @classmethod
    def learn_inputs(cls, config: Config, train: Examples) -> Inputs:
        return Inputs.learn(config, train, letters=options(cls, config).letters)

    @classmethod
    def strata(cls, examples: Examples) -> list[Hashable]:
        return list(examples.heads) if examples.heads else [None] * len(examples)

    def encode_targets(self, examples: Examples) -> Targets | None:
        if examples.targets is None:
            return None
        longest, of_tag = self.config.data.longest, {name: at for at, name in enumerate(self.known["tags"])}
        rows = [np.array([of_tag.get(tag, -1) for tag in tags[:longest]], np.int64) for tags in _tags_of(examples)]
        heads = None
        if self.known["heads"] and examples.heads is not None:
            of_head = {name: at for at, name in enumerate(self.known["heads"])}
            heads = np.array([of_head.get(name, -1) for name in examples.heads], np.int64)
        return Targets(Ragged.of(rows, np.zeros(0, np.int64)), heads)

    def targets(self, encoded: Targets, rows: np.ndarray) -> Any:
        tags, _ = encoded.tags.padded(rows)
        return (tags, torch.from_numpy(encoded.heads[rows])) if encoded.heads is not None else (tags,)

    def network(self, config: Config, encoder: Encoder) -> nn.Module:
        known, crf = self.known, None
        if self.options.crf is True or (self.options.crf == "auto" and known["bio"]):
            crf = CRF(len(known["tags"]), *bio_allowed(known["tags"]))
        return ManyToMany(encoder, len(known["tags"]), len(known["heads"]), float(config.model.dropout), crf)

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        outputs, heads = self.model(batch.inputs, batch.lengths)
        losses = self.tag_loss(outputs, batch.targets[0], cast(Tensor, batch.lengths))
        if heads is not None:
            losses = losses + F.cross_entropy(heads, batch.targets[1], reduction="none")
        return losses.sum() / batch.weight, state

    def tag_loss(self, outputs: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """The surprise of the tags of each row `[batch]` in nats, under scores `[batch, time, tags]`."""
        if self.model.crf is not None:
            return self.model.crf.loss(outputs, tags, lengths)
        losses = F.cross_entropy(outputs.flatten(0, 1), tags.flatten(), reduction="none").view(tags.shape)
        return torch.where(within(lengths, tags.shape[1]), losses, 0.0).sum(1)

    def decoded(self, outputs: Tensor, lengths: Tensor) -> Tensor:
        """The tags `[batch, time]` that the scores speak for."""
        return self.model.crf.decode(outputs, lengths) if self.model.crf is not None else outputs.argmax(2)

    def judge(self, part: Part) -> Validation:
        guesses = self._guesses(part)
        return Validation(guesses.loss, 1 - self._headline(self._scores(part, guesses)))

    def _headline(self, made: dict[str, float]) -> float:
        main = made["f1"] if self.known["bio"] else made["accuracy"]
        return (main + made["intent_accuracy"]) / 2 if "intent_accuracy" in made else main

    @torch.no_grad()
    def _guesses(self, part: Part) -> Guesses:
        """What the network says, and the mean loss where all tags of the part are known."""
        tags: list[list[str]] = [[] for _ in part.inputs.steps.lengths]
        heads: list[str] | None = [""] * len(tags) if self.known["heads"] else None
        told = part.targets is not None and bool((part.targets.tags.values >= 0).all())
        total = 0.0
        for rows, (outputs, scored), lengths in self.outputs(part.inputs):
            ends = lengths.to(outputs.device)
            best = self.decoded(outputs, ends).cpu()
            for at, row in enumerate(rows):
                tags[row] = [self.known["tags"][tag] for tag in best[at, : int(lengths[at])].tolist()]
            if heads is not None:
                for row, place in zip(rows, scored.argmax(1).tolist(), strict=True):
                    heads[row] = self.known["heads"][place]
            if told:
                target = [one.to(outputs.device) for one in self.targets(part.targets, rows)]
                total += float(self.tag_loss(outputs, target[0], ends).sum())
                if len(target) > 1:
                    total += float(F.cross_entropy(scored, target[1], reduction="sum", ignore_index=-1))
        return Guesses(tags, heads, total / max(1, len(tags)))

    def _truth(self, part: Part) -> list[list[str]]:
        return [tags[: self.config.data.longest] for tags in _tags_of(part.examples)]

    def _scores(self, part: Part, guesses: Guesses) -> dict[str, float]:
        truth, tags, heads = self._truth(part), guesses.tags, guesses.heads
        right = [sum(a == b for a, b in zip(one, other, strict=True)) for one, other in zip(truth, tags, strict=True)]
        whole = [one == other for one, other in zip(truth, tags, strict=True)]
        made = {"accuracy": sum(right) / max(1, sum(map(len, truth)))}
        if self.known["bio"]:
            found = span_scores(truth, tags)
            made = {name: found[name] for name in ("f1", "precision", "recall")} | made
        else:
            place = {name: at for at, name in enumerate(sorted({tag for one in [*truth, *tags] for tag in one}))}
            flat = [np.array([place[tag] for one in some for tag in one]) for some in (truth, tags)]
            made["macro_f1"] = scores.macro_f1(flat[0], flat[1], len(place))
        if heads is not None and part.examples.heads is not None:
            same = [one == other for one, other in zip(part.examples.heads, heads, strict=True)]
            made["intent_accuracy"] = sum(same) / max(1, len(same))
            whole = [one and other for one, other in zip(whole, same, strict=True)]
        return {**made, "exact": sum(whole) / max(1, len(whole))}

    def report(self, part: Part, train: Part | None) -> dict[str, Any]:
        if part.targets is None:
            raise DataError("these examples have no tags to be compared with")
        guesses = self._guesses(part)
        report: dict[str, Any] = {
            "headline": "f1" if self.known["bio"] else "accuracy",
            "higher_is_better": True,
            "scores": self._scores(part, guesses),
            "steps": int(part.inputs.steps.lengths.sum()),
            "unknown_words": self.inputs.unknown(part.inputs),
            "floors": {},
        }
        if self.known["bio"]:
            report["kinds"] = span_scores(self._truth(part), guesses.tags)["kinds"]
            report["invalid"] = sum(len(bio_problems(tags)) for tags in guesses.tags)
        if train is not None:
            report["floors"] = tag_floors(self._steps(train), self._truth(train), self._steps(part), self._truth(part))
            if part.targets.heads is not None:
                of = lambda one: (one.examples.inputs, one.targets.heads)  # noqa: E731
                report["intent_floors"] = label_floors(of(train), of(part), None)
        return report

    def _steps(self, part: Part) -> list[Any] | None:
        return part.examples.inputs if self.inputs.kind == "words" else None

    def lines(self, report: dict[str, Any]) -> list[str]:
        lines = [f"{report['data']}: {report['n']:,} sequences, {report['steps']:,} steps"]
        lines += [f"  {name.replace('_', ' '):<32} {value:.4f}" for name, value in report["scores"].items()]
        lines += [f"  floor: {name:<25} {value:.4f} {report['headline']}" for name, value in report["floors"].items()]
        lines += [
            f"  floor: {name:<25} {value:.4f} intent accuracy"
            for name, value in report.get("intent_floors", {}).items()
        ]
        for name, kind in report.get("kinds", {}).items():
            lines.append(
                f"    {name:<20} F1 {kind['f1']:.3f}  precision {kind['precision']:.3f}  recall {kind['recall']:.3f}  "
                f"of {kind['gold']:,}"
            )
        if report.get("invalid"):
            lines.append(f"  {report['invalid']:,} tags go on from nothing (an I- without its B-)")
        return lines

    def answer(self, examples: Examples, best: int, search: Any = None) -> Iterator[dict[str, Any]]:
        part = Part(examples, self.inputs.encode(examples, self.config.data.longest), None)
        tags, heads, _ = self._guesses(part)
        for row, one in enumerate(tags):
            said: dict[str, Any] = {} if heads is None else {"intent": heads[row]}
            if examples.kind != "words":
                yield {"example": examples.places[row], "tags": one, **said}
                continue
            tokens = examples.inputs[row]
            if self.known["bio"]:
                said["spans"] = [
                    {
                        "kind": span.kind,
                        "begin": span.begin,
                        "end": span.end,
                        "text": " ".join(tokens[span.begin : span.end]),
                    }
                    for span in spans(one)
                ]
            yield {"tokens": tokens[: len(one)], "tags": one, **said}

    def shown(self, answer: dict[str, Any]) -> str:
        pairs = zip(answer.get("tokens", answer["tags"]), answer["tags"], strict=True)
        said = " ".join(token if tag in ("O", token) else f"{token}/{tag}" for token, tag in pairs)
        return "\t".join(in_one_line(part) for part in (*([answer["intent"]] if "intent" in answer else []), said))

    def line(self, text: str, place: str) -> Examples:
        value = record_of(text, place, ("tokens", "words", "text", "values", "x"))
        if self.inputs.kind == "series":
            return Examples("series", [series_of(value, place)], None, None, [place])
        if value is None or isinstance(value, str):
            text = text if value is None else value
            value = split_again(text) if self.known["split"] else text.split()
        if not isinstance(value, list) or not value or not all(isinstance(word, str) and word for word in value):
            raise DataError(f"{place} holds no words; wanted a text, or a list of words")
        return Examples("words", [value], None, None, [place])

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        parts = cls._parts(config, sources)
        report = survey_examples(parts, lengths_of(config, parts), config.data.longest)
        train = _tags_of(parts["train"])
        counts = Counter(tag for tags in train for tag in tags)
        report["tags"] = [f"{name}: {count:,}" for name, count in counts.most_common()]
        if parts["train"].heads is not None:
            heads = Counter(parts["train"].heads)
            report["intents"] = [f"{name}: {count:,}" for name, count in heads.most_common()]
        if any(name.startswith("B-") for name in counts):
            report["spans"] = sum(len(spans(tags)) for tags in train)
            for name, part in parts.items():
                odd = [(row, at) for row, tags in enumerate(_tags_of(part)) for at in bio_problems(tags)]
                if odd:
                    row, at = odd[0]
                    report["warnings"].append(
                        f"{len(odd):,} tags of {name} go on from nothing, the first at {part.places[row]}, word {at + 1} "
                        f"({_tags_of(part)[row][at]}): they are read as the beginning of a span"
                    )
        return report


def split_again(text: str) -> list[str]:
    """The words of a text, as texts with spans are cut."""
    return [token.word for token in split_with_offsets(text)]


def _tags_of(examples: Examples) -> list[list[str]]:
    targets = examples.targets or []
    if targets and not isinstance(targets[0], list):
        raise UsageError("these examples have no label for each step; take the classify or the regress task")
    return targets
