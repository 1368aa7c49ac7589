"""Weights from Keras: the numbers of files that Keras wrote, of Keras itself where it is installed, and every refusal in words."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import recurra
from recurra.recurrent import Bidirectional, Deep, Recurrent, Reversed

h5py = pytest.importorskip("h5py", reason="files of Keras are read by h5py, which is not installed")

HERE = Path(__file__).parent / "data" / "keras"
WRITTEN: dict[str, tuple[Path, Path | None]] = {
    "stacked.keras": (HERE / "stacked.keras", None),
    "stacked.h5": (HERE / "stacked.h5", None),
    "both.keras": (HERE / "both.keras", None),
    "both.weights.h5": (HERE / "both.weights.h5", HERE / "both.json"),
}


def close(got: Tensor, wanted: np.ndarray, what: str) -> None:
    torch.testing.assert_close(got.detach().numpy(), wanted, rtol=1e-5, atol=1e-6, msg=lambda said: f"{what}: {said}")


# --- files that Keras wrote ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", WRITTEN)
def test_layers_say_what_keras_computed_when_it_wrote_the_file(written: str) -> None:
    found = recurra.from_keras(*WRITTEN[written])
    with np.load(HERE / "outputs.npz") as outputs:
        known = {key: outputs[key] for key in outputs.files if key.startswith(written.partition(".")[0] + "/")}
    assert {key.split("/")[1] for key in known} == set(found.layers)
    for key, wanted in known.items():
        model, name, part = key.split("/")
        if part != "xs":
            ys, summary = found.layers[name](torch.from_numpy(known[f"{model}/{name}/xs"]))
            close(ys if part == "ys" else summary, wanted, key)


def test_what_follows_in_keras_can_be_stacked() -> None:
    found = recurra.from_keras(HERE / "stacked.keras")
    assert list(found.layers) == ["memory", "after", "before", "simple"]
    with np.load(HERE / "outputs.npz") as outputs:
        _, summary = Deep(found.layers.values())(torch.from_numpy(outputs["stacked/memory/xs"]))
        close(summary, outputs["stacked/simple/summary"], "the uppermost")


def test_what_is_read_is_told_and_what_is_not_recurrent_is_handed_over() -> None:
    found = recurra.from_keras(HERE / "stacked.keras")
    assert str(found).splitlines() == [
        "memory: LSTM, 3 -> 4",
        "after: GRU, 4 -> 3",
        "before: GRU, 3 -> 2",
        "simple: Elman, 2 -> 3, from the end to the start",
        "input_layer: InputLayer, not recurrent, no weights",
        "readout: Dense, not recurrent, weights [3, 2], [2]",
    ]
    both = recurra.from_keras(HERE / "both.keras")
    assert str(both).startswith("wide: LSTM in both directions, 3 -> 4\nmean: GRU in both directions, 4 -> 2\n")
    with h5py.File(HERE / "stacked.h5") as file:
        kernel = file["model_weights/readout/sequential/readout/kernel"][()]
    close(found.others["readout"].weights[0], kernel, "the readout")


def test_layers_are_ready_to_train_and_reading_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    layer = recurra.from_keras(HERE / "stacked.keras").layers["after"]
    assert torch.equal(torch.get_rng_state(), before)
    layer(torch.randn(2, 5, 4))[0].sum().backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in layer.parameters())
    assert recurra.check_layer(layer)


# --- Keras itself ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="Keras itself is not installed; its files are held to above")


Make = Callable[[Any], Any]
THEIRS: dict[str, Make] = {
    "lstm": lambda of: of.LSTM(4),
    "lstm, no bias": lambda of: of.LSTM(4, use_bias=False),
    "lstm, noise of training": lambda of: of.LSTM(4, dropout=0.3, recurrent_dropout=0.2),
    "lstm, backwards": lambda of: of.LSTM(4, go_backwards=True),
    "lstm, stateful": lambda of: of.LSTM(4, unroll=True, unit_forget_bias=False),
    "gru, reset after": lambda of: of.GRU(4),
    "gru, reset after, no bias": lambda of: of.GRU(4, use_bias=False),
    "gru, reset before": lambda of: of.GRU(4, reset_after=False),
    "gru, reset before, no bias": lambda of: of.GRU(4, reset_after=False, use_bias=False),
    "simple": lambda of: of.SimpleRNN(4),
    "simple, relu": lambda of: of.SimpleRNN(4, activation="relu"),
    "simple, sigmoid, no bias": lambda of: of.SimpleRNN(4, activation="sigmoid", use_bias=False),
    "simple, linear": lambda of: of.SimpleRNN(4, activation=None),
    "cell of an lstm": lambda of: of.RNN(of.LSTMCell(4)),
    "cell of a gru, backwards": lambda of: of.RNN(of.GRUCell(4, reset_after=False), go_backwards=True),
    "one unit": lambda of: of.GRU(1),
    "both": lambda of: of.Bidirectional(of.LSTM(4)),
    "both, sum": lambda of: of.Bidirectional(of.GRU(4), merge_mode="sum"),
    "both, product": lambda of: of.Bidirectional(of.SimpleRNN(4), merge_mode="mul"),
    "both, mean": lambda of: of.Bidirectional(of.GRU(4, reset_after=False), merge_mode="ave"),
    "both, two kinds": lambda of: of.Bidirectional(of.LSTM(4), backward_layer=of.GRU(3, go_backwards=True)),
    "both, of cells": lambda of: of.Bidirectional(of.RNN(of.LSTMCell(4))),
    "both, apart": lambda of: of.Bidirectional(of.LSTM(4), merge_mode=None),
}


def numbers(array: Any) -> np.ndarray:
    return np.concatenate(
        [part.detach().numpy() for part in (array if isinstance(array, list | tuple) else [array])], -1
    )


def at_every_step(layer: Any) -> Any:
    """The layer of Keras, told to put out every step."""
    for one in (layer, getattr(layer, "forward_layer", None), getattr(layer, "backward_layer", None)):
        if one is not None:
            one.return_sequences = True
    return layer


def filled(model: Any) -> Any:
    random = np.random.default_rng(0)
    model.set_weights([random.normal(0, 0.5, weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("member", THEIRS)
def test_layers_are_those_of_keras(member: str, ending: str, keras: Any, tmp_path: Path) -> None:
    layer = THEIRS[member](keras.layers)
    model = filled(keras.Sequential([keras.Input((7, 3)), layer]))
    model.save(tmp_path / f"model.{ending}")
    ours = recurra.from_keras(tmp_path / f"model.{ending}").layers[layer.name]
    xs = torch.randn(5, 7, 3)
    ys, summary = ours(xs)
    close(summary, numbers(layer(xs)), "the end")
    close(ys, numbers(at_every_step(layer)(xs)), "every step")


@pytest.mark.filterwarnings("ignore")
def test_a_model_in_a_model_shared_names_and_other_layers_are_found(keras: Any, tmp_path: Path) -> None:
    of = keras.layers
    inner = keras.Sequential([keras.Input((6, 5)), of.GRU(5, return_sequences=True), of.GRU(3)], name="inner")
    ids = keras.Input((6,))
    table = of.Embedding(9, 5, name="table")(ids)
    both = of.Bidirectional(of.GRU(4, name="same"), name="upper")(of.LSTM(5, return_sequences=True, name="b")(table))
    scores = of.Dense(2, name="scores")(of.Concatenate()([both, inner(table)]))
    model = filled(keras.Model(ids, scores))
    model.save(tmp_path / "model.keras")
    found = recurra.from_keras(tmp_path / "model.keras")
    assert set(found.layers) == {"b", "upper", *(f"inner/{layer.name}" for layer in inner.layers)}

    words = torch.randint(9, (4, 6))
    xs = found.others["table"].weights[0][words]
    lower, _ = found.layers["b"](xs)
    inside = Deep(found.layers[f"inner/{layer.name}"] for layer in inner.layers)
    features = torch.cat([found.layers["upper"](lower)[1], inside(xs)[1]], dim=1)
    kernel, bias = found.others["scores"].weights
    close(features @ kernel + bias, numbers(model(words)), "the whole model")

    model.save(tmp_path / "model.h5")
    with pytest.raises(recurra.UsageError, match=r"inner is a model within the model.*save.*model\.keras"):
        recurra.from_keras(tmp_path / "model.h5")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda of: of.GRU(4), lambda of: of.Bidirectional(of.LSTM(4))], ids=["gru", "both"])
def test_what_keras_masks_is_past_the_lengths(make: Make, keras: Any, tmp_path: Path) -> None:
    layer, xs, lengths = make(keras.layers), torch.randn(3, 7, 3), torch.tensor([7, 4, 1])
    model = filled(keras.Sequential([keras.Input((7, 3)), layer]))
    model.save(tmp_path / "model.keras")
    ours = recurra.from_keras(tmp_path / "model.keras").layers[layer.name]
    mask = torch.arange(7) < lengths[:, None]
    close(ours(xs, lengths)[1], numbers(layer(xs, mask=mask)), "the end")


@pytest.mark.filterwarnings("ignore")
def test_double_precision_stays(keras: Any, tmp_path: Path) -> None:
    layer, xs = keras.layers.LSTM(4, dtype="float64"), torch.randn(2, 5, 3, dtype=torch.float64)
    model = filled(keras.Sequential([keras.Input((5, 3), dtype="float64"), layer]))
    model.save(tmp_path / "model.keras")
    _, summary = recurra.from_keras(tmp_path / "model.keras").layers[layer.name](xs)
    torch.testing.assert_close(summary.detach(), torch.from_numpy(numbers(layer(xs))), rtol=1e-12, atol=1e-12)


REFUSED: dict[str, tuple[Make, str]] = {
    "hard sigmoid": (
        lambda of: of.LSTM(4, recurrent_activation="hard_sigmoid"),
        "is LSTM with activation='tanh' and recurrent_activation='hard_sigmoid'; the cells here have tanh and sigmoid",
    ),
    "relu in a gru": (lambda of: of.GRU(4, activation="relu"), "is GRU with activation='relu'"),
    "elu": (
        lambda of: of.SimpleRNN(4, activation="elu"),
        "the activation 'elu', wanted one of tanh, relu, sigmoid, linear",
    ),
    "stacked cells": (lambda of: of.RNN([of.LSTMCell(4), of.LSTMCell(3)]), "is an RNN of StackedRNNCells, wanted LSTM"),
    "convolution": (lambda of: of.ConvLSTM1D(2, 3), "is a ConvLSTM1D, which is not read; wanted LSTM, GRU"),
    "backwards first": (
        lambda of: of.Bidirectional(of.GRU(4, go_backwards=True), backward_layer=of.GRU(4)),
        "the first direction of .* goes backwards",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("member", REFUSED)
def test_what_no_cell_here_can_be_is_refused_in_words(member: str, keras: Any, tmp_path: Path) -> None:
    make, words = REFUSED[member]
    shape = (6, 8, 3) if member == "convolution" else (6, 3)
    keras.Sequential([keras.Input(shape), make(keras.layers)]).save(tmp_path / "model.keras")
    with pytest.raises(recurra.UsageError, match=words):
        recurra.from_keras(tmp_path / "model.keras")


# --- files of other ages ---------------------------------------------------------------------------------------------


def changed_weights(path: Path, change: Callable[[Any], None], to: Path) -> Path:
    """A copy of a .keras file whose weights were changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        (to.parent / "inside.h5").write_bytes(old.read("model.weights.h5"))
        with h5py.File(to.parent / "inside.h5", "r+") as file:
            change(file)
        new.writestr("config.json", old.read("config.json"))
        new.write(to.parent / "inside.h5", "model.weights.h5")
    return to


def test_files_without_the_names_of_layers_are_read_by_their_numbers(tmp_path: Path) -> None:
    def forget(file: Any) -> None:
        for group in file["layers"].values():
            group["vars"].attrs.pop("name", None)

    found = recurra.from_keras(changed_weights(HERE / "stacked.keras", forget, tmp_path / "old.keras"))
    for name, layer in recurra.from_keras(HERE / "stacked.keras").layers.items():
        assert all(map(torch.equal, layer.parameters(), found.layers[name].parameters())), name


def keras_two(path: Path, layers: list[dict[str, Any]], weights: dict[str, dict[str, np.ndarray]]) -> Path:
    """A file as Keras 2 wrote it: no modules in the description, names as bytes that end in :0."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers}).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, arrays in weights.items():
            inside = group.create_group(name)
            inside.attrs["weight_names0"] = [f"{name}/{key}:0".encode() for key in arrays]
            for key, array in arrays.items():
                inside[f"{name}/{key}:0"] = array
    return path


def test_a_file_of_keras_two_is_read(tmp_path: Path) -> None:
    with h5py.File(HERE / "stacked.h5") as file:
        group = file["model_weights/before/sequential/before/gru_cell"]
        arrays = {key: group[key][()] for key in ("kernel", "recurrent_kernel", "bias")}
    config = {"name": "before", "units": 2, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    path = keras_two(tmp_path / "two.h5", [{"class_name": "GRU", "config": config}], {"before": arrays})
    with np.load(HERE / "outputs.npz") as outputs:
        ys, _ = recurra.from_keras(path).layers["before"](torch.from_numpy(outputs["stacked/before/xs"]))
        close(ys, outputs["stacked/before/ys"], "every step")


# --- what is wrong with a file ---------------------------------------------------------------------------------------


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr({"config": "config.json", "weights": "model.weights.h5"}[name], content)
    return path


def with_weights(change: Callable[[Any], None]) -> Callable[[Path], Path]:
    return lambda folder: changed_weights(HERE / "stacked.keras", change, folder / "changed.keras")


def put(key: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[key]
        file[key] = value

    return change


def declare_more_than_there_is(file: Any) -> None:
    del file["layers/lstm/cell/vars/0"]
    file["layers/lstm/cell/vars"].create_dataset("0", (10**7, 16), "f4", chunks=(10, 16))


DENSE = b'{"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"name": "d"}}]}}'
EMPTY = b'{"class_name": "Mine", "config": {"units": 3}}'


def weights_alone() -> bytes:
    with zipfile.ZipFile(HERE / "stacked.keras") as archive:
        return archive.read("model.weights.h5")


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda folder: folder / "none.keras", "cannot be read: No such file"),
    "folder": (lambda folder: folder, "this is a folder, wanted a file"),
    "text": (lambda folder: write(folder, b"hello"), "neither a .keras nor an .h5 file"),
    "empty": (lambda folder: write(folder, b""), "neither a .keras nor an .h5 file"),
    "cut .keras": (lambda folder: write(folder, (HERE / "stacked.keras").read_bytes()[:-500]), "cannot be read"),
    "cut .h5": (lambda folder: write(folder, (HERE / "stacked.h5").read_bytes()[:-500]), "cannot be read"),
    "altered .keras": (lambda folder: write(folder, altered(HERE / "stacked.keras")), "cannot be read .*Bad CRC"),
    "no description": (lambda folder: zipped(folder / "a", weights=b""), "there is no config.json in it"),
    "no weights": (lambda folder: zipped(folder / "a", config=DENSE), "there is no model.weights.h5 in it"),
    "no JSON": (lambda folder: zipped(folder / "a", config=b"{", weights=weights_alone()), "the model is no JSON"),
    "a class of its own": (
        lambda folder: zipped(folder / "a", config=EMPTY, weights=weights_alone()),
        "a model of the class 'Mine' does not say what its layers are; wanted Sequential or Functional",
    ),
    "nothing recurrent": (
        lambda folder: zipped(folder / "a", config=DENSE, weights=weights_alone()),
        r"holds no recurrent layer, only d \(Dense\); wanted LSTM",
    ),
    "weights of another model": (
        with_weights(put("layers/lstm/cell/vars/1", np.zeros((5, 16), "f4"))),
        r"memory, LSTM of 4 units, has weights of the shapes \(3, 16\), \(5, 16\), \(16,\); wanted \(3, 16\), \(4, 16\)",
    ),
    "a layer without weights": (with_weights(lambda file: file.__delitem__("layers/gru")), "after, GRU.*shapes none"),
    "a weight that is no group": (with_weights(put("layers/gru", 3)), "is not as Keras writes it"),
    "not finite": (
        with_weights(put("layers/lstm/cell/vars/2", np.full(16, np.nan, "f4"))),
        "number in 2 that is not finite",
    ),
    "link out of the file": (
        with_weights(put("layers/lstm/cell/vars/2", h5py.ExternalLink("elsewhere.h5", "/"))),
        "2 is a link to somewhere else",
    ),
    "more than there is": (with_weights(declare_more_than_there_is), "the numbers of 0 are not in the file"),
}


def write(folder: Path, content: bytes) -> Path:
    (folder / "file").write_bytes(content)
    return folder / "file"


def altered(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-2500] ^= 1
    return bytes(content)


@pytest.mark.parametrize("member", WRONG)
def test_a_bad_file_gets_one_clear_error(member: str, tmp_path: Path) -> None:
    make, words = WRONG[member]
    path = make(tmp_path)
    with pytest.raises(recurra.DataError, match=words) as caught:
        recurra.from_keras(path)
    assert str(path) in str(caught.value)


def test_weights_alone_ask_for_an_architecture(tmp_path: Path) -> None:
    with pytest.raises(recurra.UsageError, match=r"weights alone.*give a file with what model.to_json\(\) says"):
        recurra.from_keras(HERE / "both.weights.h5")
    with pytest.raises(recurra.DataError, match=r"none.json cannot be read: No such file"):
        recurra.from_keras(HERE / "both.weights.h5", tmp_path / "none.json")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    path = changed_weights(
        HERE / "stacked.keras", put("layers/lstm/cell/vars/0", np.zeros((3, 16), "i1")), tmp_path / "q.keras"
    )
    with pytest.raises(recurra.UsageError, match=r"the weights of 0 are int8.*before quantising"):
        recurra.from_keras(path)


def test_a_missing_h5py_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(recurra.UsageError, match=r"pip install 'recurra\[keras\]'"):
        recurra.from_keras(HERE / "stacked.keras")


def test_no_change_of_a_byte_gives_anything_but_layers_or_an_error_in_words(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    whole = (HERE / "stacked.h5").read_bytes()
    for _ in range(150):
        content = bytearray(whole)
        for place in random.integers(0, len(whole), 8):
            content[place] = random.integers(256)
        (tmp_path / "file.h5").write_bytes(content)
        try:
            layers = recurra.from_keras(tmp_path / "file.h5").layers
        except (recurra.DataError, recurra.UsageError):
            continue
        assert all(isinstance(layer, Recurrent | Reversed | Bidirectional) for layer in layers.values())


def test_keras_is_not_imported(tmp_path: Path) -> None:
    shutil.copy(HERE / "both.keras", tmp_path)
    code = "import sys, recurra; recurra.from_keras(sys.argv[1]); assert not {'keras', 'tensorflow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "both.keras"], check=False).returncode == 0
