"""The page as a browser shows it: headless Chromium, where the machine has it with its driver."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recurra
from recurra import api, report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-quic"]

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="looks at pages in Chromium, and there is no chromium with its chromedriver here"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "text.txt").write_text("the <b>cat</b> sat & the dog ran. " * 60)
    settings = {"train": {"rows": 4, "chunk": 16, "validations": 2}}
    recurra.train(
        "language", folder / "text.txt", out=folder / "run", hidden=12, layers=2, steps=20, threads=1, settings=settings
    )
    before = {"before training": report.untrained(folder / "run")}
    found = report.examine(api.load(folder / "run"), folder / "run", "the <b>cat</b> sat & the", before)
    (folder / "page.html").write_text(report.page(found, "a run"), encoding="utf-8")
    return folder / "page.html"


@pytest.fixture(scope="module", params=[(390, 844), (1200, 900)], ids=["phone", "desk"])
def shown(request: pytest.FixtureRequest, page: Path) -> Iterator[Any]:
    """A browser of this width that has loaded the page from its file."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here")
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    width, height = request.param
    screen = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1.0}}
    options.add_experimental_option("mobileEmulation", screen)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(page.as_uri())
        driver.asked = width
        yield driver
    finally:
        driver.quit()


def test_it_loads_without_a_word_of_complaint_and_asks_nothing_of_a_network(shown: Any) -> None:
    assert shown.get_log("browser") == []
    asked = [one["message"] for one in shown.get_log("performance") if '"Network.requestWillBeSent"' in one["message"]]
    assert all('"url":"file://' in one or '"url":"data:' in one or '"url":"blob:' in one for one in asked)


def test_nothing_is_wider_than_the_screen_and_every_figure_is_drawn(shown: Any) -> None:
    screen = shown.asked  # window.innerWidth of a phone grows with what does not fit
    assert shown.execute_script("return document.documentElement.scrollWidth") <= screen
    figures = shown.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')].map(d => [d.querySelectorAll('.main-svg').length, "
        "d.getBoundingClientRect().width, d.data.length])"
    )
    assert len(figures) >= 15
    assert all(drawn and 200 < width <= screen and lines for drawn, width, lines in figures)


def test_what_it_says_can_be_read(shown: Any) -> None:
    titles = [one.text for one in shown.find_elements("tag name", "h2")]
    assert titles[0] == "What it expected, token by token" and titles[-1] == "Shapes"
    for wanted in ("How gradients flow back through time", "Gradients beside each other", "The training"):
        assert wanted in titles
    assert "24 tokens" in shown.find_element("tag name", "h1").text
    tokens = [one.text for one in shown.find_elements("css selector", ".strip .token b")]
    assert "".join(tokens).replace("\u2423", " ") == "the <b>cat</b> sat & the"
    drawing = shown.find_element("css selector", "svg[role=img]").text
    assert {"x_1 [1, 12]", "x_24 [1, 12]", "h [1, 12]", "weight_hh [48, 12]"} <= set(drawing.splitlines())
    labels = shown.execute_script("return [...document.querySelectorAll('.xtitle, .ytitle')].map(d => d.textContent)")
    assert {"distance t - k in steps", "norm of dL_t/ds_k", "update / weights", "descent"} <= set(labels)


def test_colours_of_lines_that_share_a_figure_differ_or_their_dashes_do(shown: Any) -> None:
    """What is told apart by colour alone is from a palette that colour-blind eyes tell apart (Okabe & Ito 2008)."""
    lines = shown.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')].map(d => d.data.filter(t => t.type == 'scatter')"
        ".map(t => JSON.stringify([(t.line || {}).color, (t.line || {}).dash, (t.marker || {}).color, (t.marker || {}).symbol])))"
    )
    named = [[one for one in figure if one != "[null,null,null,null]"] for figure in lines]
    assert any(len(figure) > 2 for figure in named)
    assert all(len(figure) == len(set(figure)) for figure in named)
