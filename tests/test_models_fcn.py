"""The segmentation networks: where each score looks, the offsets of the paper's crop layers, the way from VGG-16."""

import itertools

import pytest
import torch
from test_models import meta
from torch.testing import assert_close

from fastconv import models
from fastconv.models.fcn import bilinear_kernel

TINY = {"num_classes": 3, "width": 1 / 64}


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s", "fcn_resnet50"])
@pytest.mark.parametrize("size", [(64, 96), (33, 50), (1, 7), (97, 31)])
def test_scores_for_every_pixel(name, size):
    model = meta(name, num_classes=3).eval()
    for y in (
        model(torch.empty(1, 3, *size, device="meta")).values()
        if name == "fcn_resnet50"
        else [model(torch.empty(1, 3, *size, device="meta"))]
    ):
        assert y.shape == (1, 3, *size)
        assert y.is_contiguous()


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
@pytest.mark.parametrize("size", [(64, 96), (33, 50), (97, 31)])
def test_same_padding_fits_every_size(name, size):
    model = meta(name, num_classes=3, padding="same")
    assert model(torch.empty(1, 3, *size, device="meta")).shape == (1, 3, *size)


@pytest.mark.parametrize(("name", "stages", "pixels"), [("fcn32s", [], 19), ("fcn16s", [5], 27), ("fcn8s", [5, 9], 31)])
def test_offsets_of_the_papers_crop_layers(name, stages, pixels, monkeypatch):
    """As in the published prototxt files."""
    offsets = []
    crop = models.fcn._crop
    monkeypatch.setattr(models.fcn, "_crop", lambda x, offset, like: offsets.append(offset) or crop(x, offset, like))
    meta(name)(torch.empty(1, 3, 224, 224, device="meta"))
    assert offsets == [*stages, pixels]


@pytest.mark.parametrize("padding", ["paper", "same"])
@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_scores_lie_where_they_look(name, padding):
    """A picture mirrored both ways gives mirrored scores, if the kernels are symmetric: nothing is shifted."""
    model = models.create_model(name, padding=padding, **TINY).double().eval()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 1)
        if parameter.dim() == 4:
            parameter.data += parameter.data.flip(-1, -2)
    # Sizes of which, with the padding, no pooling leaves a rest: that would be at one side only.
    x = torch.rand(1, 3, *((58, 90) if padding == "paper" else (64, 96)), dtype=torch.float64)
    y = model(x)
    assert_close(model(x.flip(-1, -2)), y.flip(-1, -2))
    assert y.std() > 0


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upsampling_begins_as_bilinear_interpolation(factor):
    kernel = bilinear_kernel(2 * factor)
    assert_close(kernel[:factor] + kernel[factor:], kernel[:factor] + kernel[factor:].flip(0).flip(0))
    blocks = [kernel[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor] for i in (0, 1) for j in (0, 1)]
    assert_close(sum(blocks), torch.ones(factor, factor))
    layer = models.fcn._upsampling(2, factor)
    x = torch.randn(1, 2, 5, 6)
    inner = slice(factor, -factor)
    expected = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear")
    got = layer(x)[..., factor // 2 : factor // 2 + 5 * factor, factor // 2 : factor // 2 + 6 * factor]
    assert_close(got[..., inner, inner], expected[..., inner, inner])
    assert layer.weight[0, 1].eq(0).all()


def test_initialisation_of_the_paper():
    model = models.fcn8s(**TINY)
    for layer in (model.score, *model.skips.values()):
        assert layer.weight.eq(0).all()
    assert not model.upsampling.weight.requires_grad
    assert all(layer.weight.requires_grad for layer in model.upsamplings.values())
    assert model(torch.randn(1, 3, 40, 40)).eq(0).all()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_goes_on_from_vgg16(batch_norm):
    vgg = meta("vgg16_bn" if batch_norm else "vgg16").state_dict()
    with torch.device("meta"):
        model = models.fcn8s(batch_norm=batch_norm)
    result = model.load_state_dict(vgg, strict=False)
    assert result.unexpected_keys == ["classifier.6.weight", "classifier.6.bias"]
    assert {name.split(".")[0] for name in result.missing_keys} == {"score", "skips", "upsamplings", "upsampling"}


def test_skips_matter():
    model = models.fcn8s(**TINY, padding="same").eval()
    x = torch.randn(1, 3, 32, 32)
    results = []
    for layer in (model.score, *model.skips.values()):
        torch.nn.init.normal_(layer.weight)
        results.append(model(x))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(results))


def test_it_learns_a_mask():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.fcn8s(num_classes=2, in_channels=1, width=1 / 32, padding="same", dropout=0.0)
    masks = torch.zeros(4, 32, 32, dtype=torch.long)
    for i in range(4):
        masks[i, 8 * (i % 2) : 8 * (i % 2) + 16, 4 * i : 4 * i + 16] = 1
    images = masks[:, None] + 0.1 * torch.randn(4, 1, 32, 32)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (model(images).argmax(1) == masks).float().mean()
    assert right > max(0.9, 1 - masks.float().mean().item() + 0.1)


def test_refused():
    with pytest.raises(ValueError, match="padding"):
        models.fcn8s(padding="valid")


def test_fcn_resnet50_gives_both_heads():
    model = models.fcn_resnet50(num_classes=2, aux_loss=True).eval()
    y = model(torch.randn(1, 3, 24, 16))
    assert list(y) == ["out", "aux"]
    assert y["aux"].shape == (1, 2, 24, 16)
    plain = models.fcn_resnet50(num_classes=2).eval()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing.unexpected_keys} == {"aux_classifier"}
    assert_close(plain(torch.ones(1, 3, 24, 16))["out"], model(torch.ones(1, 3, 24, 16))["out"])
