"""How fast Chromium shows the page of a network of 5,000 nodes, and how long frames take while it moves."""

import statistics
from pathlib import Path

from playwright.sync_api import Page

from scripts.machine import machine
from scripts.page.browser import chromium

PAGE = Path(__file__).parents[1] / ".venv-page" / "pages" / "irregular.html"
RUNS = 5
FRAMES = 120
MOVE = """
(frames) => new Promise((done) => {
  const svg = document.getElementById("graph");
  const { width, height } = svg.getBoundingClientRect();
  const times = [];
  let last = null;
  const frame = (now) => {
    if (last !== null) times.push(now - last);
    last = now;
    if (times.length === frames) return done(times);
    const deltaY = times.length % 60 < 30 ? -60 : 60;
    svg.dispatchEvent(new WheelEvent("wheel", { deltaY, clientX: width / 2, clientY: height / 2, cancelable: true }));
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})
"""
"""Zooms in and out and moves down, once for each frame; gives the milliseconds between frames."""


def opening(page: Page) -> float:
    """Milliseconds from the navigation until all is drawn: the script runs to its end before this event."""
    page.goto(PAGE.as_uri())
    return float(page.evaluate("() => performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"))


def moving(page: Page, where: str) -> str:
    """How long frames take, as a line."""
    times = page.evaluate(MOVE, FRAMES)
    slow = statistics.quantiles(times, n=20)[-1]
    drawn = page.evaluate("() => document.querySelectorAll('#world *').length")
    return f"{where}: a frame takes {statistics.median(times):.1f} ms, 95% at most {slow:.1f} ms; {drawn} elements"


def main() -> None:
    """Print the times, and what they were taken on."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 860})
        times = [opening(page) for _ in range(RUNS)]
        print(f"drawn after {statistics.median(times):.0f} ms (median of {RUNS}, {min(times):.0f} to {max(times):.0f})")
        print(moving(page, "all of it in view"))
        page.fill("#search", "fc600")
        page.keyboard.press("Enter")
        print(moving(page, "some cards in view"))
        where = {**machine("playwright"), "chromium": browser.version}
        print(", ".join(f"{key} {value}" for key, value in where.items()))


if __name__ == "__main__":
    main()
