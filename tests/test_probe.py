"""Looking inside a network, held against derivatives taken one by one, differences, known systems and networks made by hand."""

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Shell
from test_stability import Henon, Linear
from torch import Tensor, nn

import recurra
from recurra import fit, probe
from recurra.cells import CELLS, GRU, LSTM, Cell, Elman, Residual, Stacked, Zoneout
from recurra.decoder import Decoder, EncoderDecoder
from recurra.errors import DataError, UsageError
from recurra.models import AsTheyAre, Encoder, ManyToMany, ManyToOne, SequenceModel, encoder_layers, language_model
from recurra.probe import figures
from recurra.probe import page as pages
from recurra.probe.drawing import unrolled_svg
from recurra.recurrent import Bidirectional
from recurra.state import leaves, named

INPUTS, UNITS, STEPS = 2, 3, 6


def cells() -> dict[str, Callable[[], Cell]]:
    """Every cell that has a name, a stack, and wrappers."""
    plain: dict[str, Callable[[], Cell]] = {
        name: (lambda kind=kind: kind(INPUTS, UNITS)) for name, kind in CELLS.items() if not kind.tokens
    }
    return plain | {
        "stacked": lambda: Stacked([LSTM(INPUTS, UNITS), Elman(UNITS, UNITS)]),
        "zoneout": lambda: Zoneout(LSTM(INPUTS, UNITS), 0.3),
        "residual": lambda: Residual(GRU(INPUTS, INPUTS)),
    }


def one(name: str, rows: int = 1) -> tuple[Cell, Tensor]:
    torch.manual_seed(0)
    cell = cells()[name]().double().eval()
    return cell, torch.randn(rows, STEPS, INPUTS, dtype=torch.float64)


def by_hand(cell: Cell, xs: Tensor) -> tuple[list[dict[str, Tensor]], Tensor]:
    """The states after each step and the losses, half the squared outputs, by a loop of single steps."""
    state, states, losses = cell.initial_state(len(xs)), [], []
    for leaf in leaves(state):
        leaf.requires_grad_(leaf.is_floating_point())
    for t in range(xs.shape[1]):
        y, state = cell(xs[:, t], state)
        states.append({key: leaf for key, leaf in named(state).items() if leaf.is_floating_point()})
        losses.append(y.square().sum(1) / 2)
    return states, torch.stack(losses, 1)


# --- flow ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(cells()))
def test_the_map_is_what_autograd_gives_pair_by_pair(name: str) -> None:
    cell, xs = one(name)
    found = probe.flow(probe.record(cell, probe.losses_of(cell, xs)))
    states, losses = by_hand(cell, xs)
    if name == "zoneout":
        assert [layer.name for layer in found.layers] == ["Zoneout", "Zoneout"]
    assert len(found.layers) == len(states[0])
    for layer, key in zip(found.layers, states[0], strict=True):
        for row, t in enumerate(found.times):
            for k in range(STEPS):
                if k > t:
                    assert math.isnan(layer.map[row, k])
                    continue
                (slope,) = torch.autograd.grad(losses[0, t], states[k][key], retain_graph=True, allow_unused=True)
                norm = 0.0 if slope is None else float(slope.norm())
                assert layer.map[row, k] == pytest.approx(norm, rel=1e-9, abs=1e-14)
        squares = layer.map**2
        for at, d in enumerate(layer.distance):
            pairs = [squares[row, t - d] for row, t in enumerate(found.times) if t >= d]
            assert layer.profile[at] == pytest.approx(math.sqrt(np.mean(pairs)), rel=1e-12)


def test_rows_of_any_length_are_averaged_and_what_lies_past_their_ends_does_not_count() -> None:
    cell, xs = one("gru", rows=2)
    lengths = torch.tensor([STEPS, 4])
    together = probe.flow(probe.record(cell, probe.losses_of(cell, xs, lengths=lengths))).layers[0]
    apart = [
        probe.flow(probe.record(cell, probe.losses_of(cell, xs[row : row + 1, : int(length)]))).layers[0].map
        for row, length in enumerate(lengths)
    ]
    np.testing.assert_allclose(together.map[4:], apart[0][4:], rtol=1e-9)
    both = np.sqrt((apart[0][:4, :4] ** 2 + apart[1] ** 2) / 2)
    np.testing.assert_allclose(together.map[:4, :4], both, rtol=1e-9)


def test_gradients_of_a_bidirectional_layer_flow_from_either_end() -> None:
    torch.manual_seed(1)
    layer = Bidirectional(Elman(INPUTS, UNITS), GRU(INPUTS, UNITS)).double()
    xs = torch.randn(1, STEPS, INPUTS, dtype=torch.float64)
    found = probe.flow(probe.record(layer, lambda: layer(xs)[0].square().sum(2)))
    assert [one.name for one in found.layers] == ["forwards.cell", "backwards.cell"]
    states, _ = by_hand(layer.backwards.cell, xs.flip(1))
    for row, t in enumerate(found.times):
        loss = states[STEPS - 1 - t]["h"].square().sum()
        for k in range(STEPS):
            if k < t:
                assert math.isnan(found.layers[1].map[row, k])
                continue
            (slope,) = torch.autograd.grad(loss, states[STEPS - 1 - k]["h"], retain_graph=True)
            assert found.layers[1].map[row, k] == pytest.approx(float(slope.norm()), rel=1e-9)
    assert all(
        math.isnan(found.layers[0].map[row, k]) for row, t in enumerate(found.times) for k in range(t + 1, STEPS)
    )


def whole_models() -> dict[str, tuple[nn.Module, probe.Losses]]:
    torch.manual_seed(2)
    tokens, xs = torch.randint(7, (2, STEPS)), torch.randn(2, STEPS, 2)
    lengths = torch.tensor([STEPS, 4])
    text = language_model(7, hidden=4, layers=2, embedding=3, dropout=0.5, recurrent_dropout=0.5, input_dropout=0.3)
    label = ManyToOne(Encoder(AsTheyAre(2), encoder_layers("gru", 2, 4, 2, True), dropout=0.4), 3, "mean", 0.5)
    tags = ManyToMany(Encoder(AsTheyAre(2), encoder_layers("lstm", 2, 4, 1, True)), 3)
    both = EncoderDecoder(
        Encoder(nn.Embedding(7, 3), encoder_layers("gru", 3, 4, 1, True)), Decoder(nn.Embedding(7, 3), LSTM(3, 4), 8)
    )

    def wrote() -> Tensor:
        cell = both.decoder.attend(both.remember(tokens, lengths))
        scores = cell.unroll(tokens[:, :4], cell.initial_state(2))[0]
        return F.cross_entropy(scores.transpose(1, 2), tokens[:, 1:5], reduction="none")

    return {
        "language": (text, probe.losses_of(text, tokens, tokens, lengths)),
        "label": (label, lambda: label(xs, lengths)[:, :1]),
        "tags": (tags, lambda: tags(xs, lengths)[0].square().sum(2)),
        "encoder-decoder": (both, wrote),
    }


@pytest.mark.parametrize("name", ["language", "label", "tags", "encoder-decoder"])
def test_probing_leaves_a_model_as_it_was(name: str) -> None:
    model, plain_losses = whole_models()[name]
    losses = lambda: plain_losses() + 0 * torch.rand(())  # noqa: E731 - what draws random numbers even now
    model.train()
    next(iter(model.children())).eval()  # modes that differ from part to part
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    list(model.parameters())[-1].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    attributes = [set(vars(part)) for part in model.modules()]
    random = torch.get_rng_state()
    seen = probe.record(model, losses)
    found = probe.flow(seen)
    probe.gates(seen)
    probe.unrolled(model, seen)
    for track in seen.tracks:
        probe.jacobians(track, steps=3)
    if name not in {"label", "tags"}:
        probe.connectivity(model, losses)
        probe.connectivity(model, losses, way="occlusion")
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in model.modules()] == modes
    assert [set(vars(part)) for part in model.modules()] == attributes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert recurra.kernels.wanted() and not any(part._forward_hooks for part in model.modules())
    expected = {key for key, part in model.named_modules() if isinstance(part, (LSTM, GRU))}
    assert {layer.name for layer in found.layers} == expected
    assert all(layer.verdict != "silent" for layer in found.layers)
    assert [one.verdict for one in probe.flow(probe.record(model, losses)).layers] == [
        one.verdict for one in found.layers
    ]


def test_ways_through_a_bidirectional_layer_above_are_on_the_map_and_an_encoder_counts_from_its_own_end() -> None:
    torch.manual_seed(9)
    xs = torch.randn(1, STEPS, INPUTS, dtype=torch.float64)
    low, high = Elman(INPUTS, UNITS).double(), Bidirectional(GRU(UNITS, UNITS), GRU(UNITS, UNITS)).double()
    model = nn.ModuleList([low, high])
    losses = lambda: high(low.unroll(xs, low.initial_state(1))[0])[0].square().sum(2)  # noqa: E731
    seen = probe.record(model, losses)
    found = next(one for one in probe.flow(seen).layers if one.name == "0")
    states, _ = by_hand(low, xs)
    above = high(torch.stack([one["h"] for one in states], 1))[0].square().sum(2)[0]
    for t in range(STEPS):
        for k in range(STEPS):
            (slope,) = torch.autograd.grad(above[t], states[k]["h"], retain_graph=True)
            assert found.map[t, k] == pytest.approx(float(slope.norm()), rel=1e-9)
    for at, d in enumerate(found.distance):
        pairs = [found.map[t, t - d] ** 2 for t in range(d, STEPS)]
        assert found.profile[at] == pytest.approx(math.sqrt(np.mean(pairs)))
    apart = next(one for one in probe.flow(seen, elsewhere=["0"]).layers if one.name == "0")
    own = np.sqrt(np.mean(apart.map**2, 0))[::-1]
    np.testing.assert_allclose(apart.profile, own)
    assert not np.allclose(apart.profile, found.profile)


def test_a_network_of_fixed_weights_has_gradients_too() -> None:
    cell, xs = one("elman")
    plain = probe.flow(probe.record(cell, probe.losses_of(cell, xs))).layers[0]
    cell.requires_grad_(False)
    np.testing.assert_array_equal(probe.flow(probe.record(cell, probe.losses_of(cell, xs))).layers[0].map, plain.map)


@pytest.mark.parametrize(
    ("factor", "verdict", "memory"), [(0.5, "vanishing", 7), (1.0, "healthy", None), (1.3, "exploding", None)]
)
def test_the_decay_memory_and_verdict_of_a_linear_network_are_those_of_its_factor(
    factor: float, verdict: str, memory: int | None
) -> None:
    cell = Linear(factor * torch.eye(3, dtype=torch.float64))
    xs = torch.zeros(1, 40, 1, dtype=torch.float64)
    losses = lambda: cell.unroll(xs, cell.initial_state(1))[0].sum(2)  # noqa: E731
    found = probe.flow(probe.record(cell, losses), most=5)
    assert found.times.tolist() == [0, 10, 20, 29, 39]
    layer = found.layers[0]
    assert layer.decay == pytest.approx(factor, rel=1e-9)
    assert (layer.memory, layer.verdict) == (memory, verdict)
    np.testing.assert_allclose(layer.profile, math.sqrt(3) * factor**layer.distance, rtol=1e-9)
    assert verdict in found.words[0]
    wanted = {"vanishing": "model.init=chrono", "exploding": "optimizer.clip=1", "healthy": "more than 1 %"}
    assert wanted[verdict] in " ".join(found.words)


def test_a_network_that_has_gates_is_not_told_to_take_some() -> None:
    for kind, told in ((Elman, True), (GRU, False)):
        torch.manual_seed(0)
        cell, xs = kind(INPUTS, UNITS).double(), torch.randn(1, 60, INPUTS, dtype=torch.float64)
        words = " ".join(probe.flow(probe.record(cell, probe.losses_of(cell, xs)), needed=1000).words)
        assert "model.init=chrono" in words
        assert ("--cell lstm" in words) == told


def test_a_page_of_many_cells_stays_below_eight_megabytes() -> None:
    values = np.random.default_rng(0).normal(size=(1, 1000, 256))
    part = probe.Gate("h", "state", values, *[np.zeros(256)] * 3, None)
    many = [probe.Gates(f"cell {at}", [part] * 6, np.zeros(0), []) for at in range(8)]
    assert len(pages.page("many", [figures.gates_section(many, [])]).encode()) < 7e6


def test_losses_without_steps_or_gradients_are_refused_in_words() -> None:
    cell, xs = one("elman")
    with torch.no_grad():
        plain = cell.unroll(xs, cell.initial_state(1))[0].sum(2)
    one_number = lambda: cell.unroll(xs, cell.initial_state(1))[0].sum()  # noqa: E731, PLW0108
    for losses in (lambda: plain, one_number):
        with pytest.raises(UsageError, match=r"wanted a function that runs the model"):
            probe.record(cell, losses)
    assert "step" not in vars(cell)
    with pytest.raises(UsageError, match="at least 1"):
        probe.flow(probe.record(cell, probe.losses_of(cell, xs)), most=0)


@pytest.mark.parametrize(
    "name", [*(name for name in cells() if name != "reservoir"), "learnt start"]
)  # it learns nothing
def test_the_terms_add_up_to_the_gradient_and_each_is_what_its_step_adds(name: str) -> None:
    if name == "learnt start":
        torch.manual_seed(0)
        cell: Cell = recurra.cells.LearntStart(GRU(INPUTS, UNITS)).double()
        xs = torch.randn(1, STEPS, INPUTS, dtype=torch.float64)
    else:
        cell, xs = one(name, rows=2)
    found = probe.terms(cell, xs, lambda y: y.square().sum(), t=4)
    ys, _ = cell.unroll(xs, cell.initial_state(len(xs)))
    slopes = torch.autograd.grad(
        ys[:, 4].square().sum(), list(cell.parameters()), allow_unused=True, materialize_grads=True
    )
    moved = 0
    for (key, _), slope in zip(cell.named_parameters(), slopes, strict=True):
        assert found.parts[key].shape[0] == 5
        np.testing.assert_allclose(found.total(key), slope.numpy(), rtol=1e-10, atol=1e-12)
        moved += bool(np.abs(found.parts[key]).max() > 1e-6)
    assert moved


def test_the_terms_are_the_lectures_products_worked_out_by_hand() -> None:
    torch.manual_seed(3)
    model = SequenceModel(nn.Embedding(4, 2), Elman(2, 3), nn.Linear(3, 4)).double()
    tokens, target = torch.tensor([[0, 3, 1, 2]]), torch.tensor([1])
    found = probe.terms(model, tokens, lambda y: F.cross_entropy(y, target))
    w, u = (one.detach().numpy() for one in (model.core.weight_hh, model.core.weight_ih))
    bias = (model.core.bias_ih + model.core.bias_hh).detach().numpy()
    x, h = model.embedding.weight.detach().numpy()[tokens[0].numpy()], [np.zeros(3)]
    for one_x in x:
        h.append(np.tanh(u @ one_x + w @ h[-1] + bias))
    scores = model.readout.weight.detach().numpy() @ h[-1] + model.readout.bias.detach().numpy()
    error = np.exp(scores) / np.exp(scores).sum() - np.eye(4)[1]
    flowing = model.readout.weight.detach().numpy().T @ error
    for k in range(3, -1, -1):
        local = (1 - h[k + 1] ** 2) * flowing
        np.testing.assert_allclose(found.parts["core.weight_hh"][k], np.outer(local, h[k]), atol=1e-13)
        np.testing.assert_allclose(found.parts["core.weight_ih"][k], np.outer(local, x[k]), atol=1e-13)
        np.testing.assert_allclose(found.parts["core.bias_ih"][k], local, atol=1e-13)
        v = np.outer(error, h[-1]) if k == 3 else np.zeros((4, 3))
        np.testing.assert_allclose(found.parts["readout.weight"][k], v, atol=1e-13)
        assert found.norms("core.weight_hh")[k] == pytest.approx(np.linalg.norm(np.outer(local, h[k])))
        flowing = w.T @ local
    with pytest.raises(UsageError, match="from 0 to 3"):
        probe.terms(model, tokens, lambda y: y.sum(), t=4)


# --- Jacobians ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in cells() if name != "stacked"])
def test_jacobians_are_what_differences_give_and_products_their_products(name: str) -> None:
    cell, xs = one(name)
    (track,) = probe.record(cell, probe.losses_of(cell, xs)).tracks
    found = probe.jacobians(track, steps=3, last=4)
    assert found.times.tolist() == [2, 3, 4]
    core, product = track.cell, np.eye(found.matrices.shape[1])
    for at, t in reversed(list(enumerate(found.times))):
        u = [leaf[:, t] for leaf in leaves(track.us)]
        before = [leaf[:, t] for leaf in leaves(track.before)]
        floats = [leaf for leaf in before if leaf.is_floating_point()]
        flat = torch.cat([leaf.flatten() for leaf in floats])

        def after(
            s: Tensor, u: list[Tensor] = u, before: list[Tensor] = before, floats: list[Tensor] = floats
        ) -> Tensor:
            parts = iter(s.split([leaf.numel() for leaf in floats]))
            moved = [next(parts).view_as(b) if b.is_floating_point() else b for b in before]
            state = recurra.state.refill(track.start, moved)
            with torch.no_grad():
                out = core.step(recurra.state.refill(track.us, u), state)[1]
            return torch.cat([leaf.flatten() for leaf in leaves(out) if leaf.is_floating_point()])

        steps = torch.eye(len(flat), dtype=torch.float64) * 1e-6
        columns = [(after(flat + step) - after(flat - step)) / 2e-6 for step in steps]
        np.testing.assert_allclose(found.matrices[at], torch.stack(columns, 1).numpy(), atol=1e-8)
        np.testing.assert_allclose(found.singular[at], np.linalg.svd(found.matrices[at])[1], atol=1e-12)
        product = product @ found.matrices[at]
        np.testing.assert_allclose(found.products[4 - t], np.linalg.svd(product)[1], atol=1e-12)
    assert name in ("window", "reservoir") or found.products[-1, 0] > 1e-6


def test_jacobians_of_too_large_a_state_are_refused() -> None:
    cell, xs = CELLS["lstm-matrix"](2, 64), torch.randn(1, 2, 2)
    seen = probe.record(cell, probe.losses_of(cell, xs))
    with pytest.raises(UsageError, match="Jacobians are made of 2,048 at most"):
        probe.jacobians(seen.tracks[0])


def test_exponents_and_eigenvalues_are_those_of_known_systems() -> None:
    values = torch.tensor([0.2, 1.5, -0.9], dtype=torch.float64)
    basis = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cell = Linear(basis @ values.diag() @ basis.inverse())
    cell.blocks = ("hidden",)
    xs = torch.zeros(1, 150, 1, dtype=torch.float64)
    seen = probe.record(cell, probe.losses_of(cell, xs))
    found = probe.jacobians(seen.tracks[0], exponents=3)
    np.testing.assert_allclose(found.exponents, np.log([1.5, 0.9, 0.2]), atol=1e-6)
    np.testing.assert_allclose(np.sort(found.eigenvalues["hidden"].real), [-0.9, 0.2, 1.5], atol=1e-10)
    assert "chaos" in " ".join(found.words)
    henon = Henon()
    xs = torch.zeros(1, 1500, 1, dtype=torch.float64)
    (track,) = probe.record(henon, probe.losses_of(henon, xs)).tracks
    found = probe.jacobians(track, exponents=2)
    assert found.exponents[0] == pytest.approx(0.419, abs=0.03)  # Grassberger & Procaccia 1983
    assert found.exponents.sum() == pytest.approx(math.log(0.3), abs=1e-9)
    with pytest.raises(UsageError, match="of a row of 1500 steps"):
        probe.jacobians(track, last=1500)


def test_a_gradient_goes_back_by_the_jacobians_and_decays_by_the_exponent() -> None:
    torch.manual_seed(4)
    cell = Elman(INPUTS, 8).double()
    xs = torch.randn(1, 60, INPUTS, dtype=torch.float64)
    seen = probe.record(cell, probe.losses_of(cell, xs))
    layer = probe.flow(seen).layers[0]
    found = probe.jacobians(seen.tracks[0], steps=10, flow=layer)
    slope = seen.tracks[0].after[-1]["h"].detach().numpy()[0]
    for k in range(58, 49, -1):
        slope = found.matrices[k + 1 - 50].T @ slope
        assert layer.map[-1, k] == pytest.approx(np.linalg.norm(slope), rel=1e-9)
    assert math.log(layer.decay) == pytest.approx(found.exponents[0], abs=0.1)
    assert f"{layer.decay:.3f} was measured" in " ".join(found.words)


# --- gates and what units follow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "lstm-coupled", "gru", "mgu", "leaky", "zoneout", "elman"])
def test_gates_are_those_of_the_cell_and_their_numbers_plain_sums(name: str) -> None:
    cell, xs = one(name, rows=2)
    xs = xs * 20
    lengths = torch.tensor([STEPS, 3])
    (found,) = probe.gates(probe.record(cell, probe.losses_of(cell, xs, lengths=lengths)))
    inner = cell.cell if isinstance(cell, Zoneout) else cell
    state, us = cell.initial_state(2), inner.project(xs)
    values: dict[str, list[Any]] = {}
    for t in range(STEPS):
        if hasattr(inner, "gates"):
            for key, gate in inner.gates(recurra.state.tmap(lambda u, t=t: u[:, t], us), state)._asdict().items():
                values.setdefault(key, []).append(gate.expand(2, -1).detach().numpy())
        _, state = cell(xs[:, t], state)
        for key, leaf in named(state).items():
            values.setdefault(key, []).append(leaf.detach().numpy())
    assert {part.name for part in found.parts} == set(values)
    for part in found.parts:
        rows = np.concatenate([np.stack(values[part.name], 1)[0], np.stack(values[part.name], 1)[1, :3]])
        assert np.isnan(part.values[1, 3:]).all()
        real = part.values[np.isfinite(part.values).all(2)]
        np.testing.assert_allclose(real, rows, atol=1e-12)
        low = -0.9 if rows.min() < 0 else 0.1
        np.testing.assert_allclose(part.low, [(column < low).mean() for column in rows.T])
        np.testing.assert_allclose(part.high, [(column > 0.9).mean() for column in rows.T])
        np.testing.assert_allclose(part.mean, rows.mean(0))
        keeps = {"lstm": "forget", "lstm-coupled": "forget", "gru": "update", "mgu": "forget", "leaky": "keep"}
        assert (part.half_life is not None) == (part.name == keeps.get(name, "forget" if name == "zoneout" else ""))
        if part.half_life is not None:
            f = 1 - rows.mean(0) if name == "mgu" else rows.mean(0)
            np.testing.assert_allclose(f**part.half_life, 0.5, rtol=1e-9)


def test_units_that_do_not_move_are_dead() -> None:
    cell, xs = one("elman")
    with torch.no_grad():
        for weight in cell.parameters():
            weight[1] = 0
    (found,) = probe.gates(probe.record(cell, probe.losses_of(cell, xs)))
    assert found.dead.tolist() == [1]
    assert "1 of 3 units hardly move (less than 0.01): 1" in found.words[-1]


def test_a_unit_that_follows_quotes_is_found_and_scored_on_steps_that_it_was_not_chosen_by() -> None:
    texts = [list('he said "yes (no)" and "never" to A1\nthen "so" went "home" again')]
    told = probe.features(texts)
    quoted, inside = [], False
    for char in texts[0]:
        inside = inside != (char == '"')
        quoted.append(inside)
    np.testing.assert_array_equal(told["inside quotes"][0], quoted)
    assert told["column"][0][texts[0].index("\n") + 1] == 1
    assert "".join(char for char, held in zip(texts[0], told["inside brackets"][0], strict=True) if held) == "(no"
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, len(texts[0]), 12))
    values[0, :, 7] -= 3 * told["inside quotes"][0]
    values[0, :, 4] += 0.5 * told["position"][0]
    state = probe.Gate("h", "state", values, *[np.zeros(12)] * 3, None)
    found = probe.followers([probe.Gates("layer", [state], np.zeros(0), [])], told, best=1)
    by_feature = {one.feature: one for one in found}
    claim, place = by_feature["inside quotes"], by_feature["position"]
    assert (claim.unit, claim.sign, claim.measure) == (7, -1, "auc")
    half = len(quoted) // 2
    pairs = [
        (values[0, i, 7] < values[0, j, 7]) + 0.5 * (values[0, i, 7] == values[0, j, 7])
        for i in range(half, len(quoted))
        for j in range(half, len(quoted))
        if quoted[i] and not quoted[j]
    ]
    assert claim.score == pytest.approx(np.mean(pairs))
    assert (place.unit, place.measure) == (4, "r")
    expected = np.corrcoef(values[0, half:, 4], np.arange(len(quoted))[half:])[0, 1]
    assert place.score == pytest.approx(expected)
    noise = probe.Gate("h", "state", rng.normal(size=(1, 4000, 200)), *[np.zeros(200)] * 3, None)
    coin = {"label": (rng.random((1, 4000)) > 0.5).astype(float)}
    (chance,) = probe.followers([probe.Gates("layer", [noise], np.zeros(0), [])], coin, best=1)
    assert abs(chance.score - 0.5) < 0.05  # the best of 200 by chance is no finding


# --- the strip and connectivity -----------------------------------------------------------------------------------------


def test_the_strip_is_what_steps_of_the_model_say() -> None:
    torch.manual_seed(5)
    model = language_model(6, hidden=5, embedding=3).double()
    tokens = torch.randint(6, (9,))
    found = probe.strip(model, tokens[:-1], tokens[1:], best=6)
    state = model.initial_state(1)
    for t in range(8):
        scores, state = model(tokens[t : t + 1], state)
        chances = scores[0].detach().exp().numpy() / scores[0].detach().exp().numpy().sum()
        assert found.surprise[t] == pytest.approx(-math.log2(chances[tokens[t + 1]]))
        np.testing.assert_allclose(found.probabilities[t], np.sort(chances)[::-1])
        np.testing.assert_array_equal(found.guesses[t], np.argsort(-chances))
        assert found.entropy[t] == pytest.approx(-(chances * np.log2(chances)).sum())
    with pytest.raises(UsageError, match="the tokens that came after them"):
        probe.strip(model, tokens, tokens[1:])


class Delay(Cell):
    """It puts out the input of two steps ago, and nothing else."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input_size = self.output_size = size

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, self.output_size), torch.zeros(batch, self.output_size)

    def step(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        return state[0], (state[1], u)


@pytest.mark.parametrize("way", ["gradient", "gradient times input", "occlusion"])
def test_a_copying_network_looks_back_at_what_it_copies_and_at_nothing_else(way: Any) -> None:
    readout = nn.Linear(5, 5)
    model = SequenceModel(nn.Embedding(5, 5), Delay(5), readout)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(5))
        readout.weight.copy_(4 * torch.eye(5))
        readout.bias.zero_()
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    targets = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 0]])
    found = probe.connectivity(model, probe.losses_of(model, tokens, targets), way=way, times=[3, 4, 7])
    strongest = np.zeros((3, 8), bool)
    strongest[[0, 1, 2], [1, 2, 5]] = True
    assert (found.moved[strongest] > 0.05).all()
    assert (found.moved[~strongest] == 0).all()
    if way == "occlusion":  # a fifth for each of five equal scores, against a lead of 4
        sure = math.exp(4) / (math.exp(4) + 4)
        np.testing.assert_allclose(found.moved[strongest], math.log(5 * sure), rtol=1e-5)
    with pytest.raises(UsageError, match="wanted 0 to 7"):
        probe.connectivity(model, probe.losses_of(model, tokens, targets), times=[8])


def test_gradient_times_input_is_what_differences_of_each_input_give() -> None:
    torch.manual_seed(6)
    model = language_model(6, hidden=5, embedding=3, layers=2).double()
    tokens = torch.randint(6, (1, 7))
    losses = probe.losses_of(model, tokens[:, :-1], tokens[:, 1:])
    found = probe.connectivity(model, losses)
    features = model.embedding(tokens[0, :-1]).detach()
    for s in range(6):
        sides = []
        for scale in (1 + 1e-6, 1 - 1e-6):
            xs = features.clone()
            xs[s] *= scale
            ys, _ = model.core.unroll(xs[None], model.core.initial_state(1))
            sides.append(F.cross_entropy(model.readout(ys)[0], tokens[0, 1:], reduction="none"))
        np.testing.assert_allclose(found.moved[:, s], -((sides[0] - sides[1]) / 2e-6).detach().numpy(), atol=1e-8)
    assert np.abs(np.tril(found.moved)).max() > 1e-4
    assert not np.triu(found.moved, 1).any()


# --- shapes and training ------------------------------------------------------------------------------------------------


def test_shapes_are_those_of_the_lectures_table_and_blank_hides_them_first() -> None:
    cell = Elman(4, 3)
    shapes = probe.unrolled(cell, probe.record(cell, probe.losses_of(cell, torch.zeros(1, 5, 4))))
    told = {row.name: (row.shape, row.numbers) for row in shapes.parameters}
    assert told == {
        "weight_ih": ((3, 4), "3 x 4 = 12"),
        "weight_hh": ((3, 3), "3 x 3 = 9"),
        "bias_ih": ((3,), "3"),
        "bias_hh": ((3,), "3"),
    }
    assert shapes.total == 27
    assert shapes.formulas == {"Elman": "units * (inputs + units + 2) = 27"}
    assert [(row.name, row.shape) for row in shapes.one_step] == [
        ("Elman x", (1, 4)), ("Elman u", (1, 3)), ("Elman h", (1, 3)),
    ]  # fmt: skip
    assert [row.shape for row in shapes.all_steps] == [(1, 5, 4), (1, 5, 3), (1, 5, 3)]
    lines = shapes.lines(blank=True)
    question, solution = lines[: lines.index("Solution")], lines[lines.index("Solution") :]
    assert not any(re.search(r"\[\d", line) or "27" in line for line in question)
    assert sum("______" in line for line in question) == 3 + 3 + 4 + 1
    assert not any("______" in line for line in solution)
    assert solution[2:] == shapes.lines()


@pytest.mark.parametrize("name", ["stacked", "bidirectional"])
def test_parameters_are_counted_block_by_block(name: str) -> None:
    torch.manual_seed(7)
    model: Any = Stacked([LSTM(2, 3), GRU(3, 3)]) if name == "stacked" else Bidirectional(LSTM(2, 3), LSTM(2, 3))
    xs = torch.randn(2, 4, 2)
    losses = probe.losses_of(model, xs) if name == "stacked" else lambda: model(xs)[0].square().sum(2)
    shapes = probe.unrolled(model, probe.record(model, losses))
    rows = {row.name: row.numbers for row in shapes.parameters}
    first = "cells.0" if name == "stacked" else "forwards.cell"
    assert rows[f"{first}.weight_hh"] == "4 x 3 x 3 = 36"
    assert sum(math.prod(row.shape) for row in shapes.parameters) == shapes.total
    assert {row.name: row.shape for row in shapes.all_steps}[f"{first} forget"] == (2, 4, 3)
    assert any("from the end" in row.meaning for row in shapes.one_step) == (name == "bidirectional")


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    events = [
        {"event": "begin", "time": 0.0, "unit": ["bits/token", 2.0, "tokens"]},
        {"event": "step", "time": 1.0, "step": 1, "loss": 4.0, "grad_norm": 3.0, "clipped": True, "targets": 100, "rate": 0.1},
        {"event": "step", "time": 3.0, "step": 11, "loss": None, "grad_norm": 0.5, "clipped": False, "targets": 100, "rate": 0.2},
        {"event": "refused", "time": 3.1, "step": 12},
        {"event": "validation", "time": 3.5, "step": 12, "train": 3.5, "loss": 3.0, "error": 3.0, "best": 3.0},
        {"event": "begin", "time": 100.0, "unit": ["bits/token", 2.0, "tokens"]},
        {"event": "step", "time": 101.0, "step": 20, "loss": 2.0, "grad_norm": 0.4, "clipped": False, "targets": 50, "rate": 0.3},
        {"event": "validation", "time": 102.0, "step": 24, "train": 2.5, "loss": 3.5, "error": 3.5, "best": 3.0},
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"event": "st')
    found = probe.training(tmp_path)
    np.testing.assert_array_equal(found.step, [1, 11, 20])
    np.testing.assert_array_equal(found.loss, [4, math.nan, 2])
    np.testing.assert_array_equal(found.norm, [3, 0.5, 0.4])
    np.testing.assert_array_equal(found.speed, [math.nan, 10 * 100 / 2, math.nan])  # none across a start
    np.testing.assert_array_equal(found.valid, [3, 3.5])
    np.testing.assert_array_equal(found.valid_step, [12, 24])
    assert (found.refused, found.unit, found.factor) == (1, "bits/token", 2.0)
    assert found.share_clipped == pytest.approx(1 / 3)
    assert "6 bits/token at step 12" in found.words[0]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write("\n" + json.dumps({"event": "gradients", "steps": 24, "clipped": 0.25, "refused": 1}) + "\n")
    assert probe.training(tmp_path).share_clipped == 0.25
    with pytest.raises(DataError, match=r"log\.jsonl"):
        probe.training(tmp_path / "nowhere")


def test_updates_are_told_as_a_share_of_the_weights(trained: Path) -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0], [0, 4]]))
        layer.bias.zero_()
        before = fit.weights(layer)
        layer.weight.add_(torch.tensor([[0.0, 0.05], [0, 0]]))
    assert fit.update_ratios(layer, before) == {"weight": 0.01}, "of what was all zeros nothing is said"
    found = probe.training(trained)
    assert set(found.ratios) >= {"core.weight_hh", "readout.weight"} and "An update moved the parameters" in " ".join(
        found.words
    )
    assert all(0 < one[0] < 1 for one in found.ratios.values())


def test_the_drawing_names_each_step_and_shape() -> None:
    cell = Stacked([LSTM(2, 3), GRU(3, 4)])
    for steps, named_steps in ((3, ["x_1", "x_2", "x_3"]), (9, ["x_1", "x_2", "x_3", "x_9"])):
        xs = torch.randn(1, steps, 2)
        drawing = unrolled_svg(probe.unrolled(cell, probe.record(cell, probe.losses_of(cell, xs))))
        words = re.findall(r">([^<>]+)<", drawing)
        inputs = [word for word in words if word.startswith("x_")]
        assert inputs == [f"{one} [1, 3]" for one in named_steps] + [f"{one} [1, 2]" for one in named_steps]
        assert {"h [1, 3]", "c [1, 3]", "h [1, 4]", "weight_hh [12, 3]", "weight_hh [12, 4]"} <= set(words)


# --- the page and the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "text.txt").write_text('he said "yes" and "no" to <script>alert(1)</script> &.\n' * 40)
    settings = {"train": {"rows": 4, "chunk": 16, "validations": 2}}
    recurra.train("language", folder / "text.txt", out=folder / "run", hidden=8, steps=6, threads=1, settings=settings)
    return folder / "run"


def test_the_command_writes_one_page_that_asks_nothing_of_a_network(
    trained: Path, shell: Shell, tmp_path: Path
) -> None:
    answer = shell("probe", trained, "<script>alert(1)</script> &", "--out", tmp_path / "report.html", "--threads", 1)
    assert answer.code == 0, answer.err
    assert "bits a token over 27 tokens" in answer.out
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(content.encode()) < 8e6
    assert content.count("<script>alert(1)") == 0
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=", content)
    assert 'name="viewport"' in content and "default-src 'none'" in content
    strip = re.findall(r'<span class="token"[^>]*><b>(.*?)</b><u>([\d.]+)</u>', content)
    assert [token for token, _ in strip][:4] == ["&lt;", "s", "c", "r"]
    told = json.loads(shell("probe", trained, "<script>alert(1)</script> &", "--json").out)
    assert [float(bits) for _, bits in strip] == pytest.approx(told["strip"]["surprise"], abs=0.051)
    assert content.count("Plotly.newPlot(") >= 10


def test_the_numbers_are_those_of_the_probes(trained: Path, shell: Shell) -> None:
    told = json.loads(shell("probe", trained, "she said no", "--json").out)
    task = recurra.load(trained)
    ids = torch.tensor([task.tokens.end, *task.tokens.encode("she said no").tolist()])
    losses = probe.losses_of(task.model, ids[None, :-1], ids[None, 1:])
    found = probe.flow(probe.record(task.model, losses))
    assert [one["name"] for one in told["flow"]["layers"]] == [one.name for one in found.layers]
    for one, layer in zip(told["flow"]["layers"], found.layers, strict=True):
        np.testing.assert_allclose(one["profile"], layer.profile, rtol=1e-5)
    score = task.step_loss(task.model.unroll(ids[None, :-1], task.model.initial_state(1))[0], ids[None, 1:])
    np.testing.assert_allclose(told["strip"]["surprise"], score[0].detach().numpy() / math.log(2), rtol=1e-5)
    assert told["training"]["valid_step"][-1] == 6
    assert "values" not in json.dumps(told).replace("eigenvalues", "")


def test_shapes_on_the_command_line_and_what_is_refused(trained: Path, shell: Shell, tmp_path: Path) -> None:
    shapes = shell("probe", trained, "--shapes")
    assert "core.weight_hh" in shapes.out and "4 x 8 x 8 = 256" in shapes.out
    blank = shell("probe", trained, "--shapes", "--blank")
    assert blank.out.index("______") < blank.out.index("Solution") < blank.out.index("256")
    both = shell("probe", trained, "--shapes", "--out", "page.html")
    assert both.code == 2 and "leave one of them out" in both.said
    alone = shell("probe", trained / "best")
    assert alone.code == 2 and "give a text or a file" in alone.said
    (tmp_path / "some.txt").write_text("he said")
    assert "7 tokens" in shell("probe", trained / "best", "some.txt").out


def test_networks_beside_it_and_the_one_before_its_training_are_followed_on_the_same(
    trained: Path, shell: Shell, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text('he said "yes" and "no" to <script>alert(1)</script> &.\n' * 40)
    settings = {"train": {"rows": 4, "chunk": 16, "validations": 2}, "optimizer": {"rate": 1e-9}}
    recurra.train("language", text, out=tmp_path / "still", hidden=8, steps=2, threads=1, settings=settings)
    answer = shell(
        "probe", tmp_path / "still", "he said", "--before", "--beside", trained, "--json", "--out", "page.html"
    )
    told = json.loads(answer.out)["beside"]
    assert list(told) == ["this", str(trained), "before training"]
    now, other, before = (one["layers"][0]["profile"] for one in told.values())
    np.testing.assert_allclose(now, before, rtol=1e-4)  # it was hardly moved
    assert not np.allclose(now, other, rtol=1e-2)
    again = json.loads(shell("probe", trained, "he said", "--before", "--json").out)["beside"]
    trained_now, trained_before = (one["layers"][0]["profile"] for one in again.values())
    np.testing.assert_allclose(trained_before, before, rtol=1e-4)  # the same seed, the same start
    assert not np.allclose(trained_now, trained_before, rtol=1e-2)
    assert "Gradients beside each other" in (tmp_path / "page.html").read_text(encoding="utf-8")
    alone = shell("probe", trained / "best", "he said", "--before")
    assert alone.code != 0 and "no run folder" in alone.said


def test_a_notebook_shows_the_words_and_the_same_figures() -> None:
    shell = pytest.importorskip("IPython.core.interactiveshell", reason="no IPython here").InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    section = figures.flow_section(probe.flow(probe.record(*small())))
    running = shell.instance(config=Config(HistoryManager={"enabled": False}))
    try:
        with capture_output() as captured:
            running.push({"section": section})
            running.run_cell("section", store_history=False)
    finally:
        shell.clear_instance()
    told = [one.data for one in captured.outputs]
    assert section.words[0] in told[0]["text/html"]
    drawn = [one["application/vnd.plotly.v1+json"] for one in told if "application/vnd.plotly.v1+json" in one]
    assert [len(one["data"]) for one in drawn] == [len(one.data) for one in section.shown]


def small() -> tuple[Cell, probe.Losses]:
    cell, xs = one("gru")
    return cell, probe.losses_of(cell, xs)


def test_every_kind_of_task_can_be_probed(tmp_path: Path, shell: Shell) -> None:
    rows = ["text\tlabel", *(f"{word} film\t{label}" for word, label in [("good", "yes"), ("bad", "no")] * 12)]
    (tmp_path / "labels.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "tags.conll").write_text("the O\ncat B-animal\nsat O\n\na O\ndog B-animal\n\n" * 12)
    (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + "".join(f"ab{k}\tba{k}\n" for k in range(30)))
    (tmp_path / "series.csv").write_text("time,value\n" + "".join(f"{k},{k % 7}\n" for k in range(300)))
    given = {"classify": ("labels.tsv", "a good film"), "tag": ("tags.conll", "the dog sat")}
    given |= {"seq2seq": ("pairs.tsv", "ab3"), "forecast": ("series.csv", None)}
    asked = {"classify": {"task": {"pooling": "attention"}}}
    for name, (file, text) in given.items():
        recurra.train(
            name, tmp_path / file, out=tmp_path / name, hidden=6, steps=2, threads=1, settings=asked.get(name, {})
        )
        for arguments in ([], [text] if text else []):
            answer = shell("probe", tmp_path / name, *arguments, "--out", f"{name}.html")
            assert answer.code == 0, answer.err
            assert "Lyapunov" in answer.out or name == "seq2seq"
            assert ("A look takes in" in answer.out) == (name in ("classify", "seq2seq"))
            assert "In this plane" in answer.out and "hold 90 % of the variance" in answer.out
            assert (tmp_path / f"{name}.html").stat().st_size < 8e6
        assert "Parameters" in shell("probe", tmp_path / name, "--shapes").out
    assert shell("probe", tmp_path / "forecast", "words").code == 2
    recurra.train(
        "forecast", tmp_path / "series.csv", out=tmp_path / "large", cell="kalman", hidden=64, steps=1, threads=1
    )
    assert "Jacobians are made of 2,048 at most" in shell("probe", tmp_path / "large", "--out", "large.html").out


def test_where_a_captioner_looked_is_laid_over_the_picture(tmp_path: Path, shell: Shell) -> None:
    recurra.train("caption", "synthetic:shapes", out=tmp_path / "run", hidden=8, steps=1, threads=1)
    told = json.loads(shell("probe", tmp_path / "run", "--json", "--out", "page.html").out)
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(told["attention"]["coverage"]) == 64 and "picture" not in told
    assert content.count("<figcaption>") == 1 + len(told["attention"]["entropy"]) == 1 + len(told["outputs"])
    assert sum(told["attention"]["coverage"]) == pytest.approx(len(told["outputs"]), rel=1e-3)


def test_what_is_not_finite_or_too_large_does_not_reach_json() -> None:
    assert pages.plain({"a": np.array([1.0, math.nan]), "b": np.array([1 + 2j])}) == {
        "a": [1.0, None],
        "b": [[1.0, 2.0]],
    }
    record = probe.Gate("g", "gate", np.zeros((1, 2, 3)), *[np.ones(1)] * 3, None)
    assert set(pages.plain(record)) == {"name", "kind", "low", "high", "mean", "half_life"}


def test_flow_gates_and_strip_of_three_hundred_characters_are_quick() -> None:
    torch.manual_seed(8)
    model, tokens = language_model(60, hidden=256, layers=2), torch.randint(60, (1, 301))
    began = time.process_time()
    seen = probe.record(model, probe.losses_of(model, tokens[:, :-1], tokens[:, 1:]))
    probe.flow(seen)
    probe.gates(seen)
    probe.strip(model, tokens[0, :-1], tokens[0, 1:])
    assert time.process_time() - began < 5  # 300 steps on a busy machine; 2 s for 1,000 on two quiet cores
