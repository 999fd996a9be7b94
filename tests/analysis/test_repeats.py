"""Folding: every card once, what repeats is alike, and what is connected in another way isn't folded."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from onnxpart.analysis.repeats import Block, Item, fold


def chain(text: str) -> list[list[int]]:
    """What cards read, each the one before."""
    return [[n - 1] if n else [] for n in range(len(text))]


def unfolded(items: Sequence[Item], shift: int = 0) -> list[int]:
    """The cards of items, those of every repeat."""
    result: list[int] = []
    for item in items:
        if isinstance(item, int):
            result.append(item + shift)
        else:
            for repeat in range(item.count):
                result += unfolded(item.items, shift + repeat * item.period)
    return result


def test_nothing_repeats() -> None:
    assert fold("abc", chain("abc")) == (0, 1, 2)
    assert fold("", []) == ()


def test_a_card_repeats() -> None:
    assert fold("abbbc", chain("abbbc")) == (0, Block(1, 1, 3, (1,)), 4)


def test_a_block_repeats_and_one_inside_it() -> None:
    text = "xabbcabbcy"
    assert fold(text, chain(text)) == (0, Block(1, 4, 2, (1, Block(2, 1, 2, (2,)), 4)), 9)


def test_a_block_begins_where_least_is_read_from_outside() -> None:
    reads = [[], [0], [1, 0], [2], [3, 2], [4], [5, 4]]  # a residual block is a layer and the sum behind it
    assert fold("xfsfsfs", reads) == (0, Block(1, 2, 3, (1, 2)))


def test_cards_side_by_side_are_not_folded() -> None:
    assert fold("abb", [[], [0], [0]]) == (0, 1, 2)


def test_what_all_repeats_read_may_come_from_outside() -> None:
    assert fold("mxabab", [[], [], [1], [2, 0], [3], [4, 0]]) == (0, 1, Block(2, 2, 2, (2, 3)))


def test_repeats_that_are_connected_otherwise_are_left_out() -> None:
    assert fold("xbbb", [[], [0], [1], [2, 0]]) == (0, Block(1, 1, 2, (1,)), 3)


@given(
    st.lists(st.integers(0, 2), max_size=24).flatmap(
        lambda codes: st.tuples(
            st.just(codes),
            st.tuples(*(st.lists(st.integers(0, n - 1), max_size=2) if n else st.just([]) for n in range(len(codes)))),
        )
    )
)
def test_each_card_is_there_once_and_repeats_are_alike(drawn: tuple[list[int], tuple[list[int], ...]]) -> None:
    codes, reads = drawn
    items = fold(codes, reads)
    assert unfolded(items) == list(range(len(codes)))
    for block in (item for item in items if isinstance(item, Block)):
        for card in range(block.start + block.period, block.start + block.period * block.count):
            assert codes[card] == codes[card - block.period]
            assert len(reads[card]) == len(reads[card - block.period])


def test_what_is_long_and_alike_takes_no_time() -> None:
    text = "x" + "ab" * 3000
    assert fold(text, chain(text)) == (0, Block(1, 2, 3000, (1, 2)))
