"""Figures as SVG: one file of text in the reader's colours."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from onnxpart.report.svg import legend, plain, plot, svg


def drawn(caption: str = "a caption") -> bytes:
    figure, axes = plot("a title")
    axes.plot([1, 2], [3, 4], color="black", label="a line")
    legend(figure)
    return svg(figure, caption)


def test_it_follows_light_and_dark() -> None:
    text = drawn().decode()
    assert "prefers-color-scheme:dark" in text
    assert "currentColor" in text
    assert "#000000" not in text
    assert "#ffffff" not in text, "nothing is behind it"


def test_text_is_text_and_the_caption_is_escaped() -> None:
    root = ElementTree.fromstring(drawn("<b>&"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a title", "a line"} <= set(texts)
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text == "<b>&"


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert drawn() == drawn()


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    for high, expected in ((30, {"15", "25"}), (90, {"10", "20", "50"}), (5000, {"100", "1000"})):
        figure, axes = plot()
        axes.set(yscale="log", ylim=(9, high))
        plain(axes.yaxis)
        figure.canvas.draw()
        assert expected <= {label.get_text() for label in axes.get_yticklabels()}
