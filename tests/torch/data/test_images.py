"""Images as a graph takes them."""

from __future__ import annotations

import pytest
import torch

from onnxpart.errors import DataError, UsageError
from onnxpart.torch.data.images import Normalize, centre, crop_of, laid_out, mnist5k
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


@pytest.mark.parametrize("dims", [(3, 4, 5), (4, 5, 3)])
def test_images_are_normalised_by_channel_or_by_one_number(dims: tuple[int, ...]) -> None:
    first = dims[0] == 3
    images = laid_out("images", PIXELS, Port("x", torch.float32, ("N", *dims)))
    (found,), _ = Normalize((0.5, 0.0, 0.25), (0.25, 1.0, 2.0))(((images,), torch.zeros(2)))
    channels = (found if first else found.movedim(3, 1)).unbind(1)
    expected = (PIXELS / 255).unbind(1)
    for channel, pixels, mean, std in zip(channels, expected, (0.5, 0, 0.25), (0.25, 1, 2), strict=True):
        torch.testing.assert_close(channel, (pixels - mean) / std)
    (flat,), _ = Normalize((0.5,), (0.25,))(((images.flatten(1),), torch.zeros(2)))
    torch.testing.assert_close(flat, (images.flatten(1) - 0.5) / 0.25)


def test_images_that_are_not_normalised() -> None:
    images = laid_out("images", PIXELS, Port("x", torch.float32, ("N", 3, 4, 5)))
    for found, numbers in ((images, (0.5, 0.5)), (images.flatten(1), (0.5,) * 3)):
        with pytest.raises(
            DataError, match=rf"{len(numbers)} numbers are given to normalise images .*; give one, or one for each"
        ):
            Normalize(numbers, numbers)(((found,), torch.zeros(2)))
    with pytest.raises(DataError, match="the graph takes images as whole numbers, which aren't normalised; leave out"):
        Normalize((0.5,), (0.5,))(((PIXELS,), torch.zeros(2)))
    with pytest.raises(UsageError, match="--std has 0; standard deviations must be positive"):
        Normalize((0.5,), (0.0,))


def test_images_that_do_not_fit() -> None:
    with pytest.raises(
        DataError, match=r"the images of digits are \[3, 4, 5\], but the graph's 'x' is float32 \[N, 3, 4, 6\]"
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
