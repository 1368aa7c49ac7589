"""Configuration, at the border only: one section a topic, every field with its unit and default, unknown keys refused.

A run file (`run.toml`), the command line (`--set section.key=value`) and Python keywords all end here; modules take
plain arguments. A field that may be `auto` is settled before training, and the settled value is what the run stores.
"""

import inspect
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from recurra.errors import UsageError

Auto = Literal["auto"]
Units = Annotated[int, Field(ge=1, le=65_536)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A frozen set of options; a key that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskConfig(Section):
    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "language"


class DataConfig(Section):
    valid_share: float = Field(0.1, gt=0, lt=1, description="share of the data kept for validation, without --valid")
    text: str | None = Field(None, description="column of the text; none: guessed, and said")
    label: str | None = Field(None, description="column of the label; none: guessed, and said")
    separator: str | None = Field(None, description="what stands between several labels of one cell")
    longest: int | None = Field(None, ge=1, description="steps after which a sequence is cut; none: never")
    folds: int | None = Field(None, ge=2, le=1000, description="parts of a cross-validation")
    fold: int | None = Field(None, ge=1, description="the part of it that is tested here, from 1")


class TokensConfig(Section):
    kind: Literal["auto", "characters", "bytes", "words", "bpe"] = Field(
        "auto", description="auto: characters to write texts, words to judge them"
    )
    lower: bool | Auto = Field(
        "auto", description="words in small letters; auto: where whole texts are judged, or letters read too"
    )
    size: int | None = Field(
        None, ge=2, le=2_000_000, description="vocabulary, where it is learnt; none: the kind's own"
    )


class EmbedConfig(Section):
    kind: Literal["table", "onehot"] = "table"
    size: Units | Auto = Field("auto", description="features of a token; auto: 64, or as many as the vectors have")
    tied: bool | Auto = Field(
        "auto",
        description="one matrix for embedding and readout; auto: where words or byte pairs are written about something",
    )
    vectors: str | None = Field(None, description="file of word vectors where the table starts; with tokens.kind=words")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="share of words taken for unknown ones in training")
    frozen: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the steps in which the vectors stay as they are; 1: they are never learnt",
    )


class ModelConfig(Section):
    hidden: Units | Auto = Field(
        "auto", description="units of each layer; auto: 384, or 512 where the budget reads the text often"
    )
    layers: int = Field(1, ge=1, le=128)
    block: bool = Field(
        False,
        description="each cell between norms, with a way past it and a layer behind it: for mingru, minlstm, lru, qrnn",
    )
    convolved: int = Field(
        1,
        ge=1,
        le=1024,
        description="inputs that a convolution before each cell reads, each feature by itself; 1: none",
    )
    input_dropout: Share | Auto = Field("auto", description="share of embedding features dropped, locked over a chunk")
    dropout: Share | Auto = Field("auto", description="share of outputs of each layer dropped, locked over a chunk")
    recurrent_dropout: Share | Auto = Field("auto", description="share of recurrent weights dropped")
    init: str = Field("torch", description="where the cells' weights start: a name in recurra.init.PRESETS")


class CellConfig(Section):
    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "lstm"


class LearnerConfig(Section):
    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "bptt"


class OptimizerConfig(Section):
    name: Literal["adamw", "adam", "sgd", "rmsprop", "adadelta", "adagrad"] = "adamw"
    rate: Rate | Auto = Field(
        "auto", description="peak learning rate; auto: what suits the model, or the optimizer's own"
    )
    weight_decay: float = Field(0.01, ge=0, description="on matrices, never on biases")
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd and rmsprop only")
    schedule: Literal["cosine", "linear", "plateau", "constant"] = "cosine"
    warmup: int = Field(100, ge=0, description="steps of linear warm-up, at most a fifth of all")
    plateau_patience: int = Field(2, ge=1, description="validations without progress before the rate is halved")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient, or what clip_by says; 0: no clipping")
    clip_by: Literal["norm", "value", "adaptive", "step"] = Field(
        "norm",
        description="norm: of all gradients together; value: clip is for each entry; adaptive: for the gradient of each unit's "
        "weights, as a share of their norm (0.1, say); step: for the gradient of each row's state in the sum of the losses, at "
        "each step back through time (slow: by the plain loop)",
    )
    average: Literal["nt"] | None = Field(
        None,
        description="nt: from when validation has not got better for 5 times, the mean of the weights since then is what is "
        "validated and kept (NT-ASGD: with sgd and schedule constant)",
    )


class RegularizeConfig(Section):
    l1: float = Field(0.0, ge=0, description="times the sum of |w| over matrices")
    l2: float = Field(0.0, ge=0, description="times half the sum of w^2 over matrices")
    ar: float = Field(0.0, ge=0, description="times the mean square of the activity")
    tar: float = Field(0.0, ge=0, description="times the mean square of its change from step to step")
    max_norm: float = Field(0.0, ge=0, description="largest norm of the weights into one unit; 0: no limit")
    omega: float = Field(
        0.0, ge=0, description="times Omega: gradients keep their norm from step to step (slow: by the plain loop)"
    )
    omega_decay: float = Field(0.0, ge=0, description="omega is divided by 1 + omega_decay * step")
    flossing: int = Field(
        0, ge=0, description="Lyapunov exponents that are drawn to 0 (slow: by the plain loop); 0: none"
    )
    flossing_weight: float = Field(0.1, gt=0, description="times the mean of their squares")
    flossing_steps: int = Field(200, ge=1, description="steps at the beginning of training in which they are")
    gradient_noise: float = Field(
        0.0, ge=0, description="variance of the noise on each gradient at the first step; it falls as (1 + step)^-0.55"
    )


class TrainConfig(Section):
    seed: int = Field(0, ge=0, lt=2**63)
    rows: Annotated[int, Field(ge=1, le=65_536)] | Auto = Field("auto", description="sequences side by side in a batch")
    chunk: int = Field(64, ge=1, le=1_000_000, description="time steps in a batch")
    minutes: float | None = Field(
        None, gt=0, le=10_000_000, description="becomes a number of steps after a short timing"
    )
    epochs: float | None = Field(None, gt=0, le=10_000_000)
    steps: int | None = Field(None, ge=1, le=10**12)
    validations: int = Field(30, ge=1, description="how often the validation data is scored during training")
    patience: int = Field(10, ge=1, description="validations without progress before training stops early")
    checkpoint_seconds: float = Field(30.0, gt=0, description="least time between two checkpoints")
    device: str = "auto"
    threads: int | None = Field(None, ge=1)


class Config(Section):
    """All that a run is made from."""

    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    tokens: TokensConfig = TokensConfig()
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    cell: CellConfig = CellConfig()
    learner: LearnerConfig = LearnerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    regularize: RegularizeConfig = RegularizeConfig()
    train: TrainConfig = TrainConfig()


_AUTO = "literal['auto']"
_KINDS = (_AUTO, "int", "float", "constrained-int", "constrained-float")


def build(values: Mapping[str, Any]) -> Config:
    """A Config from nested mappings. Raises UsageError that names the key, what was given, and the nearest known key."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        # Of a field that takes a number or "auto", what is wrong with the number is said, and auto in the same breath.
        details = [detail for detail in error.errors() if detail["loc"][-1:] != (_AUTO,)]
        raise UsageError("; ".join(_in_words(detail, Config) for detail in details)) from None


def changed(config: Config, **sections: Mapping[str, Any]) -> Config:
    """The same config with some values replaced: `changed(config, train={"steps": 100})`."""
    values = config.model_dump()
    for section, fields in sections.items():
        values[section] = {**values[section], **fields}
    return build(values)


def settled(config: Config, chosen: Mapping[str, Mapping[str, Any]]) -> Config:
    """The same config with `chosen` put in wherever it says `auto`."""
    automatic = {
        section: {key: value for key, value in fields.items() if getattr(getattr(config, section), key) == "auto"}
        for section, fields in chosen.items()
    }
    return changed(config, **automatic)


def override(values: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Nested `values` with settings such as `cell.reset=before` written over them. A value is read as TOML, else as text."""
    for setting in settings:
        key, found, text = setting.partition("=")
        parts = key.strip().split(".")
        if not found or len(parts) != 2 or not all(parts):
            raise UsageError(f"--set was given {setting!r}, wanted section.key=value, as in --set model.hidden=512")
        values.setdefault(parts[0], {})
        if not isinstance(values[parts[0]], dict):
            raise UsageError(f"--set was given {setting!r}, but {parts[0]!r} is no section; sections are {_sections()}")
        values[parts[0]][parts[1]] = _value(text.strip())
    return values


def read(path: Path) -> dict[str, Any]:
    """The nested values of a TOML file. Raises UsageError with file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}; wanted a TOML file such as a run's own config.toml") from None


def dumps(config: Config) -> str:
    """The config as TOML, each field with its description."""
    document = tomlkit.document()
    for name, section in config:
        if isinstance(section, Section):
            document.add(name, _table(section))
    return tomlkit.dumps(document)


def options(owner: Callable[..., Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`given` checked against the keyword-only parameters of `owner`: a cell, a learner or a task declares its options there.

    Raises UsageError that names the key and what `owner` takes. `where` is the section, for the message.
    """
    fields: dict[str, Any] = {
        name: (parameter.annotation, parameter.default)
        for name, parameter in inspect.signature(owner).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    declared = create_model(where, __config__=ConfigDict(extra="forbid"), **fields)
    try:
        return declared.model_validate(dict(given)).model_dump(include=set(given))
    except ValidationError as error:
        raise UsageError("; ".join(_in_words(detail, declared, where) for detail in error.errors())) from None


def _table(section: Section) -> Any:
    table = tomlkit.table()
    for key, value in section.model_dump(exclude_none=True).items():
        entry = tomlkit.item(value)
        field = type(section).model_fields.get(key)
        if field is not None and field.description:
            entry.comment(field.description)
        table.add(key, entry)
    return table


def _value(text: str) -> Any:
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sections() -> str:
    return ", ".join(Config.model_fields)


def _in_words(detail: Any, model: type[BaseModel], prefix: str = "") -> str:
    place = [str(part) for part in detail["loc"] if part not in _KINDS]
    key = ".".join([prefix, *place] if prefix else place)
    if detail["type"] == "extra_forbidden":
        known = _known(model, place[:-1])
        near = get_close_matches(place[-1], known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
        return f"{key} is not an option; {remedy}"
    auto = ", or auto" if detail["loc"][-1] in _KINDS else ""
    return f"{key} was {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}{auto}"


def _known(model: type[BaseModel], place: list[str]) -> list[str]:
    for part in place:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)
