"""The benches of the kernels time both sides, count right, and leave the caller's random numbers alone."""

import torch

from recurra.bench import kernels


def test_the_bench_times_every_layer_in_both_modes_beside_torch() -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    told: list[str] = []
    try:
        report = kernels.compare(0.0, threads=1, seed=3, sizes=[(1, 4), (2, 8)], rounds=1, tell=told.append)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [(r["layer"], r["mode"], r["rows"], r["units"]) for r in report["cases"]] == [
        (kind, mode, *size)
        for kind in ("RNN", "GRU", "LSTM")
        for mode in ("infer", "train")
        for size in [(1, 4), (2, 8)]
    ]
    assert len(told) == len(report["cases"])
    for record in report["cases"]:
        assert record["recurra_ms"] > 0
        assert record["torch_ms"] > 0
        assert record["ratio"] > 0
    lines = kernels.table(report).splitlines()
    assert sum(line.startswith(("RNN", "GRU", "LSTM")) for line in lines) == len(report["cases"])


def test_the_operations_are_those_of_the_two_products_of_each_gate() -> None:
    rows_by_steps, units, gates = 7 * 5, 3, 4
    assert kernels.flops("LSTM", "infer", rows_by_steps, units) == 2 * rows_by_steps * (2 * units) * gates * units
    assert kernels.flops("LSTM", "train", 1, units) == 3 * kernels.flops("LSTM", "infer", 1, units)


def test_a_pass_is_the_same_work_on_both_sides() -> None:
    def results(library: object, batch_first: bool) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        return kernels.layer_pass(library, "LSTM", "train", 2, 3, 4, batch_first)()  # type: ignore[return-value]

    for one, other in zip(results(kernels.drop_in, True), results(torch.nn, True), strict=True):
        torch.testing.assert_close(one, other)
