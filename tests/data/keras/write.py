"""What wrote the files in this folder, with a real Keras: models with random weights, and what each of their layers puts out.

Run it with: KERAS_BACKEND=torch python tests/data/keras/write.py
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers as of

HERE = Path(__file__).parent
random = np.random.default_rng(0)


def filled(model):
    """All weights random: Keras starts biases at zero, where an order of blocks could not be seen."""
    model.set_weights([random.normal(0, 0.5, weight.shape).astype("float32") for weight in model.get_weights()])
    return model


def every_step(layer, xs):
    """What a layer puts out with return_sequences=True."""
    config = layer.get_config()
    for part in (config, config.get("layer", {}).get("config"), config.get("backward_layer", {}).get("config")):
        if part is not None and "return_sequences" in part:
            part["return_sequences"] = True
    twin = type(layer).from_config(config)
    twin.build(xs.shape)
    twin.set_weights(layer.get_weights())
    return keras.ops.convert_to_numpy(twin(xs))


def outputs(model, name, xs):
    """Inputs, outputs at each step and the last one, of every recurrent layer of a model."""
    found = {}
    for layer in model.layers:
        ys = keras.ops.convert_to_numpy(layer(xs))
        if isinstance(layer, (of.RNN, of.Bidirectional)):
            found |= {f"{name}/{layer.name}/xs": xs, f"{name}/{layer.name}/ys": every_step(layer, xs)}
            found[f"{name}/{layer.name}/summary"] = ys if ys.ndim == 2 else ys[:, -1]
            if isinstance(layer, of.Bidirectional) and ys.ndim == 3:
                found.pop(f"{name}/{layer.name}/summary")
        xs = ys
    return found


stacked = filled(
    keras.Sequential(
        [
            keras.Input((6, 3)),
            of.LSTM(4, return_sequences=True, name="memory"),
            of.GRU(3, return_sequences=True, name="after"),
            of.GRU(2, return_sequences=True, reset_after=False, name="before"),
            of.SimpleRNN(3, activation="relu", go_backwards=True, name="simple"),
            of.Dense(2, name="readout"),
        ]
    )
)
both = filled(
    keras.Sequential(
        [
            keras.Input((6, 3)),
            of.Bidirectional(of.LSTM(2, return_sequences=True), name="wide"),
            of.Bidirectional(of.GRU(2), merge_mode="ave", name="mean"),
        ]
    )
)
xs = random.normal(size=(2, 6, 3)).astype("float32")
stacked.save(HERE / "stacked.keras")
stacked.save(HERE / "stacked.h5")
both.save(HERE / "both.keras")
both.save_weights(HERE / "both.weights.h5")
(HERE / "both.json").write_text(both.to_json())
np.savez(HERE / "outputs.npz", **outputs(stacked, "stacked", xs), **outputs(both, "both", xs))
print(f"Keras {keras.__version__}")
