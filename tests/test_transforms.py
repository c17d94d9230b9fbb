"""Preprocessing against hand computations, and fitted on training images alone."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from common.data import Preprocessing, transforms
from common.data.transforms import global_contrast_normalization, height_and_width, resize, to_channels
from common.errors import InputError

NORMALIZATIONS = ["unit", "symmetric", "gcn"]


def random_images(n=12, channels=3, size=(8, 8), seed=0, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n, channels, *size), generator=generator, dtype=torch.uint8)


def test_gcn_by_hand():
    # two channels of one image: mean 3, deviations -3 -1 -1 5, mean absolute deviation 2.5
    image = torch.tensor([[[[0.0, 2.0]], [[2.0, 8.0]]]])
    expected = torch.tensor([[[[-1.2, -0.4]], [[-0.4, 2.0]]]])
    torch.testing.assert_close(global_contrast_normalization(image), expected)


def test_gcn_of_an_image_depends_on_that_image_alone():
    images = random_images().float() / 255
    together = global_contrast_normalization(images)
    for image, expected in zip(images, together, strict=True):
        torch.testing.assert_close(global_contrast_normalization(image[None])[0], expected)
    torch.testing.assert_close(together.mean((1, 2, 3)), torch.zeros(12), atol=1e-6, rtol=0)
    torch.testing.assert_close(together.abs().mean((1, 2, 3)), torch.ones(12))


def test_gcn_ignores_brightness_and_contrast():
    images = random_images().float() / 255
    torch.testing.assert_close(
        global_contrast_normalization(0.3 * images + 0.5), global_contrast_normalization(images), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 33, 47)])
def test_gcn_of_a_constant_image_is_zero(shape):
    # every grey value: the mean of many equal floats may be off by their last bit
    constant = (torch.arange(256).float() / 255)[:, None, None, None].expand(256, *shape)
    assert not global_contrast_normalization(constant).any()


def test_a_constant_image_under_gcn_is_finite():
    fitted = Preprocessing("gcn").fit(random_images())
    assert fitted(torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)).isfinite().all()


@pytest.mark.parametrize(("normalization", "low", "high"), [("unit", 0.0, 1.0), ("symmetric", -1.0, 1.0)])
def test_range(normalization, low, high):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    out = Preprocessing(normalization).fit(images)(images)
    torch.testing.assert_close(out.flatten(), torch.tensor([low, low + 0.2 * (high - low), high]))
    assert out.dtype == torch.float32


def test_gcn_is_fitted_on_the_training_images_alone():
    train, test = random_images(low=100, high=150), random_images(seed=1)
    test[:, :, 0, 0] = 255  # an outlier pixel that no training image has
    fitted = Preprocessing("gcn").fit(train)
    out = fitted(train)
    torch.testing.assert_close(torch.stack([out.min(), out.max()]), torch.tensor([0.0, 1.0]))
    tested = fitted(test)
    assert tested.max() > 1 or tested.min() < 0
    contrast = global_contrast_normalization(train.float() / 255)
    assert fitted.low == pytest.approx(contrast.min().item())
    assert fitted.high == pytest.approx(contrast.max().item())
    torch.testing.assert_close(
        tested,
        (global_contrast_normalization(test.float() / 255) - contrast.min()) / (contrast.max() - contrast.min()),
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_class_mean_is_the_mean_training_image(normalization):
    train, test = random_images(), random_images(n=3, seed=1)
    plain = Preprocessing(normalization).fit(train)
    centred = Preprocessing(normalization, class_mean=True).fit(train)
    torch.testing.assert_close(centred(train).mean(0), torch.zeros(3, 8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(centred(test), plain(test) - plain(train).mean(0))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("size", [12, 7, 5, 1])
@pytest.mark.parametrize(
    "stored", [random_images(), random_images() / 100, random_images().flatten(1)], ids=["uint8", "float", "table"]
)
def test_fit_in_parts_is_fit_over_all(monkeypatch, normalization, size, stored):
    unfitted = Preprocessing(normalization, class_mean=True, size=(6, 6))
    whole = unfitted.fit(stored)
    monkeypatch.setattr(transforms, "IMAGES_PER_PART", size)
    parts = unfitted.fit(stored)
    torch.testing.assert_close(parts.mean, whole.mean)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))
    torch.testing.assert_close((parts.minimum, parts.span), (whole.minimum, whole.span))


def test_fit_leaves_the_original_unfitted():
    unfitted = Preprocessing("gcn", class_mean=True)
    fitted = unfitted.fit(random_images())
    assert unfitted == Preprocessing("gcn", class_mean=True)
    assert fitted.mean is not None
    assert (fitted.low, fitted.high) != (unfitted.low, unfitted.high)


def test_fitting_again_forgets_the_first_images():
    first, second = random_images(), random_images(seed=1, high=60)
    again = Preprocessing("gcn", class_mean=True).fit(first).fit(second)
    fresh = Preprocessing("gcn", class_mean=True).fit(second)
    assert again.low == fresh.low
    torch.testing.assert_close(again(first), fresh(first))


SETTINGS = list(itertools.product(NORMALIZATIONS, [False, True], [None, (5, 9)], [None, 1, 3]))


@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize(("normalization", "class_mean", "size", "channels"), SETTINGS)
def test_any_setting(normalization, class_mean, size, channels, stored):
    images = random_images(channels=stored)
    before = images.clone()
    fitted = Preprocessing(normalization, class_mean, size, channels).fit(images)
    out = fitted(images)
    assert out.shape == (12, channels or stored, *(size or (8, 8)))
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert torch.equal(images, before)
    one_by_one = torch.cat([fitted(image[None]) for image in images])
    torch.testing.assert_close(one_by_one, out)
    assert torch.equal(fitted(images), out)


@pytest.mark.parametrize("size", [None, (5, 9)])
def test_no_images(size):
    fitted = Preprocessing("gcn", class_mean=True, size=size, channels=1).fit(random_images())
    assert fitted(random_images(n=0)).shape == (0, 1, *(size or (8, 8)))


def test_resize_is_antialiased():
    # without antialiasing the middle pixel of every three would be taken, black or white
    board = (torch.arange(63)[:, None] + torch.arange(63)).remainder(2).mul(255).to(torch.uint8)
    small = resize(board.expand(1, 1, 63, 63), (21, 21))
    assert small.dtype == torch.uint8
    assert (small.int() - 127).abs().max() <= 20


def test_resize_keeps_its_own_size():
    images = random_images()
    assert resize(images, (8, 8)) is images


def test_grey_is_the_luma_that_pillow_computes():
    images = random_images(n=4)
    expected = torch.stack([pil_to_tensor(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images])
    grey = to_channels(images, 1)
    assert grey.dtype == torch.uint8
    assert (grey.int() - expected.int()).abs().max() <= 1


def test_grey_becomes_three_equal_channels():
    images = random_images(channels=1)
    torch.testing.assert_close(to_channels(images, 3), torch.cat([images] * 3, 1))


# Float images and tables


@pytest.mark.parametrize(("own", "channels"), [(4, 3), (4, 1), (2, 1), (2, 3), (1, 4)])
def test_other_channels_are_not_converted(own, channels):
    with pytest.raises(InputError, match=f"images of {own} channels cannot be converted to {channels}: give images of 1 or 3"):
        to_channels(torch.zeros(2, own, 8, 8), channels)


def test_a_range_that_overflows_is_refused():
    table = torch.tensor([[0.0, -1.7e308], [1.0, 1.7e308]], dtype=torch.float64)
    with pytest.raises(InputError, match="the range of the training values of column 1 is too wide for a float: divide them"):
        Preprocessing().fit(table)
    with pytest.raises(InputError, match="the range of the training values is too wide"):
        Preprocessing().fit(table.reshape(2, 1, 1, 2))
    assert Preprocessing().fit(table / 2)(table / 2).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("size", [0, [8], [8, 0], [8, 8, 8]])
def test_sizes_that_make_no_sense(size):
    with pytest.raises(InputError, match=r"image_size must be one positive number or \[height, width\], not"):
        height_and_width(size)


def test_float_images_are_scaled_by_the_range_of_the_training_images():
    train = torch.tensor([[-2.0, 0.0], [1.0, 3.0]]).reshape(2, 1, 1, 2)
    fitted = Preprocessing().fit(train)
    torch.testing.assert_close(fitted(train).flatten(), torch.tensor([0.0, 0.4, 0.6, 1.0]))
    torch.testing.assert_close(fitted(torch.tensor([[[[-7.0, 8.0]]]])).flatten(), torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(Preprocessing("symmetric").fit(train)(train).flatten(), torch.tensor([-1.0, -0.2, 0.2, 1.0]))


def test_new_samples_outside_of_the_training_range_are_not_clipped():
    """How far outside they lie is what tells an anomaly."""
    fitted = Preprocessing("symmetric").fit(torch.tensor([[-2.0], [3.0]], dtype=torch.float64))
    torch.testing.assert_close(fitted(torch.tensor([[-7.0], [8.0]], dtype=torch.float64)), torch.tensor([[-3.0], [3.0]]))


def test_a_narrow_range_is_spread_as_a_wide_one_is():
    train = torch.tensor([[0.5, 100.0], [0.505, 150.0], [0.51, 200.0]], dtype=torch.float64)
    torch.testing.assert_close(Preprocessing().fit(train)(train), torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]))
    images = train[:, :1].float().reshape(3, 1, 1, 1)
    torch.testing.assert_close(Preprocessing().fit(images)(images).flatten(), torch.tensor([0.0, 0.5, 1.0]), atol=1e-4, rtol=0)


def test_only_the_given_samples_are_fitted_on():
    images = torch.cat([torch.rand(5, 1, 4, 4), 100 + torch.rand(5, 1, 4, 4)])
    fitted = Preprocessing("gcn", class_mean=True).fit(images, torch.arange(5))
    alone = Preprocessing("gcn", class_mean=True).fit(images[:5])
    assert torch.equal(fitted(images), alone(images))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_each_column_of_a_table_is_scaled_by_its_own_range(dtype):
    train = torch.tensor([[0, 10, 7], [4, 20, 7]], dtype=dtype)
    fitted = Preprocessing().fit(train)
    torch.testing.assert_close(fitted(train), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    torch.testing.assert_close(fitted(torch.tensor([[8, 15, 9]], dtype=dtype)), torch.tensor([[2.0, 0.5, 2.0]]))


def test_a_table_keeps_differences_that_single_precision_would_lose():
    train = torch.tensor([[1e9], [1e9 + 1.0], [1e9 + 4.0]], dtype=torch.float64)
    torch.testing.assert_close(Preprocessing().fit(train)(train), torch.tensor([[0.0], [0.25], [1.0]]))


@pytest.mark.parametrize(("normalization", "class_mean", "size", "channels"), SETTINGS)
def test_any_setting_for_rows(normalization, class_mean, size, channels):
    rows = torch.from_numpy(np.random.default_rng(0).normal(5, 3, (12, 7)))
    before = rows.clone()
    fitted = Preprocessing(normalization, class_mean, size, channels).fit(rows)
    out = fitted(rows)
    assert out.shape == (12, 7)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert torch.equal(rows, before)
    torch.testing.assert_close(torch.cat([fitted(row[None]) for row in rows]), out)


@pytest.mark.parametrize(("normalization", "class_mean", "size", "channels"), SETTINGS)
def test_float_images_are_treated_as_uint8_images_of_full_range(normalization, class_mean, size, channels):
    images = random_images()
    images[0, 0, 0, :2] = torch.tensor([0, 255])
    options = (normalization, class_mean, size, channels)
    expected = Preprocessing(*options).fit(images)(images)
    floats = images.double() / 255 * 40 - 7
    torch.testing.assert_close(Preprocessing(*options).fit(floats)(floats), expected, atol=0.02, rtol=0.02)


def test_far_values_stay_finite():
    fitted = Preprocessing("gcn").fit(torch.rand(5, 3, dtype=torch.float64))
    assert fitted(torch.full((1, 3), 1e300, dtype=torch.float64)).isfinite().all()


def test_uint8_images_forget_a_range():
    floats = Preprocessing().fit(torch.rand(5, 1, 4, 4))
    assert floats.minimum is not None
    assert floats.fit(random_images()).minimum is None
