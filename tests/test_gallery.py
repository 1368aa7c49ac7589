"""Every script of the gallery runs, and what it shows is what the lecture says."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recurra.probe.page import page

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script of a name, as a module, on one thread."""
    monkeypatch.syspath_prepend(str(GALLERY))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return importlib.import_module(name)

    yield load
    torch.set_num_threads(threads)
    for name in loaded:
        sys.modules.pop(name, None)


def text_of(sections: Any) -> str:
    """All words, and what is shown as text."""
    return "\n".join(part for one in sections for part in (*one.words, *(x for x in one.shown if isinstance(x, str))))


def test_the_worked_numbers_are_the_lectures(script: Any) -> None:
    told = text_of(script("worked").sections())
    for number in ("0.0399", "0.0917", "0.1464", "= 0.03998", "= 0.09173", "y = V h = (4, 4)", "(12, 12)", "(32, 32)"):
        assert number in told


def test_the_tables_of_shapes_are_the_lectures(script: Any) -> None:
    """W_ih, W_hh, b_ih and b_hh of 1 input and 1 unit, 3 units, 2 variables, two layers, both directions, counted by hand."""
    told = dict(zip(script("shapes").CASES, map(text_of, ([one] for one in script("shapes").sections())), strict=True))
    totals = {"One input and one unit": 4, "Several units": 3 + 9 + 6, "Several variables": 6 + 9 + 6}
    totals |= {"Two layers": 21 + (12 + 16 + 8), "Bidirectional": 2 * 21}
    assert all(f"all: {count} parameters" in told[name] for name, count in totals.items())
    assert (
        "[3, 2]" in told["Several variables"]
        and "[4, 3]" in told["Two layers"]
        and "x_4 [1, 2]" in told["Bidirectional"]
    )


def test_gates_keep_the_gradient_that_an_elman_network_loses(script: Any) -> None:
    told = script("vanishing").sections()
    text = text_of(told)
    assert "Elman before: Elman: vanishing" in text
    assert "LSTM before: LSTM: healthy" in text and "GRU before: GRU: healthy" in text
    right = {
        line.split(":")[0]: float(line.split(": ")[1].split("%")[0]) for line in text.splitlines() if "% of new" in line
    }
    assert right["LSTM"] > 95 and right["GRU"] > 95 and right["Elman"] < 80
    assert "core" not in text and len(told[1].shown[0].data) == 6


def test_there_is_a_cliff_and_clipping_keeps_the_step_short(script: Any) -> None:
    module = script("cliff")
    sections = module.sections()
    assert "there is a cliff" in text_of(sections)
    far, short = (one for one in sections[1].shown[0].data if one.type == "scatter")
    assert abs(far.x[1] - far.x[0]) > 50 * abs(short.x[1] - short.x[0]) > 0


def test_parity_has_two_states(script: Any) -> None:
    sections = script("parity").sections()
    right = float(sections[1].words[0].split("%")[0])
    assert right > 95
    assert "read as odd" in sections[1].words[1]


def test_attention_follows_words_that_change_places(script: Any) -> None:
    sections = script("attention").sections()
    assert "i ␣have ␣the ␣white ␣flower" in text_of(sections)
    weights = sections[1].shown[0].data[0].z
    said = zip("i have the white flower".split(), weights, strict=False)
    place = {word: max(range(4), key=row.__getitem__) for word, row in said}
    assert (place["white"], place["flower"]) == (3, 2), (
        "the adjective is the last word of the source, the noun before it"
    )


def test_the_page_of_the_gallery_holds_the_scripts(script: Any) -> None:
    sections = script("worked").sections()
    content = page("The lectures, in pictures", sections)
    assert "0.03998" in content and content.count("Plotly.newPlot(") == 1
    scripts = {"attention", "cliff", "parity", "shapes", "vanishing", "worked"}
    assert {one.stem for one in GALLERY.glob("*.py")} == {"__main__", *scripts}
