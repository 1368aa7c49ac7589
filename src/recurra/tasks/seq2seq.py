"""The sequence-to-sequence task: one text into another (many to many, delayed)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final

from torch import nn

from recurra.config import Config
from recurra.data.examples import Examples
from recurra.data.pairs import pairs
from recurra.data.survey import survey_examples
from recurra.data.tokens import Tokens
from recurra.decoder import EncoderDecoder
from recurra.errors import UsageError
from recurra.models import Encoder
from recurra.tasks import writing
from recurra.tasks.base import Sources, refuse
from recurra.tasks.examples import Part, text_or_series
from recurra.tasks.inputs import Inputs
from recurra.tasks.writing import Writes, targets_of


@dataclass(kw_only=True, frozen=True)
class Options(writing.Options):
    """`[task]` of the config, beside what every task that writes has.

    attention        how the decoder looks at the source: a name in `attention.ATTENTIONS`, or none; auto: additive where texts are
                     written by characters, and else general, which learns from byte pairs as fast and is cheaper
    bidirectional    the encoder reads in both directions
    pointer          the decoder may copy tokens of the source; with a shared vocabulary
    vocabulary       shared by both sides, or one for each
    context          of dialogues: how many turns before one are read; none: 2
    speaker          of dialogues: only the turns of the one who speaks first, or second, are written; none: all
    """

    attention: Literal[
        "auto", "none", "dot", "general", "additive", "location", "coverage", "multi-head", "uniform"
    ] = "auto"
    bidirectional: bool = True
    pointer: bool = False
    vocabulary: Literal["shared", "separate"] = "shared"
    context: int | None = None
    speaker: Literal["first", "second"] | None = None


@final
class Seq2Seq(Writes):
    """A text into another: an encoder reads one, and a decoder that looks at what it put out writes the other."""

    name = "seq2seq"
    Options = Options

    @classmethod
    def read_files(cls, config: Config, paths: Sequence[Path], wanted: bool, tolerant: bool) -> Examples:
        refuse(config, "each text has one other text", "separator")
        options = config.task.model_extra or {}
        return pairs(
            paths,
            text=config.data.text,
            label=config.data.label,
            context=options.get("context"),
            speaker=options.get("speaker"),
            wanted=wanted,
            tolerant=tolerant,
        )

    @classmethod
    def learn_inputs(cls, config: Config, train: Examples) -> Inputs:
        texts = [*train.inputs, *targets_of(train)] if cls.shares_tokens(config) else train.inputs
        return Inputs("text", cls.learnt_tokens(config, texts))

    @classmethod
    def shares_tokens(cls, config: Config) -> bool:
        options = config.task.model_extra or {}
        separate = options.get("vocabulary") == "separate"
        if separate and options.get("pointer"):
            raise UsageError(
                "task.pointer copies tokens of the source, so both sides need the same ones; leave out task.vocabulary=separate"
            )
        return not separate

    @property
    def attention(self) -> str:
        if self.options.attention == "auto":
            return "additive" if self.tokens.kind in ("characters", "bytes") else "general"
        return self.options.attention

    @property
    def copies(self) -> bool:
        return self.options.pointer

    def network(self, config: Config, encoder: Encoder) -> nn.Module:
        return EncoderDecoder(encoder, self.decoder(config, encoder.output_size, self.table(config)))

    def line(self, text: str, place: str) -> Examples:
        return text_or_series("text", text, place, self.config.data.text)

    def about(self, examples: Examples, row: int) -> str:
        return examples.inputs[row]

    def places(self, part: Part, row: int) -> list[str]:
        steps = part.inputs.steps
        ids = steps.values[steps.bounds[row] : steps.bounds[row + 1]]
        return [cast(Tokens, self.inputs.tokens).text(int(token)) for token in ids]

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        parts = cls._parts(config, sources)
        inputs = cls.learn_inputs(config, parts["train"])
        known = cls.learn(config, parts, inputs)
        lengths = {name: inputs.encode(part).steps.lengths for name, part in parts.items()}
        report = survey_examples(parts, lengths, config.data.longest)
        return {**report, "longest_target_tokens": known["longest"]}
