"""The caption task: a sentence about a picture (one to many)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import config as configuration
from recurra.config import Config
from recurra.data import pictures
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.data.feed import Buckets
from recurra.data.survey import survey_examples
from recurra.data.tokens import Tokens
from recurra.decoder import EncoderDecoder
from recurra.errors import DataError, UsageError
from recurra.recurrent import mean_over
from recurra.state import masked
from recurra.tasks import writing
from recurra.tasks.base import Sources, refuse
from recurra.tasks.examples import Part
from recurra.tasks.inputs import Inputs, Picture, scale_of
from recurra.tasks.looks import Pixels
from recurra.tasks.writing import Writes
from recurra.vision import SmallCNN, shared

PRETRAINED = (224, 224)  # pixels that pretrained networks saw
HOW = {"start": "none", "every-step": "uniform"}  # the attention that this way of looking amounts to


@dataclass(kw_only=True, frozen=True)
class Options(writing.Options):
    """`[task]` of the config, beside what every task that writes has; with attend, what was seen is fed into the next step
    (`feed`), since a decoder that looks for itself starts from nothing.

    image        start: the decoder starts from the picture and sees it no more (Show and Tell; Vinyals et al. 2015,
                 arXiv:1411.4555); every-step: it sees the whole at every step (m-RNN); attend: it looks at places (Xu et al.
                 2015, arXiv:1502.03044)
    attention    with attend, how: a name in `attention.ATTENTIONS`
    encoder      cnn, a small one that is trained along; or a pretrained network that stays as it is: efficientnet-lite0 or
                 timm:NAME. Of no use where features were given
    size         pixels of a picture, HEIGHTxWIDTH; none: as the first is, at most 128 a side, or what a pretrained network wants
    """

    feed: bool = True
    image: Literal["start", "every-step", "attend"] = "attend"
    attention: Literal["dot", "general", "additive", "location", "coverage", "multi-head"] = "additive"
    encoder: str = "cnn"
    size: str | None = None


@final
class Seen(nn.Module):
    """Pictures `[batch, height, width, 3]`, or features `[batch, places, features]` -> what is seen at each place `[batch, places,
    output_size]` and, as a summary, its mean; or nothing (`blind`), where the decoder is to look for itself: one that starts
    from all that there is learns to do without looking. Past a row's end, in `lengths`, there are no places; pictures have
    them all."""

    def __init__(self, look: SmallCNN | None, features: int, size: int, dropout: float, blind: bool = False) -> None:
        super().__init__()
        self.look, self.dropout, self.output_size, self.blind = look, dropout, size, blind
        self.norm, self.out = nn.LayerNorm(features), nn.Linear(features, size)

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = xs.to(self.out.weight.dtype) if self.look is None else self.look(xs)
        ys = masked(F.gelu(self.out(F.dropout(self.norm(seen), self.dropout, self.training))), lengths)
        summary = mean_over(ys, lengths)
        return ys, torch.zeros_like(summary) if self.blind else summary


@final
class Caption(Writes):
    """A sentence about a picture: an encoder sees the picture, and a decoder writes while it looks at what was seen."""

    name = "caption"
    Options = Options

    @classmethod
    def read_files(cls, config: Config, paths: Sequence[Path], wanted: bool, tolerant: bool) -> Examples:
        refuse(config, "a picture has captions", "separator", "longest")
        return pictures.captions(
            paths,
            text=config.data.text,
            label=config.data.label,
            size=_size(config),
            wanted=wanted,
            tolerant=tolerant,
        )

    @classmethod
    def learn_inputs(cls, config: Config, train: Examples) -> Inputs:
        encoder = (config.task.model_extra or {}).get("encoder", "cnn")
        if train.kind == "series":
            if encoder != "cnn":
                raise UsageError(f"features were given, not pictures; leave out task.encoder={encoder}")
            return Inputs("series", scale=scale_of(np.concatenate(train.inputs)))
        height, width, _ = train.inputs[0].shape
        return Inputs("picture", picture=Picture(height, width, None if encoder == "cnn" else str(encoder)))

    @classmethod
    def learn(cls, config: Config, parts: Mapping[str, Examples], inputs: Inputs) -> dict[str, Any]:
        first = inputs.encode(parts["train"].take([0])).steps.values
        return {**super().learn(config, parts, inputs), "features": first.shape[-1]}

    @classmethod
    def learnt_tokens(cls, config: Config, texts: Sequence[str]) -> Tokens:
        """Words, unless the config says."""
        chosen = configuration.changed(config, tokens={"kind": "words"}) if config.tokens.kind == "auto" else config
        return super().learnt_tokens(chosen, texts)

    def read(self, part: Part, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        inputs, lengths = super().read(part, rows)
        return inputs, lengths if self.inputs.picture is None else None

    @property
    def attention(self) -> str:
        return HOW.get(self.options.image, self.options.attention)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """A pass shows every picture once, each with one of its captions by chance. Were all its captions rows of their own,
        pictures of which much can be said would weigh most, and with them nobody learns to look: what is said of a picture of
        few things tells where they are."""
        part, kept = self.parts["train"], self._kept
        _, begins, counts = np.unique(part.targets.owners[kept], return_index=True, return_counts=True)
        for step, rows in self._buckets().batches(start):
            chosen = np.random.default_rng([self.config.train.seed, step]).integers(counts[rows])
            yield self.batch(part, kept[begins[rows] + chosen], step)

    def _buckets(self) -> Buckets:
        """Of all lengths together: captions of one length say one kind of thing, and batches of them alone are learnt from
        slowly."""
        targets = self.parts["train"].targets
        return self._in_batches(np.full(len(np.unique(targets.owners[self._kept])), int(targets.ids.lengths.max())))

    @property
    def feeds(self) -> bool:
        return self.options.feed and self.options.image == "attend"

    def encoder(self, config: Config) -> nn.Module:
        ours = self.inputs.picture is not None and self.inputs.picture.backbone is None
        look = SmallCNN() if ours else None
        features, blind = self.known["features"] if look is None else look.size, self.options.image == "attend"
        return Seen(look, features, int(config.model.hidden), float(config.model.dropout), blind)

    def network(self, config: Config, encoder: nn.Module) -> nn.Module:
        return EncoderDecoder(encoder, self.decoder(config, int(config.model.hidden), self.table(config)))

    def line(self, text: str, place: str) -> Examples:
        """A line names a file: a picture, or what else a prediction takes."""
        return self._read(self.config, [Path(text.strip())], "test", wanted=False)

    def predict(self, data: Any) -> Any:
        """What is said of one picture: uint8 [height, width, 3], features [places, size], or the name of a file. Raises
        DataError."""
        if isinstance(data, str | Path):
            return super().predict(str(data))
        if self.inputs.kind == "series":
            return super().predict(data)
        picture = np.asarray(data)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise DataError(
                f"the picture was given as {picture.dtype} {list(picture.shape)}, wanted uint8 [height, width, 3]"
            )
        return next(self._answered(Examples("picture", [picture], None, None, ["the picture"]), best=5))

    def about(self, examples: Examples, row: int) -> str:
        return examples.places[row]

    def places(self, part: Part, row: int) -> list[str] | Pixels:
        if self.inputs.picture is None:
            return [f"place {at + 1}" for at in range(int(part.inputs.steps.lengths[row]))]
        height, width, backbone = self.inputs.picture
        shown = part.examples.inputs[row]
        shown = shown if shown.shape[:2] == (height, width) else pictures.resized(shown, (height, width))
        return Pixels(shown, (SmallCNN() if backbone is None else shared(backbone)).grid(height, width))

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        parts = cls._parts(config, sources)
        known = cls.learn(config, parts, cls.learn_inputs(config, parts["train"]))
        lengths = {name: np.array([len(one) for one in part.inputs]) for name, part in parts.items()}
        report = survey_examples(parts, lengths, None)
        return {**report, "longest_target_tokens": known["longest"]}


def _size(config: Config) -> tuple[int, int] | None:
    options = config.task.model_extra or {}
    given = options.get("size")
    if given is None:
        return None if options.get("encoder", "cnn") == "cnn" else PRETRAINED
    sides = str(given).lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and 8 <= int(side) <= 1024 for side in sides):
        raise UsageError(f"task.size was {given!r}, wanted HEIGHTxWIDTH in pixels, each from 8 to 1024, such as 64x64")
    return int(sides[0]), int(sides[1])
