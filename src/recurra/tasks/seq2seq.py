"""The sequence-to-sequence task: one text into another (many to many, delayed)."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import config as configuration
from recurra.attention import ATTENTIONS
from recurra.cells import CELLS, Cell, LockedDropout, Stacked
from recurra.config import Config
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.data.feed import Ragged
from recurra.data.pairs import pairs
from recurra.data.survey import survey_examples
from recurra.data.tokens import TOKENS, Tokens
from recurra.decode import Beam
from recurra.decoder import Decoder, EncoderDecoder, repeated
from recurra.errors import DataError, UsageError
from recurra.models import Encoder, resting
from recurra.state import State, within
from recurra.tasks.base import Sources, Unit, Validation, refuse
from recurra.tasks.examples import OnExamples, Part, by_length, in_one_line, lengths_of, text_or_series
from recurra.tasks.inputs import Inputs

SHORT = 40  # characters of a text, in the mean: shorter ones are read by characters
SCORED_AT_ONCE, SEARCHED_AT_ONCE = 128, 64  # rows


@dataclass(kw_only=True, frozen=True)
class Options:
    """`[task]` of the config."""

    attention: Literal["none", "dot", "general", "additive", "location", "multi-head"] = "general"
    feed: bool = False
    bidirectional: bool = True
    smoothing: float = 0.0
    beam: int = 5
    length_penalty: float = 0.6


@final
class Seq2Seq(OnExamples):
    """A text into another: an encoder reads one, and a decoder that looks at what it put out writes the other.

    Loss: cross-entropy in nats a token of the target under teacher forcing. Scores are of texts that the network wrote alone, by a
    beam: the share that is exactly right, and the share of right tokens. Both sides share one vocabulary.
    """

    name = "seq2seq"
    unit = Unit("nats/token", 1.0, "tokens")
    Options = Options
    model: EncoderDecoder

    @classmethod
    def read_files(cls, config: Config, paths: Sequence[Path], wanted: bool, tolerant: bool) -> Examples:
        return pairs(paths, text=config.data.text, label=config.data.label, wanted=wanted, tolerant=tolerant)

    @classmethod
    def learn_inputs(cls, config: Config, train: Examples) -> Inputs:
        """One vocabulary of both sides."""
        config = cls.settled_tokens(config, train)
        both = [*train.inputs, *map(_target, train.targets or ())]
        return Inputs(
            "text", TOKENS[config.tokens.kind].learn(lambda: (f"{text}\n" for text in both), config.tokens.size)
        )

    @classmethod
    def settled_tokens(cls, config: Config, train: Examples) -> Config:
        """The config with the kind of tokens decided: characters for short texts, byte pairs for others."""
        refuse(config, "each text has one other text", "separator")
        if config.tokens.kind == "words":
            raise UsageError("tokens.kind=words cannot write every text; take bpe, characters or bytes")
        if config.tokens.kind != "auto":
            return config
        mean = sum(map(len, train.inputs)) / max(1, len(train))
        return configuration.changed(config, tokens={"kind": "characters" if mean < SHORT else "bpe"})

    @classmethod
    def learn(cls, config: Config, parts: Mapping[str, Examples]) -> dict[str, Any]:
        texts = [_target(one) for one in parts["train"].targets or ()]
        if not texts:
            raise DataError("no example has a text to be written; name its column with --label")
        return {
            "longest": max(map(len, texts)),
            "same": sum(map(str.__eq__, texts, parts["train"].inputs)) / len(texts),
        }

    @classmethod
    def strata(cls, examples: Examples) -> list[Hashable]:
        return [None] * len(examples)

    @property
    def tokens(self) -> Tokens:
        return cast(Tokens, self.inputs.tokens)

    def encode_targets(self, examples: Examples) -> Ragged | None:
        """The ids of the targets, with the end mark before and after each."""
        if examples.targets is None:
            return None
        mark = np.array([self.tokens.end], np.int64)
        parts = [
            np.concatenate([mark, self.tokens.encode(_target(one)), mark]).astype(np.int64) for one in examples.targets
        ]
        return Ragged.of(parts, np.zeros(0, np.int64))

    def targets(self, encoded: Ragged, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """What is read, what is to be said next, and how many tokens each row has."""
        ids, lengths = encoded.padded(rows)
        return ids[:, :-1], ids[:, 1:], lengths - 1

    def weight(self, targets: Any, lengths: Tensor) -> float:
        return float(targets[2].sum())

    def network(self, config: Config, encoder: Encoder) -> nn.Module:
        options, model = self.options, config.model
        hidden, table = int(model.hidden), nn.Embedding(self.tokens.size, int(config.embed.size))
        nn.init.normal_(table.weight, std=0.3)
        size = hidden if options.attention == "dot" else None
        if size is not None and encoder.output_size != hidden:
            raise UsageError(
                f"dot attention compares {hidden} units of the decoder with {encoder.output_size} of the encoder; take general, or "
                "--set task.bidirectional=false"
            )
        kind = None if options.attention == "none" else ATTENTIONS[options.attention]
        attention = None if kind is None else kind(hidden, encoder.output_size)
        given = configuration.options(CELLS[config.cell.name], config.cell.model_extra or {}, "cell")
        cells: list[Cell] = []
        for layer in range(model.layers):
            inputs = hidden if layer else table.embedding_dim + hidden * options.feed
            cells.append(CELLS[config.cell.name](inputs, hidden, **given))
        if float(model.dropout):
            cells = [LockedDropout(cell, float(model.dropout)) for cell in cells[:-1]] + cells[-1:]
        core = cells[0] if len(cells) == 1 else Stacked(cells)
        decoder = Decoder(table, core, encoder.output_size, attention, feed=options.feed, dropout=float(model.dropout))
        return EncoderDecoder(encoder, decoder)

    def regime(self) -> dict[str, dict[str, Any]]:
        chosen = super().regime()
        short = self.tokens.kind in ("characters", "bytes")
        chosen["model"] |= {"hidden": 256, "input_dropout": 0.0 if short else 0.2, "dropout": 0.1 if short else 0.3}
        chosen["train"] = {"rows": 64}
        chosen["optimizer"] = {"rate": 3e-3}
        return chosen

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        written, wanted, lengths = batch.targets
        return self._surprise(
            self.model(batch.inputs, batch.lengths, written, lengths), wanted, lengths
        ) / batch.weight, state

    def _surprise(self, scores: Tensor, wanted: Tensor, lengths: Tensor) -> Tensor:
        """The summed surprise in nats at the tokens that are wanted, with label smoothing in training."""
        smoothing = self.options.smoothing if self.model.training else 0.0
        losses = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none", label_smoothing=smoothing)
        return torch.where(within(lengths, wanted.shape[1]), losses.view(wanted.shape), 0.0).sum()

    def judge(self, part: Part) -> Validation:
        """The loss under teacher forcing, by which models are compared too: a beam over every validation would take too long."""
        device, nats, count = next(self.model.parameters()).device, 0.0, 0
        for rows in by_length(part.inputs, SCORED_AT_ONCE):
            batch = self.batch(part, rows).to(device)
            with resting(self.model):
                loss, _ = self.loss(batch, ())
            nats, count = nats + float(loss) * batch.weight, count + int(batch.weight)
        return Validation(nats / max(1, count), nats / max(1, count))

    def written(self, part: Part, beam: int | None = None) -> list[list[tuple[str, float]]]:
        """For each example the texts that the network writes by itself, the likeliest first, with their scores."""
        width = self.options.beam if beam is None else beam
        found: list[list[tuple[str, float]]] = [[] for _ in part.examples.inputs]
        steps = int(1.5 * self.known["longest"]) + 10
        search = Beam(width, steps, self.tokens.end, length_penalty=self.options.length_penalty)
        device = next(self.model.parameters()).device
        for rows in by_length(part.inputs, SEARCHED_AT_ONCE):
            xs, lengths = (one.to(device) for one in part.inputs.padded(rows))
            first = torch.full((len(rows),), self.tokens.end, dtype=torch.int64, device=device)
            with resting(self.model):
                memory = self.model.remember(xs, lengths)
                start = self.model.decoder.attend(memory).initial_state(len(rows))
                best = search.search(self.model.decoder.attend(repeated(memory, width)), first, start)
            for row, one in zip(rows, best, strict=True):
                found[row] = [(self.tokens.decode(each.tokens), each.score) for each in one]
        return found

    def report(self, part: Part, train: Part | None) -> dict[str, Any]:
        if part.targets is None:
            raise DataError("these examples have no texts to be compared with; name their column with --label")
        guesses = [one[0][0] if one else "" for one in self.written(part)]
        truth = [_target(one) for one in part.examples.targets or ()]
        floors = {}
        if train is not None:
            often = Counter(_target(one) for one in train.examples.targets or ()).most_common(1)[0][0]
            floors = {
                "copy of the source": _exact(truth, part.examples.inputs),
                "most frequent": _exact(truth, [often] * len(truth)),
            }
        nats = self.judge(part).loss
        return {
            "headline": "exact",
            "higher_is_better": True,
            "scores": {
                "exact": _exact(truth, guesses),
                "nats_per_token": nats,
                "perplexity": float(np.exp(min(nats, 700.0))),
            },
            "beam": self.options.beam,
            "floors": floors,
            "samples": [
                {"source": source, "wanted": wanted, "written": guess}
                for source, wanted, guess in zip(part.examples.inputs[:5], truth, guesses, strict=False)
            ],
        }

    def lines(self, report: dict[str, Any]) -> list[str]:
        lines = [f"{report['data']}: {report['n']:,} pairs, written by a beam of {report['beam']}"]
        lines += [f"  {name.replace('_', ' '):<32} {value:.4f}" for name, value in report["scores"].items()]
        lines += [f"  floor: {name:<25} {value:.4f} exact" for name, value in report["floors"].items()]
        for one in report["samples"]:
            lines.append(
                "    " + in_one_line(f"{one['source'][:60]}  ->  {one['written'][:60]}  (wanted {one['wanted'][:60]})")
            )
        return lines

    def answer(self, examples: Examples, best: int) -> Iterator[dict[str, Any]]:
        part = Part(examples, self.inputs.encode(examples, self.config.data.longest), None)
        for source, found in zip(examples.inputs, self.written(part), strict=True):
            yield {
                "text": source,
                "written": found[0][0] if found else "",
                "best": [{"written": text, "score": score} for text, score in found[:best]],
            }

    def shown(self, answer: dict[str, Any]) -> str:
        return in_one_line(answer["written"])

    def line(self, text: str, place: str) -> Examples:
        return text_or_series("text", text, place, self.config.data.text)

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        parts = cls._parts(config, sources)
        config = cls.settled_tokens(config, parts["train"])
        report = survey_examples(parts, lengths_of(config, parts), config.data.longest)
        known = cls.learn(config, parts)
        report["longest_target_characters"] = known["longest"]
        if known["same"] > 0.1:
            report["warnings"].append(
                f"{known['same']:.0%} of the targets are a copy of their source: are these the columns?"
            )
        return report


def _target(one: tuple[str, ...]) -> str:
    return one[0]


def _exact(truth: list[str], guesses: list[str]) -> float:
    return sum(map(str.__eq__, truth, guesses)) / max(1, len(truth))
