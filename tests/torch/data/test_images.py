"""Images as a graph takes them."""

from __future__ import annotations

import pytest
import torch

from onnxpart.errors import DataError
from onnxpart.torch.data.images import centre, crop_of, laid_out, mnist5k
from onnxpart.torch.data.signature import Port

PIXELS = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("dims", "expected"),
    [((3, 4, 5), PIXELS), ((4, 5, 3), PIXELS.permute(0, 2, 3, 1)), ((60,), PIXELS.flatten(1))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_images_are_laid_out_as_the_graph_takes_them(
    dims: tuple[int, ...], expected: torch.Tensor, dtype: torch.dtype
) -> None:
    found = laid_out("images", PIXELS, Port("x", dtype, ("N", *dims)))
    assert found.is_contiguous()
    assert torch.equal(found, expected / 255 if dtype == torch.float32 else expected)


def test_images_that_do_not_fit() -> None:
    with pytest.raises(
        DataError, match=r"the images of digits are \[3, 4, 5\], the graph's 'x' is float32 \[N, 3, 4, 6\]"
    ):
        laid_out("digits", PIXELS, Port("x", torch.float32, ("N", 3, 4, 6)))


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ((3, 2, 3), (2, 3)),
        ((2, 3, 3), (2, 3)),
        ((3, 4, 5), None),
        ((3, 6, 5), None),
        ((60,), None),
        ((3, "H", 3), None),
    ],
)
def test_crops_are_what_a_graph_takes_of_larger_images(
    dims: tuple[int | str, ...], expected: tuple[int, int] | None
) -> None:
    assert crop_of((3, 4, 5), Port("x", torch.float32, ("N", *dims))) == expected


def test_the_middle() -> None:
    assert torch.equal(centre(PIXELS, (2, 3)), PIXELS[:, :, 1:3, 1:4])


def test_no_digit_is_both_learnt_and_tested() -> None:
    (learn, labels), (test, test_labels) = mnist5k()
    assert (learn.shape, test.shape) == ((4000, 1, 28, 28), (1000, 1, 28, 28))
    assert {int(count) for count in torch.from_numpy(labels).bincount()} == {400}
    assert {int(count) for count in torch.from_numpy(test_labels).bincount()} == {100}
