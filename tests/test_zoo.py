"""The wider zoo of cells against NumPy in float64, written from the papers unit by unit where that is clearer; and scans against
steps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import recurra
from recurra import kernels
from recurra.cells import (
    LRU,
    LTC,
    QRNN,
    SLSTM,
    SRU,
    Cell,
    CfC,
    Clockwork,
    ConvLSTM,
    IndRNN,
    LiGRU,
    MatrixLSTM,
    MinGRU,
    MinLSTM,
    Mogrifier,
    MultiplicativeLSTM,
    Orthogonal,
    scan,
)
from recurra.models import Snapshot
from recurra.state import leaves, tmap

Array = np.ndarray
Weights = dict[str, Array]
Row = tuple[Array, ...]  # the state of one row
Oracle = Callable[[Weights, Array, Row], tuple[Array, Row]]


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def indrnn(w: Weights, xs: Array, state: Row, act: Callable[[Array], Array]) -> tuple[Array, Row]:
    ys = np.zeros((len(xs), len(w["weight_u"])))
    last = []
    for j, u in enumerate(w["weight_u"]):  # each neuron is a network by itself
        h = state[0][j]
        for t, x in enumerate(xs):
            h = ys[t, j] = act(w["weight_ih"][j] @ x + u * h + w["bias_ih"][j])
        last.append(h)
    return ys, (np.array(last),)


def mingru(w: Weights, xs: Array, state: Row, g: Callable[[Array], Array] = lambda a: a) -> tuple[Array, Row]:
    (h,), ys = state, []
    (wz, wh), (bz, bh) = np.split(w["weight_ih"], 2), np.split(w["bias_ih"], 2)
    for x in xs:
        z = sigmoid(wz @ x + bz)
        h = (1 - z) * h + z * g(wh @ x + bh)
        ys.append(h)
    return np.stack(ys), (h,)


def positive(a: Array) -> Array:
    return np.where(a >= 0, a + 0.5, sigmoid(a))


def minlstm(w: Weights, xs: Array, state: Row, g: Callable[[Array], Array] = lambda a: a) -> tuple[Array, Row]:
    (h,), ys = state, []
    for x in xs:
        f, i, n = np.split(w["weight_ih"] @ x + w["bias_ih"], 3)
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * g(n)
        ys.append(h)
    return np.stack(ys), (h,)


def lru(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    s, ys = state[0] + 1j * state[1], []
    factor = np.exp(-np.exp(w["nu"]) + 1j * np.exp(w["theta"]))
    b_re, b_im = np.split(w["weight_ih"], 2)
    c_re, c_im = np.split(w["weight_out"], 2, axis=1)
    for x in xs:
        s = factor * s + np.exp(w["gamma"]) * ((b_re + 1j * b_im) @ x)
        ys.append(((c_re + 1j * c_im) @ s).real + w["weight_skip"] @ x)
    return np.stack(ys), (s.real, s.imag)


def qrnn(w: Weights, xs: Array, state: Row, width: int, pooling: str) -> tuple[Array, Row]:
    (c, before), ys = state, []
    seen = np.concatenate([before, xs])
    blocks = np.split(w["weight_ih"], 1 + len(pooling))
    biases = np.split(w["bias_ih"], 1 + len(pooling))
    banks = [block.reshape(len(c), width, xs.shape[1]) for block in blocks]  # units, places of the filter, features
    for t in range(len(xs)):
        z, f, *o = (np.einsum("ukf,kf->u", k, seen[t : t + width]) + b for k, b in zip(banks, biases, strict=True))
        c = sigmoid(f) * c + (sigmoid(o[1]) if pooling == "ifo" else 1 - sigmoid(f)) * np.tanh(z)
        ys.append(sigmoid(o[0]) * c if o else c)
    return np.stack(ys), (c, seen[len(xs) :])


def sru(w: Weights, xs: Array, state: Row, act: Callable[[Array], Array]) -> tuple[Array, Row]:
    (c,), ys = state, []
    (wf, wr), (bf, br) = np.split(w["weight_ih"], 2), np.split(w["bias_ih"], 2)
    vf, vr = (w.get(f"peephole_{gate}", np.zeros(len(c))) for gate in ("forget", "reset"))
    for x in xs:
        f, r = sigmoid(wf @ x + vf * c + bf), sigmoid(wr @ x + vr * c + br)
        c = f * c + (1 - f) * (w["weight_c"] @ x)
        highway = w["weight_skip"] @ x if "weight_skip" in w else x
        ys.append(r * act(c) + (1 - r) * highway * (3**0.5 if "peephole_reset" in w else 1))
    return np.stack(ys), (c,)


def ligru(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h,), ys = state, []
    (wz, wh), (uz, uh), (bz, bh) = (np.split(w[name], 2) for name in ("weight_ih", "weight_hh", "bias_ih"))
    gains = np.split(w["gain_ih"], 2) if "gain_ih" in w else None

    def normed(a: Array, block: int) -> Array:
        return a if gains is None else gains[block] * (a - a.mean()) / np.sqrt(a.var() + 1e-5)

    for x in xs:
        z = sigmoid(normed(wz @ x, 0) + bz + uz @ h)
        h = z * h + (1 - z) * np.maximum(normed(wh @ x, 1) + bh + uh @ h, 0)
        ys.append(h)
    return np.stack(ys), (h,)


def lstm_step(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = np.split(w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias_ih"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def multiplicative(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h, c), ys = state, []
    for x in xs:
        h, c = lstm_step(w, x, (w["weight_mx"] @ x) * (w["weight_mh"] @ h), c)
        ys.append(h)
    return np.stack(ys), (h, c)


def mogrifier(w: Weights, xs: Array, state: Row, rounds: int) -> tuple[Array, Row]:
    (h, c), ys = state, []
    for x in xs:
        of_x, of_h = {-1: x}, {0: h}  # the paper's x^i of odd i and h^i of even i
        for i in range(1, rounds + 1):
            if i % 2:
                of_x[i] = 2 * sigmoid(w["weight_q"][i // 2] @ of_h[i - 1]) * of_x[i - 2]
            else:
                of_h[i] = 2 * sigmoid(w["weight_r"][i // 2 - 1] @ of_x[i - 1]) * of_h[i - 2]
        h, c = lstm_step(w, of_x[max(of_x)], of_h[max(of_h)], c)
        ys.append(h)
    return np.stack(ys), (h, c)


def slstm(w: Weights, xs: Array, state: Row, forget: Callable[[Array], Array]) -> tuple[Array, Row]:
    """Without a scale, as the paper's first equations have it; the last state is given as h, c / n and n e^m."""
    h, c, n, m = state
    c, n, ys = c * np.exp(m), n * np.exp(m), []
    for x in xs:
        i, f, z, o = np.split(w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias_ih"], 4)
        c, n = forget(f) * c + np.exp(i) * np.tanh(z), forget(f) * n + np.exp(i)
        h = sigmoid(o) * c / n
        ys.append(h)
    return np.stack(ys), (h, c / n, n)


def mlstm(w: Weights, xs: Array, state: Row, heads: int) -> tuple[Array, Row]:
    """Without a scale; the last state is given as C e^m and n e^m."""
    c, n = state[0] * np.exp(state[2])[:, None, None], state[1] * np.exp(state[2])[:, None]
    size, ys = c.shape[1], []
    for x in xs:
        q, k, v, o = (part.reshape(heads, size) for part in np.split(w["weight_ih"] @ x + w["bias_ih"], 4))
        i, f = np.split(w["weight_gates"] @ x + w["bias_gates"], 2)
        said = []
        for head in range(heads):
            key = k[head] / math.sqrt(size)
            c[head] = sigmoid(f[head]) * c[head] + np.exp(i[head]) * np.outer(v[head], key)
            n[head] = sigmoid(f[head]) * n[head] + np.exp(i[head]) * key
            said.append(sigmoid(o[head]) * (c[head] @ q[head]) / max(abs(n[head] @ q[head]), 1))
        ys.append(np.concatenate(said))
    return np.stack(ys), (c, n)


def clockwork(w: Weights, xs: Array, state: Row, period: list[int]) -> tuple[Array, Row]:
    h, t = state
    ys = []
    for x in xs:
        new = h.copy()
        for j, own in enumerate(period):
            if t % own == 0:
                heard = sum(w["weight_hh"][j, k] * h[k] for k, theirs in enumerate(period) if theirs >= own)
                new[j] = np.tanh(w["weight_ih"][j] @ x + heard + w["bias_ih"][j])
        h, t = new, t + 1
        ys.append(h)
    return np.stack(ys), (h, t)


def orthogonal(w: Weights, xs: Array, state: Row, map: str) -> tuple[Array, Row]:
    (h,), ys = state, []
    above = np.triu(w["parametrizations.weight_hh.original"], 1)
    values, vectors = np.linalg.eig(
        above - above.T
    )  # imaginary pairs; a function of the matrix is one of its eigenvalues
    turned = np.exp(values) if map == "exp" else (1 - values) / (1 + values)
    q = (vectors @ np.diag(turned) @ np.linalg.inv(vectors)).real
    for x in xs:
        a = w["weight_ih"] @ x + q @ h
        h = np.sign(a) * np.maximum(np.abs(a) + w["bias"], 0)
        ys.append(h)
    return np.stack(ys), (h,)


def ltc(w: Weights, xs: Array, state: Row, unfolds: int, elapsed: bool = False) -> tuple[Array, Row]:
    (h,), ys = state, []
    for features in xs:
        x, dt = (features[:-1], features[-1]) if elapsed else (features, 1.0)
        for _ in range(unfolds):
            f, s = sigmoid(w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias_ih"]), dt / unfolds
            h = (h + s * f * w["target"]) / (1 + s * (1 / np.exp(w["log_tau"]) + f))
        ys.append(h)
    return np.stack(ys), (h,)


def cfc(w: Weights, xs: Array, state: Row, elapsed: bool = False) -> tuple[Array, Row]:
    (h,), ys = state, []
    for features in xs:
        x, dt = (features[:-1], features[-1]) if elapsed else (features, 1.0)
        f, g, k = np.split(w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias_ih"], 3)
        h = sigmoid(-f * dt) * np.tanh(g) + (1 - sigmoid(-f * dt)) * np.tanh(k)
        ys.append(h)
    return np.stack(ys), (h,)


def correlated(picture: Array, kernel: Array) -> Array:
    """Place by place: `[C, H, W]` and `[out, C, k, k]` to `[out, H, W]`, zeros past the edges."""
    _, height, width = picture.shape
    half = kernel.shape[2] // 2
    out = np.zeros((len(kernel), height, width))
    for y, x, dy, dx in np.ndindex(height, width, *kernel.shape[2:]):
        row, column = y + dy - half, x + dx - half
        if 0 <= row < height and 0 <= column < width:
            out[:, y, x] += kernel[:, :, dy, dx] @ picture[:, row, column]
    return out


def convlstm(w: Weights, xs: Array, state: Row, grid: tuple[int, int, int]) -> tuple[Array, Row]:
    own = (-1, *grid[1:])
    h, c = (part.reshape(own) for part in state)
    wi, wf, wo = (w[f"peephole_{gate}"].reshape(own) for gate in ("input", "forget", "output"))
    ys = []
    for x in xs:
        sums = correlated(x.reshape(grid), w["kernel_ih"]) + correlated(h, w["kernel_hh"]) + w["bias_ih"][:, None, None]
        i, f, g, o = np.split(sums, 4)
        i, f = sigmoid(i + wi * c), sigmoid(f + wf * c)
        c = f * c + i * np.tanh(g)
        h = sigmoid(o + wo * c) * np.tanh(c)
        ys.append(h.ravel())
    return np.stack(ys), (h.ravel(), c.ravel())


def relu(a: Array) -> Array:
    return np.maximum(a, 0)


ORACLES: dict[str, tuple[Callable[[], Cell], Oracle]] = {
    "indrnn": (lambda: IndRNN(4, 3), partial(indrnn, act=relu)),
    "indrnn tanh": (lambda: IndRNN(4, 3, activation="tanh"), partial(indrnn, act=np.tanh)),
    "mingru": (lambda: MinGRU(4, 3), mingru),
    "mingru, positive": (lambda: MinGRU(4, 3, candidate="positive"), partial(mingru, g=positive)),
    "minlstm": (lambda: MinLSTM(4, 3), minlstm),
    "minlstm, positive": (lambda: MinLSTM(4, 3, candidate="positive"), partial(minlstm, g=positive)),
    "lru": (lambda: LRU(4, 3), lru),
    "qrnn": (lambda: QRNN(4, 3), partial(qrnn, width=2, pooling="fo")),
    "qrnn, one wide": (lambda: QRNN(4, 3, width=1), partial(qrnn, width=1, pooling="fo")),
    "qrnn, ifo": (lambda: QRNN(4, 3, pooling="ifo"), partial(qrnn, width=2, pooling="ifo")),
    "qrnn, three wide, f": (lambda: QRNN(4, 3, width=3, pooling="f"), partial(qrnn, width=3, pooling="f")),
    "sru": (lambda: SRU(4, 3), partial(sru, act=np.tanh)),
    "sru, as many inputs": (lambda: SRU(3, 3, activation="relu"), partial(sru, act=relu)),
    "sru, peephole, as many inputs": (lambda: SRU(3, 3, peephole=True), partial(sru, act=np.tanh)),
    "sru, peephole": (lambda: SRU(4, 3, peephole=True, activation="identity"), partial(sru, act=lambda a: a)),
    "ligru": (lambda: LiGRU(4, 3), ligru),
    "ligru, no norm": (lambda: LiGRU(4, 3, norm="none"), ligru),
    "lstm multiplicative": (lambda: MultiplicativeLSTM(4, 3), multiplicative),
    "mogrifier": (lambda: Mogrifier(4, 3), partial(mogrifier, rounds=5)),
    "mogrifier, two rounds": (lambda: Mogrifier(4, 3, rounds=2), partial(mogrifier, rounds=2)),
    "mogrifier, no round": (lambda: Mogrifier(4, 3, rounds=0), partial(mogrifier, rounds=0)),
    "clockwork": (
        lambda: Clockwork(4, 5, periods=(1, 2, 3)),
        partial(clockwork, period=[1, 1, 2, 2, 3]),
    ),
    "orthogonal": (lambda: Orthogonal(4, 3), partial(orthogonal, map="exp")),
    "orthogonal, cayley": (lambda: Orthogonal(4, 3, map="cayley"), partial(orthogonal, map="cayley")),
    "ltc": (lambda: LTC(4, 3), partial(ltc, unfolds=6)),
    "ltc, elapsed": (lambda: LTC(4, 3, unfolds=1, elapsed=True), partial(ltc, unfolds=1, elapsed=True)),
    "cfc": (lambda: CfC(4, 3), cfc),
    "cfc, elapsed": (lambda: CfC(4, 3, elapsed=True), partial(cfc, elapsed=True)),
    "convlstm": (lambda: ConvLSTM(12, 6, grid=(4, 1, 3)), partial(convlstm, grid=(4, 1, 3))),
    "convlstm, five wide": (lambda: ConvLSTM(12, 18, grid=(2, 3, 2), kernel=5), partial(convlstm, grid=(2, 3, 2))),
}


@torch.no_grad()
def shaken(cell: Cell) -> Cell:
    """The cell in float64 with every parameter moved: a gain of one or a bias of zero would hide that it is left out."""
    cell = cell.double()
    for parameter in cell.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    return cell


def weights_of(cell: Cell) -> Weights:
    return {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}


def random_like(state: Any) -> Any:
    return tmap(lambda leaf: torch.randn_like(leaf) if leaf.is_floating_point() else leaf + 5, state)


def close(ours: Any, expected: Any) -> None:
    np.testing.assert_allclose(torch.as_tensor(ours).detach().numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ORACLES)
def test_a_cell_gives_the_numbers_of_its_papers_equations(name: str) -> None:
    torch.manual_seed(0)
    build, oracle = ORACLES[name]
    cell = shaken(build())
    xs = 2 * torch.rand(2, 7, cell.input_size, dtype=torch.float64)  # positive, for one of them may be a time
    state = random_like(cell.initial_state(2))
    for way in (cell.unroll, cell.loop):
        ys, last = way(xs, state, None)
        for row in range(2):
            expected_ys, expected_last = oracle(
                weights_of(cell), xs[row].numpy(), tuple(leaf[row].numpy() for leaf in state)
            )
            close(ys[row], expected_ys)
            for leaf, expected in zip(last, expected_last, strict=True):
                close(leaf[row], expected)


# --- xLSTM: the scale changes nothing, and holds where the equations without it overflow ---


@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
def test_slstm_is_the_equations_without_a_scale(forget: Any) -> None:
    torch.manual_seed(0)
    cell = shaken(SLSTM(4, 3, forget=forget))
    xs = torch.randn(1, 7, 4, dtype=torch.float64)
    for start in (cell.initial_state(1), tmap(lambda leaf: leaf + torch.rand_like(leaf), cell.initial_state(1))):
        ys, last = cell.unroll(xs, start)
        gate = sigmoid if forget == "sigmoid" else np.exp
        expected, (h, mean, count) = slstm(weights_of(cell), xs[0].numpy(), tuple(x[0].numpy() for x in start), gate)
        close(ys[0], expected)
        close(last.h[0], h)
        close((last.c / last.n)[0], mean)
        close((last.n * last.m.exp())[0], count)


def test_slstm_holds_whatever_start_was_learnt() -> None:
    torch.manual_seed(0)
    cell, xs = SLSTM(2, 3), torch.randn(1, 5, 2)
    start = tmap(torch.rand_like, cell.initial_state(1))
    expected, _ = cell.unroll(xs, start)
    found, _ = cell.unroll(xs, start._replace(n=-start.n))
    assert torch.equal(found, expected)


def test_matrix_memories_are_the_equations_without_a_scale() -> None:
    torch.manual_seed(0)
    cell = shaken(MatrixLSTM(4, 6, heads=2))
    xs = torch.randn(1, 7, 4, dtype=torch.float64)
    start = random_like(cell.initial_state(1))
    ys, last = cell.unroll(xs, start)
    expected, (c, n) = mlstm(weights_of(cell), xs[0].numpy(), tuple(x[0].numpy().copy() for x in start), 2)
    close(ys[0], expected)
    close((last.c * last.m.exp()[..., None, None])[0], c)
    close((last.n * last.m.exp()[..., None])[0], n)


@pytest.mark.parametrize("build", [lambda: SLSTM(2, 3), lambda: SLSTM(2, 3, forget="exp"), lambda: MatrixLSTM(2, 3)])
@pytest.mark.parametrize("size", [300.0, -300.0])
def test_gates_beyond_the_range_of_numbers_do_no_harm(build: Callable[[], Cell], size: float) -> None:
    torch.manual_seed(0)
    cell = build()
    with torch.no_grad():
        bias = cell.bias_ih if isinstance(cell, SLSTM) else cell.get_parameter("bias_gates")
        bias[: len(bias) // (4 if isinstance(cell, SLSTM) else 2)] += size
    ys, last = cell.unroll(torch.randn(2, 70, 2), cell.initial_state(2))
    ys.sum().backward()
    assert ys.isfinite().all() and all(leaf.isfinite().all() for leaf in leaves(last))
    assert all(p.grad.isfinite().all() for p in cell.parameters() if p.grad is not None)


# --- what a cell is made for ---


@pytest.mark.parametrize("map", ["exp", "cayley"])
def test_an_orthogonal_network_keeps_the_norm_of_its_state(map: Any) -> None:
    torch.manual_seed(0)
    cell = shaken(Orthogonal(1, 6, map=map))
    q = cell.weight_hh.detach()
    close(q @ q.T, np.eye(6))
    with torch.no_grad():
        cell.bias.zero_()
    start = random_like(cell.initial_state(1))
    with torch.no_grad():
        _, last = cell.unroll(torch.zeros(1, 300, 1, dtype=torch.float64), start)
    assert float(last.h.norm() / start.h.norm()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("map", ["exp", "cayley"])
def test_an_orthogonal_network_starts_with_turns_of_pairs(map: Any) -> None:
    torch.manual_seed(0)
    q = Orthogonal(1, 7, map=map).weight_hh.detach()
    inside = torch.block_diag(*[torch.ones(2, 2)] * 3, torch.ones(1, 1)).bool()
    assert not q[~inside].any() and float(q[6, 6]) == pytest.approx(1.0)
    assert float(q[inside].abs().min()) > 1e-3
    if map == "cayley":
        assert (q[torch.arange(6), torch.arange(6)] > 0).all()  # at most a quarter turn


def test_a_stream_of_an_orthogonal_network_computes_its_matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cell = Orthogonal(4, 6)
    cell.bias.data.sub_(0.1)
    xs = torch.randn(1, 5, 4)
    expected, _ = cell.unroll(xs, cell.initial_state(1))
    stream = Snapshot(cell)
    monkeypatch.setattr(torch.linalg, "matrix_exp", lambda skew: pytest.fail("computed again"))
    state = stream.initial_state(1)
    for t in range(5):
        y, state = stream.step(xs[:, t], state)
        torch.testing.assert_close(y, expected[:, t].detach())
    assert "parametrizations.weight_hh.original" in dict(cell.named_parameters())  # the cell itself learns on


def test_an_lru_starts_in_its_ring_and_shrinks_whatever_is_learnt() -> None:
    torch.manual_seed(0)
    cell = LRU(2, 500, r_min=0.1, r_max=0.9, max_phase=0.5)
    radius, phase = (-cell.nu.detach().exp()).exp(), cell.theta.detach().exp()
    assert 0.1 <= float(radius.min()) < 0.2 and 0.89 < float(radius.max()) <= 0.9
    assert float(radius.median()) == pytest.approx(math.sqrt((0.1**2 + 0.9**2) / 2), abs=0.05)  # uniform in area
    assert 0 < float(phase.min()) and 0.45 < float(phase.max()) <= 0.5
    torch.testing.assert_close(cell.gamma.detach().exp(), (1 - radius**2).sqrt())
    with pytest.raises(recurra.UsageError, match=r"r_max=1\.5"):
        LRU(2, 3, r_max=1.5)


def test_no_time_leaves_a_liquid_network_as_it_is_and_much_time_takes_it_to_its_rest() -> None:
    torch.manual_seed(0)
    still, cell = LTC(3, 4, elapsed=True).double(), LTC(3, 4, elapsed=True, unfolds=400).double()
    start = random_like(still.initial_state(1))
    x = torch.randn(1, 3, dtype=torch.float64)
    x[:, -1] = 0
    close(still(x, start)[0], start.h)
    x[:, -1] = 4000.0
    h, _ = cell(x, start)
    w = {name: value.detach() for name, value in cell.named_parameters()}
    f = (x[:, :-1] @ w["weight_ih"].T + h @ w["weight_hh"].T + w["bias_ih"]).sigmoid()
    torch.testing.assert_close(h, f * w["target"] / ((-w["log_tau"]).exp() + f), rtol=1e-6, atol=1e-8)


def test_wrong_options_are_refused_in_words() -> None:
    for build, words in [
        (lambda: QRNN(2, 3, width=0), "a width of 0"),
        (lambda: Mogrifier(2, 3, rounds=-1), "-1 rounds"),
        (lambda: MatrixLSTM(2, 3, heads=2), "3 units cannot be shared out among 2 heads"),
        (lambda: Clockwork(2, 3, periods=()), "wanted one or more"),
        (lambda: Clockwork(2, 3, periods=(1, 0)), "1 step or longer"),
        (lambda: LTC(2, 3, unfolds=0), "0 steps"),
        (lambda: ConvLSTM(8, 4, grid=(2, 2, 3)), r"8 inputs, 4 units and the grid \(2, 2, 3\)"),
        (lambda: ConvLSTM(8, 6, grid=(2, 2, 2)), "multiple of H"),
        (lambda: ConvLSTM(8, 4, kernel=2), "odd width"),
    ]:
        with pytest.raises(recurra.UsageError, match=words):
            build()


# --- scans ---


def stepped(a: Array, b: Array, h: Array) -> Array:
    hs = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return np.stack(hs, axis=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("units", [3, scan.FEW + 1])  # in pieces, and one by one
@pytest.mark.parametrize("steps", [1, 63, 64, 65, 130])
def test_a_scan_is_the_steps_and_its_gradients_are_theirs(dtype: torch.dtype, units: int, steps: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(1, steps, units, dtype=dtype) * 0.7, torch.randn(1, steps, units, dtype=dtype)
    h = torch.randn(1, units, dtype=dtype)
    given = [part.requires_grad_() for part in (a, b, h)]
    hs, last = scan.followed(*given)
    np.testing.assert_allclose(hs.detach().numpy(), stepped(*(part.detach().numpy() for part in given)), atol=1e-10)
    assert torch.equal(last, hs[:, -1])
    plain, state = [], h
    for t in range(steps):
        state = a[:, t] * state + b[:, t]
        plain.append(state)
    weight = torch.randn_like(hs.detach())
    found = torch.autograd.grad((hs * weight).sum().abs(), given)
    wanted = torch.autograd.grad((torch.stack(plain, 1) * weight).sum().abs(), given)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-9)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_pieces_join_to_the_whole(reverse: bool, size: int) -> None:
    rng = np.random.default_rng(0)
    a, b, h = rng.normal(size=(2, 16, 3)), rng.normal(size=(2, 16, 3)), rng.normal(size=(2, 3))
    expected = stepped(a[:, ::-1], b[:, ::-1], h)[:, ::-1] if reverse else stepped(a, b, h)
    found = scan._in_pieces(*map(torch.from_numpy, (a, b, h)), reverse, size)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        *(lambda: MinGRU(3, 4), lambda: MinLSTM(3, 4), lambda: LRU(3, 4), lambda: QRNN(3, 4), lambda: SRU(3, 4)),
        *(lambda: MatrixLSTM(3, 4, heads=2), lambda: MatrixLSTM(3, 4, forget="exp")),
    ],
)
def test_long_sequences_through_a_scan_are_the_loop_to_float32(build: Callable[[], Cell]) -> None:
    torch.manual_seed(0)
    cell, xs, lengths = build(), torch.randn(3, 300, 3), torch.tensor([300, 0, 177])
    start = tmap(torch.rand_like, cell.initial_state(3))
    found = cell.unroll(xs, start, lengths)
    with kernels.reference():
        wanted = cell.unroll(xs, start, lengths)
    for one, other in zip(leaves(found), leaves(wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
@pytest.mark.parametrize("steps", [1, 63, 64, 65, 130])
def test_matrix_memories_in_pieces_are_the_steps_and_their_gradients(forget: Any, steps: int) -> None:
    torch.manual_seed(0)
    cell = shaken(MatrixLSTM(3, 6, heads=2, forget=forget))
    xs, lengths = torch.randn(3, steps, 3, dtype=torch.float64), torch.tensor([steps, 0, (steps + 1) // 2])
    start = random_like(cell.initial_state(3))

    def asked() -> list[torch.Tensor]:
        given = [part.detach().requires_grad_() for part in (xs, *leaves(start))]
        ys, last = cell.unroll(given[0], type(start)(*given[1:]), lengths)
        asked = [*given, *cell.parameters()]
        said = (ys * torch.linspace(0.5, 1.5, 6, dtype=ys.dtype)).sum() + sum(
            leaf.square().sum() for leaf in leaves(last)
        )
        return [ys, *leaves(last), *torch.autograd.grad(said, asked)]

    found = asked()
    with kernels.reference():
        wanted = asked()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_second_derivatives_of_a_scan_in_pieces() -> None:
    torch.manual_seed(0)
    given = [torch.randn(1, *shape, dtype=torch.float64, requires_grad=True) for shape in ((70, 1), (70, 1), (1,))]
    assert torch.autograd.gradgradcheck(lambda a, b, h: scan.followed(0.5 * a.tanh(), b, h)[0][:, ::23], given)


def test_the_gradient_of_the_loop_does_not_grow_with_the_square_of_the_time() -> None:
    cell, sizes = IndRNN(2, 64), []
    for steps in (50, 200):
        ys, _ = cell.unroll(torch.randn(4, steps, 2), cell.initial_state(4))
        with torch.profiler.profile(profile_memory=True) as profile:
            ys.sum().backward()
        sizes.append(sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()))
    assert sizes[1] < 6 * sizes[0]
