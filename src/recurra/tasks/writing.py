"""What the tasks that write a text about something have in common: an encoder, a decoder, and how its words are chosen."""

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import config as configuration
from recurra.attention import ATTENTIONS, Attention
from recurra.cells import Cell, LockedDropout, Stacked
from recurra.config import Config
from recurra.data import tokens as tokenisers
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.data.feed import Buckets, Ragged
from recurra.data.tokens import TOKENS, Tokens
from recurra.decode import Beam, Expansion, Hypothesis, Sampler, sample
from recurra.decoder import Decoder, EncoderDecoder, Memory, covered_twice, mixed
from recurra.errors import DataError, UsageError
from recurra.init import PRESETS
from recurra.models import layer_called, one_layer, resting
from recurra.state import State, within
from recurra.tasks.base import Unit, Validation
from recurra.tasks.examples import OnExamples, Part, by_length, in_one_line
from recurra.tasks.floors import unigram_bits
from recurra.tasks.inputs import FEATURES, Inputs
from recurra.tasks.looks import Look, Pixels, by_words, tree
from recurra.tasks.writing_floors import writing_floors
from recurra.tasks.writing_scores import written_scores

SHORT = 24  # characters of a text, in the mean: shorter ones (dates, codes, names) are written by characters
SCORED_AT_ONCE, SEARCHED_AT_ONCE = 128, 64  # rows


@dataclass(kw_only=True, frozen=True)
class Options:
    """`[task]` of the config, of every task that writes.

    feed              the attentional vector of a step is fed into the next (input feeding)
    decoder           the decoder's cell; none: that of the encoder
    decoder_hidden    and its units; none: as many as model.hidden
    coverage          times how often the decoder looks at the same place again, added to the loss (1 in See et al. 2017)
    smoothing         share of the probability that label smoothing spreads over all tokens (Szegedy et al. 2016, arXiv:1512.00567);
                      auto: 0.1, and none where texts are written by characters
    sampling          how the share of tokens that the decoder reads of its own in training grows from none to `sampled`
    sampled           that share at the last step (Bengio et al. 2015: scheduled sampling)
    batch_tokens      the tokens of a batch, of both sides, padding among them, in place of train.rows
    longest           tokens of a target above which an example is left out of training
    score             what is compared with floors; auto: exact where texts are written by characters, else bleu
    beam, length_penalty, coverage_penalty, no_repeat      how texts are searched for: `decode.Beam`
    """

    feed: bool = False
    decoder: str | None = None
    decoder_hidden: int | None = None
    coverage: float = 0.0
    smoothing: float | Literal["auto"] = "auto"
    sampling: Literal["none", "linear", "exponential", "inverse-sigmoid"] = "none"
    sampled: float = 0.25
    batch_tokens: int | None = None
    longest: int = 200
    score: Literal["auto", "exact", "bleu", "chrf", "rouge-l"] = "auto"
    beam: int = 5
    length_penalty: float = 0.6
    coverage_penalty: float = 0.0
    no_repeat: int = 0

    def __post_init__(self) -> None:
        for name, low, high in [
            ("coverage", 0, math.inf),
            ("smoothing", 0, 0.99),
            ("sampled", 0, 1),
            ("longest", 1, math.inf),
        ]:
            given = getattr(self, name)
            if given != "auto" and not low <= given <= high:
                raise UsageError(f"task.{name} was {given}, wanted a number from {low:g} to {high:g}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UsageError(f"task.batch_tokens was {self.batch_tokens}, wanted at least 1")
        Search().beam(self, steps=1, end=0)  # what it cannot take is said before the training


class Written(NamedTuple):
    """The ids of texts, with the end mark before and after each, and which example each belongs to."""

    ids: Ragged
    owners: np.ndarray


@dataclass(kw_only=True, frozen=True)
class Search:
    """How one text is written, where it is not as the options of the task say.

    width, length_penalty, coverage_penalty, no_repeat     of the beam
    best                            how many of its texts are wanted; 0: all
    prefix                          what the text begins with
    phrases                         what occurs in it
    temperature, top_k, top_p, seed     with a temperature the text is drawn (`decode.Sampler`), and not searched for
    look                            whether answers say where the network looked (`looks.Look`)
    """

    width: int | None = None
    length_penalty: float | None = None
    coverage_penalty: float | None = None
    no_repeat: int | None = None
    best: int = 0
    prefix: str = ""
    phrases: tuple[str, ...] = ()
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    look: bool = False

    def __post_init__(self) -> None:
        if self.temperature is not None and (self.prefix or self.phrases):
            raise UsageError("a text that is drawn takes no prefix and no phrases; leave out the temperature")
        if self.temperature is None and (self.top_k or self.top_p != 1):
            raise UsageError(
                "top_k and top_p say what a text is drawn from, and it was to be searched for; give a temperature too"
            )

    def beam(self, options: Options, steps: int, end: int) -> Beam:
        names = ("length_penalty", "coverage_penalty", "no_repeat")
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        settings = {name: getattr(options, name) for name in names} | said
        width = options.beam if self.width is None else self.width
        return Beam(width, steps, end, n_best=min(self.best, width), **settings)


class Writes(OnExamples):
    """A task whose network reads something and writes a text about it.

    Loss: cross-entropy in nats a token of the target under teacher forcing. Scores are of texts that the network wrote alone.
    """

    unit = Unit("nats/token", 1.0, "tokens")
    writes = True
    model: EncoderDecoder

    @property
    @abstractmethod
    def attention(self) -> str:
        """The name of the decoder's attention in `ATTENTIONS`, or none."""

    @property
    def feeds(self) -> bool:
        """Whether what was seen at a step is fed into the next."""
        return self.options.feed

    @property
    def copies(self) -> bool:
        """Whether the decoder may copy from the source."""
        return False

    # --- targets ----------------------------------------------------------------------------------------------------

    @classmethod
    def learn(cls, config: Config, parts: Mapping[str, Examples], inputs: Inputs) -> dict[str, Any]:
        texts = targets_of(parts["train"])
        if not texts:
            raise DataError("no example has a text to be written; name its column with --label")
        shared = cls.shares_tokens(config)
        tokens = cast(Tokens, inputs.tokens) if shared else cls.learnt_tokens(config, texts)
        longest = max(len(tokens.encode(text)) for text in texts)
        headline = "exact" if tokens.kind in ("characters", "bytes") else "bleu"
        return {"tokens": None if shared else tokens.content(), "longest": longest, "headline": headline}

    @classmethod
    def shares_tokens(cls, config: Config) -> bool:
        """Whether one vocabulary serves what is read and what is written."""
        return False

    @classmethod
    def learnt_tokens(cls, config: Config, texts: Sequence[str]) -> Tokens:
        """The vocabulary of these texts: characters for short texts and byte pairs for others, unless the config says."""
        kind = config.tokens.kind
        if kind == "auto":
            kind = "characters" if sum(map(len, texts)) < SHORT * len(texts) else "bpe"
        return TOKENS[kind].learn(lambda: (f"{text}\n" for text in texts), config.tokens.size)

    @classmethod
    def strata(cls, examples: Examples) -> list[Hashable]:
        return [None] * len(examples)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens of what is written."""
        kept = self.known["tokens"]
        return cast(Tokens, self.inputs.tokens) if kept is None else tokenisers.restored(kept)

    def encode_targets(self, examples: Examples) -> Written | None:
        if examples.targets is None:
            return None
        mark = np.array([self.tokens.end], np.int64)
        owners = [row for row, texts in enumerate(examples.targets) for _ in texts]
        encoded = [self.tokens.encode(text) for texts in examples.targets for text in texts]
        ids = [np.concatenate([mark, one, mark]).astype(np.int64) for one in encoded]
        return Written(Ragged.of(ids, np.zeros(0, np.int64)), np.array(owners, np.int64))

    def targets(self, encoded: Written, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """What is read, what is to be said next, and how many tokens each row has."""
        ids, lengths = encoded.ids.padded(rows)
        return ids[:, :-1], ids[:, 1:], lengths - 1

    def weight(self, targets: Any, lengths: Tensor | None) -> float:
        return float(targets[2].sum())

    def batch(self, part: Part, rows: np.ndarray, step: int = 0) -> Batch:
        """These texts of a part, each with what it is about."""
        inputs, lengths = self.read(part, part.targets.owners[rows])
        targets = self.targets(part.targets, rows)
        fresh = torch.ones(len(rows), dtype=torch.bool)
        return Batch(inputs, targets, lengths, self.weight(targets, lengths), fresh, step)

    def read(self, part: Part, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """What the encoder is given for these examples: inputs, and how many places each has, None where all have as many."""
        return part.inputs.padded(rows)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        kept = self._kept
        return (self.batch(self.parts["train"], kept[rows], step) for step, rows in self._buckets().batches(start))

    def notes(self) -> list[str]:
        left_out = len(self.parts["train"].targets.owners) - len(self._kept)
        if not left_out:
            return super().notes()
        return [
            *super().notes(),
            f"{left_out:,} texts of more than {self.options.longest} tokens are left out of training (task.longest)",
        ]

    @property
    def _kept(self) -> np.ndarray:
        """Which texts of the training are learnt from. Raises DataError where there are none."""
        kept = np.flatnonzero(self.parts["train"].targets.ids.lengths - 2 <= self.options.longest)
        if not len(kept):
            raise DataError(
                f"every text of the training has more than {self.options.longest} tokens; raise task.longest"
            )
        return kept

    def _buckets(self) -> Buckets:
        """Each text with what it is about; those that are of like length together are learnt together."""
        part, kept = self.parts["train"], self._kept
        steps = part.inputs.steps.lengths[part.targets.owners] + part.targets.ids.lengths - 1
        return self._in_batches(steps[kept])

    def _in_batches(self, steps: np.ndarray) -> Buckets:
        train = self.config.train
        rows = int(train.rows) if train.rows != "auto" else 64
        return Buckets(steps, rows, train.seed, self.options.batch_tokens)

    # --- the model --------------------------------------------------------------------------------------------------

    def build(self, config: Config) -> None:
        super().build(config)
        if self._data is not None:
            self._expect_frequencies()

    @torch.no_grad()
    def _expect_frequencies(self) -> None:
        """Start from the frequencies of the tokens in the training: the readout's bias is the logarithm of one more than their
        counts. From equal chances, the many tokens that are rare or never come are unlearnt through the attentional vectors,
        whose tanh is then at its limits, and it takes hundreds of steps until anything is looked at."""
        ids, readout = self.parts["train"].targets.ids, self.model.decoder.readout
        said = np.delete(ids.values, ids.bounds[:-1])  # a mark begins each text, which nobody is to say
        counts = torch.from_numpy(np.bincount(said, minlength=self.tokens.size))
        readout.bias.copy_((counts + 1.0).log() - (counts + 1.0).sum().log())

    def decoder(self, config: Config, memory_size: int, table: nn.Embedding) -> Decoder:
        """A decoder over a memory with features of this size, that writes with this table of tokens."""
        options, model = self.options, config.model
        name, hidden = options.decoder or config.cell.name, options.decoder_hidden or int(model.hidden)
        kind, tied = layer_called(name), config.embed.tied is True
        extra = (config.cell.model_extra or {}) if name == config.cell.name else {}
        given = configuration.options(kind, extra, "cell")
        size = kind(1, hidden, **given).output_size
        fed = (table.embedding_dim if tied else size) * self.feeds
        cells: list[Cell] = [
            one_layer(kind, size if layer else table.embedding_dim + fed, hidden, given, model.block, model.convolved)
            for layer in range(model.layers)
        ]
        for cell in cells:
            PRESETS[model.init](cell)
        if float(model.dropout):
            cells = [LockedDropout(cell, float(model.dropout)) for cell in cells[:-1]] + cells[-1:]
        core = cells[0] if len(cells) == 1 else Stacked(cells)
        return Decoder(
            table, core, memory_size, self._attention(size, memory_size), feed=self.feeds, copy=self.copies, tied=tied,
            input_dropout=float(model.input_dropout), dropout=float(model.dropout),
        )  # fmt: skip

    def _attention(self, size: int, memory_size: int) -> Attention | None:
        name = self.attention
        if name == "none":
            if self.options.coverage or self.options.coverage_penalty:
                raise UsageError("task.coverage and task.coverage_penalty are of attention, and there is none")
            return None
        return ATTENTIONS[name](size, memory_size)

    def table(self, config: Config) -> nn.Embedding:
        """The decoder's table of tokens."""
        table = nn.Embedding(self.tokens.size, int(config.embed.size))
        nn.init.normal_(table.weight, std=0.1 if config.embed.tied is True else 0.3)
        return table

    def regime(self) -> dict[str, dict[str, Any]]:
        chosen = super().regime()
        short = self.tokens.kind in ("characters", "bytes")
        chosen["model"] |= {"hidden": 256, "input_dropout": 0.0 if short else 0.2, "dropout": 0.1 if short else 0.3}
        chosen["embed"] = {"size": FEATURES, "tied": False} if short else {"size": 256, "tied": True}
        chosen["train"] = {"rows": 64}
        chosen["optimizer"] = {"rate": 3e-3}
        return chosen

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        written, wanted, lengths = batch.targets
        cell = self.model.decoder.attend(self.model.remember(batch.inputs, batch.lengths))
        start, own = cell.initial_state(len(written)), self._own(batch.step) if self.model.training else 0.0
        looks = cell.looks(mixed(cell, written, start, own) if own else written, start, lengths)
        real = within(lengths, wanted.shape[1])
        smoothing = self._smoothing if self.model.training else 0.0
        nats = F.cross_entropy(cell.scores_at(looks, real), wanted[real], reduction="sum", label_smoothing=smoothing)
        if self.options.coverage and self.model.training:
            nats = nats + self.options.coverage * covered_twice(looks.weights)[real].sum()
        return nats / batch.weight, state

    @property
    def _smoothing(self) -> float:
        if self.options.smoothing == "auto":
            return 0.0 if self.tokens.kind in ("characters", "bytes") else 0.1
        return self.options.smoothing

    def _own(self, step: int) -> float:
        """The share of tokens that the decoder reads of its own at a training step; while the number of steps is being found out,
        the largest."""
        options, steps = self.options, self.config.train.steps
        at, end = (1, 1) if steps is None else (step, steps)
        return own_share(options.sampling, at, end, options.sampled)

    def judge(self, part: Part) -> Validation:
        """The loss under teacher forcing, by which models are compared too: a beam over every validation would take too long."""
        device, nats, count = next(self.model.parameters()).device, 0.0, 0
        for rows in by_length(part.targets.ids.lengths, SCORED_AT_ONCE):
            batch = self.batch(part, rows).to(device)
            with resting(self.model):
                loss, _ = self.loss(batch, ())
            nats, count = nats + float(loss) * batch.weight, count + int(batch.weight)
        return Validation(nats / max(1, count), nats / max(1, count))

    # --- writing ----------------------------------------------------------------------------------------------------

    def written(self, part: Part, search: Search | None = None) -> list[list[Hypothesis]]:
        """For each example what the network writes about it by itself, the best first."""
        search = Search() if search is None else search
        found: list[list[Hypothesis]] = [[] for _ in part.examples.inputs]
        for rows in by_length(part.inputs.steps.lengths, SEARCHED_AT_ONCE):
            with resting(self.model):
                best = self._written_about(part, rows, search)
            for row, one in zip(rows, best, strict=True):
                found[row] = one
        return found

    def _written_about(
        self, part: Part, rows: np.ndarray, search: Search, watch: Callable[[Expansion], None] | None = None
    ) -> list[list[Hypothesis]]:
        memory, end, batch = self._remembered(part, rows), self.tokens.end, len(rows)
        alone = self.model.decoder.attend(memory)
        first = torch.full((batch,), end, dtype=torch.int64, device=memory.summary.device)
        if search.temperature is not None:
            sampler = Sampler(search.temperature, top_k=search.top_k, top_p=search.top_p, seed=search.seed)
            return [[one] for one in sample(alone, first, alone.initial_state(batch), sampler, self.limit, end)]
        beam = search.beam(self.options, self.limit, end)
        cell = self.model.decoder.attend(memory, beam.width)
        found = beam.search(
            cell,
            first,
            alone.initial_state(batch),
            prefix=[self.tokens.encode(search.prefix).tolist()] * batch if search.prefix else None,
            phrases=[[self._phrase(text) for text in search.phrases]] * batch if search.phrases else None,
            covered=lambda state: state.covered,
            places=memory.lengths,
            narrow=cell.take,
            watch=watch,
        )
        if not all(found):
            raise UsageError(
                "nothing can be written with this prefix and these phrases: the network gives them no probability"
            )
        return found

    def _remembered(self, part: Part, rows: np.ndarray) -> Memory:
        device = next(self.model.parameters()).device
        return self.model.remember(*(one if one is None else one.to(device) for one in self.read(part, rows)))

    def _phrase(self, text: str) -> list[int]:
        """Where tokens are words or parts of them, the blank before a word is part of it."""
        apart = self.tokens.kind in ("words", "bpe") and not text.startswith(" ")
        return self.tokens.encode(f" {text}" if apart else text).tolist()

    @property
    def limit(self) -> int:
        """The most tokens of a text that is written, the end mark among them."""
        return int(1.5 * min(self.known["longest"], self.options.longest)) + 10

    def report(self, part: Part, train: Part | None) -> dict[str, Any]:
        references = part.examples.targets
        if references is None:
            raise DataError("these examples have no texts to be compared with; name their column with --label")
        found = [one[0] for one in self.written(part, Search(best=1))]
        guesses = [self.tokens.decode(one.tokens) for one in found]
        scores, signatures, notes = written_scores(guesses, references)
        nats = self.judge(part).loss
        headline = self.headline if self.headline in scores else "rouge_l"
        floors = {} if train is None else self._floors(train, part)
        return {
            "headline": headline,
            "higher_is_better": True,
            "scores": {**scores, "nats_per_token": nats, "perplexity": _perplexity(nats)},
            "floors": {name: values[headline] for name, values in floors.items() if headline in values},
            "floors_in_all_scores": floors,
            "signatures": signatures,
            "notes": notes,
            "beam": self.options.beam,
            "unfinished": sum(not one.ended for one in found),
            "samples": [
                {"about": self.about(part.examples, row), "wanted": references[row][0], "written": guesses[row]}
                for row in range(min(5, len(guesses)))
            ],
        }

    @property
    def headline(self) -> str:
        """The score by which a network is compared with floors."""
        return self.known["headline"] if self.options.score == "auto" else self.options.score.replace("-", "_")

    def _floors(self, train: Part, part: Part) -> dict[str, dict[str, float]]:
        sides = [(one.examples.inputs, one.examples.targets or []) for one in (train, part)]
        ours, theirs = (_said(one.targets) for one in (train, part))
        bits = unigram_bits(ours, theirs, self.tokens.size) / len(theirs)
        return writing_floors(*sides) | {"frequencies of tokens": {"perplexity": 2.0**bits}}

    def lines(self, report: dict[str, Any]) -> list[str]:
        lines = [f"{report['data']}: {report['n']:,} texts, written by a beam of {report['beam']}"]
        lines += [f"  {name.replace('_', ' '):<32} {value:9.4f}" for name, value in report["scores"].items()]
        for name, values in report["floors_in_all_scores"].items():
            shown = ", ".join(f"{score.replace('_', ' ')} {value:.4f}" for score, value in values.items())
            lines.append(f"  floor: {name:<25} {shown}")
        lines += [f"  {name}: {signature}" for name, signature in report["signatures"].items()]
        if report["unfinished"]:
            lines.append(
                f"  {report['unfinished']:,} texts did not end by themselves and were cut after {self.limit} tokens"
            )
        for one in report["samples"]:
            cut = [
                text if len(text) <= 60 else f"{text[:57]}..." for text in (one["about"], one["written"], one["wanted"])
            ]
            lines.append("    " + in_one_line(f"{cut[0]}  ->  {cut[1]}  (wanted {cut[2]})"))
        return [*lines, *report["notes"]]

    def search(self, **how: Any) -> Search:
        return Search(**how)

    def answer(self, examples: Examples, best: int, search: Search | None = None) -> Iterator[dict[str, Any]]:
        search = Search() if search is None else search
        part = Part(examples, self.inputs.encode(examples, self.config.data.longest), None)
        if search.look:
            for row in range(len(examples)):
                found, look = self.looked(part, row, search)
                yield {**self._answer(examples, row, found, best), "look": look}
            return
        for row, found in enumerate(self.written(part, search)):
            yield self._answer(examples, row, found, best)

    def _answer(self, examples: Examples, row: int, found: list[Hypothesis], best: int) -> dict[str, Any]:
        told = [self._told(one) for one in found[:best]]
        more: dict[str, Any] = {key: told[0][key] for key in ("unmet", "unfinished") if key in told[0]}
        return {"about": self.about(examples, row), "written": told[0]["written"], **more, "best": told}

    def _told(self, one: Hypothesis) -> dict[str, Any]:
        """A text with its scores; where some of the phrases do not occur, how many; where it did not end, its number of tokens."""
        told: dict[str, Any] = {
            "written": self.tokens.decode(one.tokens),
            "score": one.score,
            "log_probability": one.log_probability,
        }
        unmet = {"unmet": one.unmet} if one.unmet else {}
        return told | unmet | ({} if one.ended else {"unfinished": len(one.tokens)})

    def looked(self, part: Part, row: int, search: Search) -> tuple[list[Hypothesis], Look]:
        """What the network writes about an example, and where it looked for each token of the best text, with the tree of the
        search. Raises UsageError where it has no attention."""
        if self.attention == "none":
            raise UsageError("this network looks at nothing while it writes: it was trained without attention")
        rows, levels = np.array([row]), []
        with resting(self.model):
            found = self._written_about(part, rows, search, lambda level: levels.append(level._replace(state=())))[0]
            best = found[0]
            said = [*best.tokens, *[self.tokens.end] * best.ended]
            memory = self._remembered(part, rows)
            cell, read = self.model.decoder.attend(memory), [self.tokens.end, *said[:-1]]
            looks = cell.looks(torch.tensor([read], device=memory.summary.device), cell.initial_state(1))
        look = Look(
            self.about(part.examples, row),
            self.places(part, row),
            [self.tokens.text(token) for token in said],
            looks.weights[0].double().cpu().numpy(),
            tree(levels, 0, best, self.tokens.text) if levels else (),
        )
        return found, by_words(look) if self.tokens.kind in ("words", "bpe") else look

    @abstractmethod
    def places(self, part: Part, row: int) -> list[str] | Pixels:
        """What there is to be looked at in an example, place by place, for people."""

    @abstractmethod
    def about(self, examples: Examples, row: int) -> str:
        """What an example is, for people."""

    def shown(self, answer: dict[str, Any]) -> str:
        more = f" [cut after {answer['unfinished']} tokens: it did not end]" if "unfinished" in answer else ""
        missing = f" [{answer['unmet']} of the phrases do not occur]" if "unmet" in answer else ""
        return in_one_line(answer["written"]) + more + missing


def _said(written: Written) -> np.ndarray:
    """All ids that are to be said: of each text all but the mark before it."""
    return np.delete(written.ids.values, written.ids.bounds[:-1])


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def own_share(schedule: str, step: int, steps: int, most: float) -> float:
    """The share of tokens that a decoder reads of its own at a training step: from none at first to `most` after `steps`. The
    schedules are those of Bengio et al. 2015 for 1 - share, the probability of the true token:

        linear 1 - c step,    exponential k ** step,    inverse-sigmoid k / (k + exp(step / k))

    with c or k such that they end at 1 - most.
    """
    if schedule == "none" or most == 0:
        return 0.0
    done, least = min(1.0, step / steps), 1 - most
    if schedule == "linear":
        return most * done
    if schedule == "exponential":
        return 1 - max(least, 1e-6) ** done
    k = _inverse_sigmoid(steps, max(least, 1e-6))
    return 1 - k / (k + math.exp(min(700.0, step / k)))


def _inverse_sigmoid(steps: int, least: float) -> float:
    """The k of k / (k + exp(steps / k)) = least, by bisection: the left side grows with k."""
    low, high = 0.0, float(steps) + 10.0
    for _ in range(60):
        k = (low + high) / 2
        low, high = (k, high) if k / (k + math.exp(min(700.0, steps / k))) < least else (low, k)
    return high


def targets_of(examples: Examples) -> list[str]:
    """All texts that are to be written, one after another."""
    return [text for texts in examples.targets or () for text in texts]
