"""Recurrent layers from a file that Keras wrote, with the same numbers. Keras itself is not needed, h5py is.

    .keras              model.save("model.keras"), Keras 3
    .h5                 model.save("model.h5"), Keras 2 and 3
    weights in .h5      model.save_weights(...), with what model.to_json() says beside them

Keras keeps the blocks of an LSTM in the order i, f, g, o and those of a GRU as z, r, n, and multiplies x W.
"""

import json
import re
import zipfile
import zlib
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from recurra.cells import GRU, LSTM, Cell, Elman
from recurra.data.read import shown
from recurra.errors import DataError, RecurraError, UsageError
from recurra.recurrent import Bidirectional, Layer, Merge, Recurrent, Reversed

READ = "LSTM, GRU, SimpleRNN, RNN of one of their cells, and Bidirectional of these"
ORDERS = {"LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2], "SimpleRNN": [0]}  # where our blocks stand among those of Keras
ACTIVATIONS = {"tanh": "tanh", "relu": "relu", "sigmoid": "logistic", "linear": "identity"}
MERGES: dict[str | None, Merge] = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "product", None: "concat"}
REFUSED = ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "CuDNNLSTM", "CuDNNGRU")  # recurrent, and not to be read here
THEIRS = ("keras", "tf_keras", "tensorflow")  # modules whose classes are what their names say
ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"  # what the two kinds of file begin with

Config = dict[str, Any]  # what Keras says of a model or layer: class_name, config


class Other(NamedTuple):
    """A layer that is not recurrent: its class in Keras, and its weights in the order of Keras's `get_weights()`."""

    kind: str
    weights: list[Tensor]


class FromKeras(NamedTuple):
    """The layers of a Keras model by their names, in the model's order; one of a model within the model as `inner/name`."""

    layers: dict[str, Layer]
    others: dict[str, Other]

    def __str__(self) -> str:
        lines = [f"{name}: {_told(layer)}" for name, layer in self.layers.items()]
        for name, (kind, weights) in self.others.items():
            shapes = ", ".join(str(list(weight.shape)) for weight in weights)
            lines.append(f"{name}: {kind}, not recurrent, {'weights ' + shapes if shapes else 'no weights'}")
        return "\n".join(lines)


def from_keras(path: Path | str, architecture: Path | str | None = None) -> FromKeras:
    """The recurrent layers of a model that Keras saved, ready to run and to train.

    `.layers[name]` is a layer, `(xs, lengths) -> ys, summary`: `Recurrent`, `Reversed` (go_backwards) or `Bidirectional`. For xs
    `[batch, time, features]`, ys `[batch, time, units]` is what the layer of Keras puts out with return_sequences, and summary
    `[batch, units]` what it puts out without. `Deep(found.layers.values())` stacks layers that follow each other, and the `cell`
    of a `Recurrent` can step. What is not recurrent is in `.others`, as tensors.

    architecture    a file with what `model.to_json()` says, for a file of weights alone

    What Keras masks is what lies past `lengths` here. The two outputs of merge_mode=None stand side by side. Noise of training
    (dropout, recurrent_dropout) is not taken over, nor is `stateful`: a state is a value here.

    Raises UsageError for a layer that the cells cannot be (LSTM and GRU are tanh and sigmoid, SimpleRNN tanh, relu, sigmoid or
    linear), for weights without an architecture, and if h5py is not installed; DataError for a file that is no model of Keras,
    is cut, has no recurrent layer, or holds other shapes than it says.
    """
    try:
        import h5py
    except ImportError:
        raise UsageError(
            "files of Keras are read by h5py, which is not installed: pip install 'recurra[keras]'"
        ) from None
    path = Path(path)
    try:
        description, content = _taken_apart(path)
        with h5py.File(BytesIO(content)) as file:
            if architecture is not None:
                description = _bytes(Path(architecture))
            model = _described(description or _stored(file))
            found = _read(model, _Listed(file) if _is_listed(file) else _Grouped(file, model))
    except RecurraError as error:
        raise type(error)(f"{shown(path)}: {error}") from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{shown(path)} cannot be read ({shown(str(error))}); wanted what model.save() wrote"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{shown(path)} is not as Keras writes it ({type(error).__name__}: {shown(str(error))}); save the model anew"
        ) from error
    if not found.layers:
        there = ", ".join(f"{name} ({other.kind})" for name, other in found.others.items())
        raise DataError(f"{shown(path)} holds no recurrent layer, only {there or 'nothing'}; wanted {READ}")
    return found


# --- the file --------------------------------------------------------------------------------------------------------


def _taken_apart(path: Path) -> tuple[bytes | None, bytes]:
    """What a file says of its model, where that stands apart, and its weights in HDF5."""
    if path.is_dir():
        raise DataError("this is a folder, wanted a file: model.save('model.keras') writes one")
    content = _bytes(path)
    if content.startswith(HDF5):
        return None, content
    if not content.startswith(ZIP):
        raise DataError("this is neither a .keras nor an .h5 file; wanted what model.save() of Keras writes")
    with zipfile.ZipFile(BytesIO(content)) as archive:
        for name in ("config.json", "model.weights.h5"):
            if name not in archive.namelist():
                raise DataError(f"there is no {name} in it; wanted what model.save('model.keras') writes")
        return archive.read("config.json"), archive.read("model.weights.h5")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}") from None


def _stored(file: Any) -> bytes | str:
    """The description within an .h5 file."""
    if "model_config" not in file.attrs:
        raise UsageError(
            "these are weights alone, which do not say what layers they are of; save the model with "
            "model.save('model.keras'), or give a file with what model.to_json() says as architecture="
        )
    return file.attrs["model_config"]


def _described(text: bytes | str) -> Config:
    try:
        model = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the description of the model is no JSON ({error}); save it anew") from None
    if not isinstance(model, dict) or not _layers_of(model):
        kind = model.get("class_name") if isinstance(model, dict) else model
        raise DataError(
            f"a model of the class {kind!r} does not say what its layers are; wanted Sequential or Functional: "
            "build one of the recurrent layers, and save that"
        )
    return model


def _layers_of(model: Config) -> list[Config]:
    """The layers of a model, none of what is no model. Keras before 2.2.3 had the list alone for a Sequential."""
    config = model.get("config")
    return config if isinstance(config, list) else config.get("layers", []) if isinstance(config, dict) else []


def _name(layer: Config) -> str:
    return str(layer["config"]["name"] if isinstance(layer["config"], dict) else layer["name"])


class _Kept(Protocol):
    """Where the weights of a model's layers are."""

    def weights(self, layer: Config) -> list[Tensor]:
        """Of this layer, in the order of Keras's get_weights()."""

    def inside(self, model: Config) -> "_Kept":
        """Those of a model within the model."""


class _Listed:
    """As .h5 files have them: a group for each layer, by its name, with a list of what it holds."""

    def __init__(self, file: Any) -> None:
        self._group = _child(file, "model_weights") if "model_weights" in file else file

    def weights(self, layer: Config) -> list[Tensor]:
        if _name(layer) not in self._group:  # it has none
            return []
        group = _child(self._group, _name(layer))
        return [_tensor(group, name) for name in _names(group, "weight_names")]

    def inside(self, model: Config) -> "_Kept":
        raise UsageError(
            f"{_name(model)} is a model within the model, and an .h5 file does not say which of its weights belong to which "
            "layer; save the model with model.save('model.keras')"
        )


class _Grouped:
    """As Keras 3 has them: groups called after the classes of layers, numbered among their like (`layers/lstm_1/cell/vars/0`)."""

    def __init__(self, group: Any, model: Config) -> None:
        groups = _child(group, "layers")
        named = {str(vars.attrs.get("name")): key for key, vars in _own_variables(groups)}
        self._places, seen = {}, Counter[str]()
        for layer in _layers_of(model):
            like = _in_snake_case(layer["class_name"])
            numbered = f"{like}_{seen[like]}" if seen[like] else like
            seen[like] += 1
            place = named.get(_name(layer), numbered)  # before 3.5 or so names were not kept
            self._places[_name(layer)] = _child(groups, place) if place in groups else None

    def weights(self, layer: Config) -> list[Tensor]:
        group = self._places[_name(layer)]
        return [] if group is None else _all_of(group)

    def inside(self, model: Config) -> "_Kept":
        return _Grouped(self._places[_name(model)], model)


def _own_variables(groups: Any) -> list[tuple[str, Any]]:
    return [(key, group["vars"]) for key, group in groups.items() if "vars" in group]


def _in_snake_case(name: str) -> str:
    """SimpleRNN -> simple_rnn, GRU -> gru."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))).lower()


def _all_of(group: Any) -> list[Tensor]:
    """A layer's own weights by their numbers, then those of its parts; what random numbers have come to is not among them."""
    own = _child(group, "vars") if "vars" in group else {}
    found = [_tensor(own, key) for key in sorted(own, key=int)]
    parts = sorted(
        (key for key in group if key not in ("vars", "seed_generator")), key=lambda key: key == "backward_layer"
    )
    for key in parts:
        found += _all_of(_child(group, key))
    return found


def _is_listed(file: Any) -> bool:
    return "model_weights" in file or bool(_names(file, "layer_names"))


def _names(group: Any, key: str) -> list[str]:
    """A list among the attributes, which Keras cuts into `key0`, `key1` and so on where it is long."""
    parts = (
        [key] if key in group.attrs else sorted((k for k in group.attrs if re.fullmatch(key + r"\d+", k)), key=_number)
    )
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in group.attrs[part]]


def _number(key: str) -> int:
    return int(re.sub(r"\D", "", key))


def _child(group: Any, path: str) -> Any:
    """What stands at this path within a group. Links are not followed: they could lead out of the file."""
    import h5py

    for part in path.split("/"):
        link = group.get(part, getlink=True)
        if link is None:
            raise DataError(f"there is no {path} in it; it was written by halves, save the model anew")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path} is a link to somewhere else; wanted the weights themselves, save the model anew")
        group = group[part]
    return group


def _tensor(group: Any, path: str) -> Tensor:
    """The numbers at this path, float64 where they are kept so, else float32."""
    data = _child(group, path)
    if data.external or data.is_virtual or data.nbytes > data.file.id.get_filesize():
        raise DataError(f"the numbers of {path} are not in the file; save the model anew")
    if data.dtype.kind != "f":
        raise UsageError(
            f"the weights of {path} are {data.dtype}, wanted floating point: save the model before quantising"
        )
    numbers = torch.from_numpy(np.array(data, dtype=np.float64 if data.dtype == np.float64 else np.float32))
    if not numbers.isfinite().all():
        raise DataError(f"there is a number in {path} that is not finite; the training of the model failed")
    return numbers


# --- the model -------------------------------------------------------------------------------------------------------


def _read(model: Config, kept: _Kept, prefix: str = "") -> FromKeras:
    found = FromKeras({}, {})
    for layer in _layers_of(model):
        name, kind = prefix + _name(layer), _kind(layer)
        if _layers_of(layer):
            inner = _read(layer, kept.inside(layer), name + "/")
            found.layers.update(inner.layers)
            found.others.update(inner.others)
        elif kind in (*ORDERS, "RNN", "Bidirectional"):
            found.layers[name] = _layer(name, layer, kept.weights(layer))
        elif kind in REFUSED:
            raise UsageError(f"{name} is a {kind}, which is not read; wanted {READ}")
        else:
            found.others[name] = Other(kind, kept.weights(layer))
    return found


def _kind(layer: Config) -> str:
    """The class of a layer, with its module in front where it is not of Keras."""
    module = str(layer.get("module") or "keras")
    return layer["class_name"] if module.startswith(THEIRS) else f"{module}.{layer['class_name']}"


def _layer(name: str, layer: Config, weights: list[Tensor]) -> Layer:
    if layer["class_name"] == "Bidirectional":
        return _bidirectional(name, layer["config"], weights)
    made = Recurrent(_cell(name, layer, weights))
    return Reversed(made) if layer["config"].get("go_backwards") else made


def _bidirectional(name: str, config: Config, weights: list[Tensor]) -> Layer:
    forwards, merge = config["layer"], config.get("merge_mode", "concat")
    if merge not in MERGES:
        raise UsageError(f"{name} has the merge_mode {merge!r}, wanted one of concat, sum, ave, mul, None")
    if forwards["config"].get("go_backwards"):
        raise UsageError(f"the first direction of {name} goes backwards, wanted the one that goes forwards first")
    half = len(weights) // 2
    cells = (
        _cell(f"{name}, forwards", forwards, weights[:half]),
        _cell(f"{name}, backwards", config.get("backward_layer") or forwards, weights[half:]),
    )
    return Bidirectional(*cells, merge=MERGES[merge])


def _cell(name: str, layer: Config, weights: list[Tensor]) -> Cell:
    """The cell of a recurrent layer, with its weights."""
    kind, config = layer["class_name"], layer["config"]
    if kind == "RNN":
        kind, config = config["cell"]["class_name"].removesuffix("Cell"), config["cell"]["config"]
    if kind not in ORDERS:
        raise UsageError(f"{name} is {kind if kind == layer['class_name'] else 'an RNN of ' + kind}, wanted {READ}")
    options, units = _options(name, kind, config), int(config["units"])
    after = options.get("reset") == "after"
    _check_shapes(name, kind, weights, units, config.get("use_bias", True), after)
    with torch.device("meta"):  # no numbers are drawn
        cell = {"LSTM": LSTM, "GRU": GRU, "SimpleRNN": Elman}[kind](weights[0].shape[0], units, **options)
    cell.load_state_dict(_named(weights, ORDERS[kind]), assign=True)
    return cast(Cell, cell)


def _options(name: str, kind: str, config: Config) -> dict[str, Any]:
    """Of our cell; raises UsageError where it has none that does the same."""
    act = config.get("activation") or "linear"
    if kind == "SimpleRNN":
        if not isinstance(act, str) or act not in ACTIVATIONS:
            raise UsageError(
                f"{name} is a SimpleRNN with the activation {act!r}, wanted one of {', '.join(ACTIVATIONS)}"
            )
        return {"activation": ACTIVATIONS[act]}
    gates = config.get("recurrent_activation") or "linear"
    if (act, gates) != ("tanh", "sigmoid"):
        raise UsageError(
            f"{name} is {kind} with activation={act!r} and recurrent_activation={gates!r}; the cells here have tanh and sigmoid, "
            "train it with those"
        )
    return {"reset": "after" if config.get("reset_after") else "before"} if kind == "GRU" else {}


def _check_shapes(name: str, kind: str, weights: list[Tensor], units: int, bias: bool, after: bool) -> None:
    rows = len(ORDERS[kind]) * units
    given = [tuple(weight.shape) for weight in weights]
    inputs = given[0][0] if given and given[0] else 0
    wanted = [(inputs, rows), (units, rows), *([(2, rows) if after else (rows,)] if bias else [])]
    if given != wanted:
        raise DataError(
            f"{name}, {kind} of {units} units, has weights of the shapes {', '.join(map(str, given)) or 'none'}; "
            f"wanted {', '.join(map(str, wanted))} for {inputs} inputs: weights and description are not of one model"
        )


def _named(weights: list[Tensor], order: list[int]) -> dict[str, Tensor]:
    """Kernel [inputs, blocks * units], recurrent kernel and, if there is one, the bias, or one for each kernel, under our names."""

    def rows(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (len(order), -1))[order].flatten(0, 1).contiguous()

    kernel, recurrent, *bias = weights
    zeros = kernel.new_zeros(kernel.shape[1])
    b_ih, b_hh = (*bias[0],) if bias and bias[0].dim() == 2 else (bias[0] if bias else zeros, zeros)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return dict(zip(names, map(rows, (kernel.mT, recurrent.mT, b_ih, b_hh)), strict=True))


def _told(layer: Layer) -> str:
    """A layer in words."""
    if isinstance(layer, Reversed):
        return _told(layer.layer) + ", from the end to the start"
    if isinstance(layer, Bidirectional):
        kinds = [type(side.cell).__name__ for side in (layer.forwards, layer.backwards)]
        return f"{' and '.join(dict.fromkeys(kinds))} in both directions, {layer.input_size} -> {layer.output_size}"
    return f"{type(cast(Recurrent, layer).cell).__name__}, {layer.input_size} -> {layer.output_size}"
