"""The page in Chromium: it loads, and does what hand and keyboard ask for."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser, Page

from scripts.page.browser import chromium

PAGES = Path(__file__).parents[2] / ".venv-page" / "pages"
NAMES = ("lenet", "resnet50", "gpt", "unet", "held", "nested", "irregular")
TIMES = "\u00d7"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not all((PAGES / f"{name}.html").is_file() for name in NAMES):
        pytest.exit(f"{PAGES} lacks pages; scripts/test-page writes them and then runs these tests", returncode=1)
    with chromium() as found:
        yield found


class Opened:
    """A page of the examples; what it says on the console, and what it asks the network for, is kept."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto((PAGES / f"{name}.html").as_uri())
        page.wait_for_selector("#world path", state="attached")

    def card(self, title: str) -> str:
        """The number of the card that is called so."""
        found = "cards => cards.findIndex(card => card.title === title)".replace("title)", f"{title!r})")
        return str(self.page.evaluate(f"({found})(JSON.parse(document.getElementById('partition').textContent).cards)"))

    def at(self, title: str) -> str:
        """What selects the card."""
        return f'[data-card="{self.card(title)}"]'

    def transform(self) -> str:
        return self.page.locator("#world").get_attribute("transform") or ""

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture
def opened(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1400, "height": 860})
    found = Opened(context.new_page(), request.param)
    yield found
    assert found.said == []
    assert len(found.asked) == 1  # the file itself
    context.close()


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", names, indirect=True)


@on(*NAMES)
def test_it_shows_the_network(opened: Opened) -> None:
    assert opened.page.locator("#panel h2").first.inner_text() == "Sizes"
    cards, far = opened.page.locator(".card").count(), opened.page.locator(".far path").count()
    assert cards > 0 or far > 0


@on("lenet")
def test_a_bar_is_divided_to_scale(opened: Opened) -> None:
    bars = {}
    for title in ("conv1", "conv2", "fc1"):
        widths = opened.page.locator(f"{opened.at(title)} g rect").evaluate_all(
            "rects => rects.map(rect => +rect.getAttribute('width'))"
        )
        assert len(widths) == 2
        assert widths[0] == widths[1]
        bars[title] = sum(widths)
    assert bars["conv1"] / bars["fc1"] == pytest.approx(20 / 500)
    assert bars["conv2"] / bars["fc1"] == pytest.approx(50 / 500)


@on("lenet")
def test_parts_have_patterns_of_their_own(opened: Opened) -> None:
    fills = opened.page.locator(f"{opened.at('fc1')} g rect").evaluate_all("rs => rs.map(r => r.getAttribute('fill'))")
    assert fills == ["url(#part0)", "url(#part1)"]
    shapes = opened.page.locator("pattern").evaluate_all("ps => ps.map(p => p.innerHTML)")
    assert len(set(shapes)) == len(shapes)


@on("held")
def test_hover_says_what_stands_there_and_why(opened: Opened) -> None:
    opened.page.hover(f"{opened.at('odd')} .frame", force=True)
    told = opened.page.locator("#tooltip").inner_text()
    assert "Not divided: the operator has no rule" in told
    assert "Det" in told
    opened.page.mouse.move(5, 845)
    assert opened.page.locator("#tooltip").is_hidden()


@on("held")
def test_a_click_draws_the_chain_to_what_holds_it(opened: Opened) -> None:
    opened.page.click(f"{opened.at('stem')} .title")
    assert opened.page.locator("#panel h1").inner_text() == "stem"
    assert "What holds it" in opened.page.locator("#panel").inner_text()
    stops = opened.page.locator(".chain circle").count()
    assert stops >= 2
    assert opened.page.locator(".chain path").count() == 1
    opened.page.locator("#panel ol button, #panel p button").first.click()
    assert opened.page.locator("#panel h1").inner_text() != "stem"


@on("resnet50")
def test_what_moves_together_is_marked(opened: Opened) -> None:
    opened.page.click(f"{opened.at('n14')} .title")
    assert opened.page.locator(".card.selected").count() == 1
    assert opened.page.locator(".card.together").count() >= 4
    opened.page.keyboard.press("Escape")
    assert opened.page.locator(".card.selected, .card.together").count() == 0


@on("resnet50")
def test_blocks_unfold_and_fold(opened: Opened) -> None:
    folded = opened.page.locator(".card").count()
    block = opened.page.locator(".block").first
    assert block.locator(".count").text_content() == f"{TIMES} 2"
    block.locator(".count").click()
    opened.page.keyboard.press("0")
    opened.settle()
    assert opened.page.locator(".card").count() == folded + 4
    opened.page.locator(".block .count", has_text="2 of 2").first.click()
    opened.page.keyboard.press("0")
    opened.settle()
    assert opened.page.locator(".card").count() == folded


@on("resnet50", "gpt")
def test_all_blocks_unfold(opened: Opened) -> None:
    opened.page.keyboard.press("u")
    opened.settle()
    assert opened.page.locator(".block .count", has_text=TIMES).count() == 0
    opened.page.click("#unfold")
    opened.settle()
    assert opened.page.locator(".block .count", has_text=TIMES).count() > 0


@on("gpt")
def test_search_finds_initializers_by_any_part_of_the_name(opened: Opened) -> None:
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("3.up.bias")
    assert "blocks.3.up.bias" in opened.page.locator("#found button").first.inner_text()
    opened.page.keyboard.press("Enter")
    assert "blocks.3.up.bias" in opened.page.locator("#panel").inner_text()
    assert opened.page.locator(".card.selected").count() == 1


@on("nested")
def test_a_card_in_a_folded_repeat_is_shown_by_the_first(opened: Opened) -> None:
    opened.page.fill("#search", "deep2.2.weight")
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("#panel h1").inner_text() == "deep2.2"
    assert opened.page.locator(".card.selected .title").text_content() == "deep0.0"


@on("gpt")
def test_search_says_when_nothing_is_found(opened: Opened) -> None:
    opened.page.fill("#search", "no such name")
    assert opened.page.locator("#found").inner_text() == "nothing has this in its name"


@on("resnet50")
def test_keys_move_and_zoom(opened: Opened) -> None:
    seen = [opened.transform()]
    for key in ("ArrowDown", "ArrowLeft", "+", "-", "+", "0"):
        opened.page.keyboard.press(key)
        seen.append(opened.transform())
    assert all(one != other for one, other in pairwise(seen))
    assert seen[-1] == seen[0]


@on("lenet")
def test_keys_work_after_a_button_was_pressed(opened: Opened) -> None:
    opened.page.click("#fit")
    before = opened.transform()
    opened.page.keyboard.press("ArrowDown")
    assert opened.transform() != before


@on("irregular")
def test_cards_from_afar_are_told_and_chosen(opened: Opened) -> None:
    assert opened.page.locator(".card").count() == 0
    bar = opened.page.locator(".far path:not(.frame)").first.evaluate(
        """path => {
            const corner = path.getPointAtLength(0).matrixTransform(path.getScreenCTM());
            return [corner.x + 2, corner.y + 2];
        }"""
    )
    opened.page.mouse.move(*bar)
    told = opened.page.locator("#tooltip .name").inner_text()
    opened.page.mouse.click(*bar)
    assert opened.page.locator("#panel h1").inner_text() == told


@on("lenet")
def test_keys_go_from_card_to_card(opened: Opened) -> None:
    titles = []
    for _ in range(3):
        opened.page.keyboard.press("n")
        titles.append(opened.page.locator("#panel h1").inner_text())
    opened.page.keyboard.press("p")
    assert titles == ["x", "conv1", "conv2"]
    assert opened.page.locator("#panel h1").inner_text() == "conv1"


@on("resnet50")
def test_mouse_moves_and_zooms(opened: Opened) -> None:
    before = opened.transform()
    opened.page.mouse.move(30, 830)
    opened.page.mouse.down()
    opened.page.mouse.move(130, 790)
    opened.page.mouse.up()
    moved = opened.transform()
    assert moved != before
    opened.page.mouse.wheel(0, -200)
    opened.settle()
    assert opened.transform() != moved


@on("held")
def test_markup_in_names_is_text(opened: Opened) -> None:
    opened.page.fill("#search", "document.title")
    opened.page.keyboard.press("Enter")
    assert "<img src=x" in opened.page.locator("#panel h1").inner_text()
    assert opened.page.locator("img, body script[src]").count() == 0
    assert "taken over" not in opened.page.title()


@on("gpt")
def test_the_picture_is_svg_that_stands_alone(opened: Opened) -> None:
    with opened.page.expect_download() as download:
        opened.page.click("#picture")
    assert download.value.suggested_filename == "gpt.svg"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    found = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert found.get("viewBox")
    assert "norm" in [element.text for element in found.iter(f"{space}text")]
    assert len(list(found.iter(f"{space}pattern"))) == 2
    assert not re.search(r"var\(|light-dark|class=", text)


@on("irregular")
def test_no_more_is_drawn_than_is_in_view(opened: Opened) -> None:
    elements = "() => document.querySelectorAll('#world *').length"
    far = opened.page.evaluate(elements)
    opened.page.fill("#search", "fc600")
    opened.page.keyboard.press("Enter")
    opened.settle()
    near = opened.page.evaluate(elements)
    assert opened.page.locator(".card.selected .title").text_content() == "fc600"
    assert far < 200
    assert near < 2000


def test_dark_and_light(browser: Browser) -> None:
    shades = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((PAGES / "lenet.html").as_uri())
        shades.append(page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor"))
        page.close()
    assert shades == ["rgb(255, 255, 255)", "rgb(22, 24, 29)"]


def test_it_prints_all_of_it(browser: Browser) -> None:
    page = browser.new_page()
    page.goto((PAGES / "irregular.html").as_uri())
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".card").count() > 3000
    page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")
    assert page.locator(".card").count() < 3000
    page.close()


def test_the_time_for_5000_nodes_is_told(browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    page = browser.new_page()
    start = time.perf_counter()
    page.goto((PAGES / "irregular.html").as_uri())
    page.wait_for_selector(".far path")
    with capsys.disabled():
        print(f" 5,000 nodes are drawn {time.perf_counter() - start:.2f} s after the page was asked for ", end="")
    assert page.locator(".far path.frame").count() == 1
    page.close()
