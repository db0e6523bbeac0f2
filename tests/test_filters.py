"""The classical filters against scikit-image, on a photograph."""

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import fastconv
from fastconv.nn import filters

skimage_filters = pytest.importorskip("skimage.filters")

MODES = {"replicate": "nearest", "reflect": "mirror", "circular": "wrap", "zeros": "constant"}  # torch's, SciPy's


@pytest.fixture(scope="module")
def picture():
    """A flower, as scikit-learn brings it: [3, 107, 160], values 0 to 1, float64."""
    image = pytest.importorskip("sklearn.datasets").load_sample_image("flower.jpg")[::4, ::4].astype(float) / 255
    assert image.std() > 0.1
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def each(function, picture, *args, **kwargs):
    """scikit-image's `function` on every channel."""
    return torch.from_numpy(np.stack([function(channel.numpy(), *args, **kwargs) for channel in picture]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sigma", [0.6, 2.0, (3.0, 0.8), (0.0, 1.5)])
def test_gaussian(picture, sigma, mode):
    expected = each(skimage_filters.gaussian, picture, sigma=sigma, mode=MODES[mode])
    assert_close(filters.GaussianBlur(sigma, padding_mode=mode)(picture), expected)
    assert (expected - picture).abs().max() > 0.05


def test_gaussian_truncated(picture):
    blurred = filters.GaussianBlur(1.7, truncate=2)(picture)
    assert_close(blurred, each(skimage_filters.gaussian, picture, sigma=1.7, truncate=2))


@pytest.mark.parametrize("mode", MODES)
def test_sobel(picture, mode):
    for direction, axis in (("magnitude", None), ("x", 1), ("y", 0)):
        expected = each(skimage_filters.sobel, picture, axis=axis, mode=MODES[mode])
        assert_close(filters.Sobel(direction, mode)(picture), expected)
        assert expected.abs().max() > 0.1


def test_sobel_of_a_ramp():
    ramp = torch.arange(8.0).expand(1, 8, 8)
    assert filters.Sobel("x")(ramp)[0, 1:-1, 1:-1].eq(2).all()
    assert filters.Sobel("y")(ramp).eq(0).all()


def test_laplacian_and_sharpen(picture):
    expected = -each(skimage_filters.laplace, picture)
    assert_close(filters.Laplacian()(picture), expected)
    assert_close(filters.Sharpen(0.7)(picture), picture - 0.7 * expected)
    assert_close(filters.Sharpen(0)(picture), picture)
    kernel = [[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]]
    assert_close(filters.Laplacian(diagonal=True)(picture), -filters.Filter(kernel)(picture))
    assert filters.Sharpen().kernel0.tolist() == [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]


def test_a_filter_of_ones_own(picture):
    kernel = torch.randn(3, 5)
    expected = torch.nn.functional.conv2d(picture[:, None], kernel[None, None].double(), padding=(1, 2))[:, 0]
    assert_close(filters.Filter(kernel, padding_mode="zeros")(picture), expected)


def all_filters():
    return [filters.GaussianBlur(1.0), filters.Sobel(), filters.Sobel("x"), filters.Laplacian(), filters.Sharpen()]


@pytest.mark.parametrize("index", range(5))
def test_filters_are_layers(picture, index):
    layer = all_filters()[index]
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
    alone = layer(picture)
    batch = torch.stack([picture, picture.flip(1)])
    assert_close(layer(batch)[0], alone)
    assert_close(layer(picture[1:2])[0], alone[1])
    assert_close(copy.deepcopy(layer)(picture), alone)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert layer(picture.to(dtype)).dtype == dtype
        assert_close(layer(picture.to(dtype)).double(), alone, rtol=0, atol=4 * torch.finfo(dtype).eps * 8)
    assert_close(layer.to(torch.float32)(picture.float()), alone.float(), rtol=1e-4, atol=1e-5)
    last = layer(batch.contiguous(memory_format=torch.channels_last))
    assert_close(last[0], alone, rtol=1e-5, atol=1e-5)
    assert "padding_mode" in repr(layer)
    assert fastconv.revert(layer) is layer


@pytest.mark.parametrize("index", range(5))
def test_gradients_pass(index):
    layer = all_filters()[index]
    torch.autograd.gradcheck(layer, torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True))


def test_sobel_has_a_gradient_on_flat_pictures():
    x = torch.ones(1, 4, 4, requires_grad=True)
    filters.Sobel()(x).sum().backward()
    assert x.grad.eq(0).all()


def test_refused():
    with pytest.raises(ValueError, match="odd"):
        filters.Filter(torch.ones(2, 3))
    with pytest.raises(ValueError, match="at least one"):
        filters.Filter()
    with pytest.raises(ValueError, match="at least 0"):
        filters.GaussianBlur(-1.0)
    with pytest.raises(ValueError, match="direction"):
        filters.Sobel("z")
    with pytest.raises(ValueError, match="padding_mode"):
        filters.Laplacian(padding_mode="same")
