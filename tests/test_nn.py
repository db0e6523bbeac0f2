"""fastconv.nn: torch's layers with the same results, attributes and files, and the layers that torch lacks."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as TF
from torch.testing import assert_close

from fastconv import functional, nn

# Layer, constructor arguments, input shape.
LAYERS = [
    ("Conv1d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 9)),
    (
        "Conv1d",
        {"in_channels": 4, "out_channels": 4, "kernel_size": 2, "padding": "same", "groups": 2, "bias": False},
        (4, 9),
    ),
    (
        "Conv2d",
        {"in_channels": 3, "out_channels": 4, "kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1)},
        (2, 3, 7, 8),
    ),
    (
        "Conv2d",
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": "same", "dilation": 2, "groups": 2},
        (2, 4, 7, 8),
    ),
    (
        "Conv2d",
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": "valid", "groups": 4, "bias": False},
        (4, 7, 8),
    ),
    (
        "ConvTranspose1d",
        {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 2, "output_padding": 1},
        (2, 3, 5),
    ),
    (
        "ConvTranspose2d",
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "groups": 2, "padding": 1},
        (2, 4, 5, 4),
    ),
    ("MaxPool1d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 10)),
    ("MaxPool2d", {"kernel_size": (3, 2), "stride": 2, "padding": 1, "dilation": (1, 2)}, (2, 3, 8, 9)),
    ("AvgPool1d", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, (2, 3, 10)),
    ("AvgPool2d", {"kernel_size": 3, "stride": 2, "ceil_mode": True, "divisor_override": 7}, (2, 3, 8, 9)),
    ("AdaptiveAvgPool1d", {"output_size": 4}, (2, 3, 9)),
    ("AdaptiveAvgPool2d", {"output_size": (3, None)}, (2, 3, 8, 9)),
    ("AdaptiveMaxPool1d", {"output_size": 4}, (2, 3, 9)),
    ("AdaptiveMaxPool2d", {"output_size": (3, 4)}, (3, 8, 9)),
    ("LocalResponseNorm", {"size": 3, "alpha": 0.5, "beta": 0.75, "k": 2.0}, (2, 7, 4, 5)),
]


def pair(name, arguments):
    """fastconv's layer and torch's, with the same parameters."""
    ours = getattr(nn, name)(**arguments)
    theirs = getattr(torch.nn, name)(**arguments)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture
def calls(monkeypatch):
    """The names of the functions of fastconv.functional that were called."""
    seen = []

    def record(name):
        function = getattr(functional, name)

        def call(*args, **kwargs):
            seen.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(functional, name, call)

    for name in functional.__all__:
        record(name)
    return seen


@pytest.mark.parametrize(("name", "arguments", "shape"), LAYERS)
def test_layer_agrees_with_torch(name, arguments, shape, calls):
    ours, theirs = pair(name, arguments)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y, y2 = ours(x), theirs(x2)
    assert len(calls) == 1
    assert_close(y, y2)
    y.square().sum().backward()
    y2.square().sum().backward()
    assert_close(x.grad, x2.grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(mine.grad, other.grad)


def signature(layer):
    return [(p.name, p.kind, p.default) for p in inspect.signature(type(layer)).parameters.values()]


@pytest.mark.parametrize(("name", "arguments", "shape"), LAYERS)
def test_layer_is_torchs_to_everyone_else(name, arguments, shape):
    ours, theirs = pair(name, arguments)
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    assert signature(ours) == signature(theirs)

    x = torch.randn(shape)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert torch.equal(twin(x), ours(x))
        assert all(a is not b for a, b in zip(twin.parameters(), ours.parameters(), strict=True))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_every_operator_has_its_layer():
    def layer(operator):
        words = operator.replace("1d", "_1d").replace("2d", "_2d").split("_")
        return "".join(word if word[0].isdigit() else word.capitalize() for word in words)

    assert {layer(name) for name in functional.__all__} <= set(nn.__all__)
    assert {name for name, _, _ in LAYERS} == {layer(name) for name in functional.__all__}


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", 1, (2, 1), ((2, 1), (0, 3))])
def test_conv2d_padding(mode, padding):
    layer = nn.Conv2d(3, 4, (3, 4), padding=padding, padding_mode=mode, dilation=(1, 2))
    sides = {"same": (3, 3, 1, 1), 1: (1, 1, 1, 1), (2, 1): (1, 1, 2, 2), ((2, 1), (0, 3)): (0, 3, 2, 1)}[padding]
    x = torch.randn(2, 3, 7, 9)
    padded = TF.pad(x, sides, "constant" if mode == "zeros" else mode)
    assert_close(layer(x), TF.conv2d(padded, layer.weight, layer.bias, dilation=(1, 2)))
    assert_close(layer(x[0]), layer(x)[0])
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", 2, ((2, 1),)])
def test_conv1d_padding(mode, padding):
    layer = nn.Conv1d(3, 4, 4, padding=padding, padding_mode=mode)
    sides = {"same": (1, 2), 2: (2, 2), ((2, 1),): (2, 1)}[padding]
    x = torch.randn(2, 3, 9)
    padded = TF.pad(x, sides, "constant" if mode == "zeros" else mode)
    assert_close(layer(x), TF.conv1d(padded, layer.weight, layer.bias))


@pytest.mark.parametrize("padding", [((1, 2),), ((1, 2), 3), ((1, 2, 3), (4, 5)), ((1,), (2, 3))])
def test_conv2d_refuses_half_given_sides(padding):
    with pytest.raises(ValueError, match="padding"):
        nn.Conv2d(3, 4, 3, padding=padding)


@pytest.mark.parametrize("dims", [1, 2])
def test_conv_transpose_output_size(dims):
    name = f"ConvTranspose{dims}d"
    ours, theirs = pair(name, {"in_channels": 3, "out_channels": 2, "kernel_size": 3, "stride": 2, "padding": 1})
    x = torch.randn(2, 3, *[5] * dims)
    for size in (9, 10):
        assert_close(ours(x, output_size=[size] * dims), theirs(x, output_size=[size] * dims))
    with pytest.raises(ValueError, match="output size"):
        ours(x, output_size=[12] * dims)


@pytest.mark.parametrize("name", ["MaxPool1d", "MaxPool2d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d"])
def test_indices(name):
    ours, theirs = getattr(nn, name)(2, return_indices=True), getattr(torch.nn, name)(2, return_indices=True)
    x = torch.randn(2, 3, 6) if name.endswith("1d") else torch.randn(2, 3, 6, 8)
    for mine, other in zip(ours(x), theirs(x), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", ["LazyConv1d", "LazyConv2d", "LazyConvTranspose1d", "LazyConvTranspose2d"])
def test_lazy_layer_becomes_ours(name, calls):
    layer = getattr(nn, name)(4, 3)
    layer(torch.randn(2, 3, *[6] * int(name[-2])))
    assert type(layer) is getattr(nn, name.removeprefix("Lazy"))
    assert layer.in_channels == 3
    assert len(calls) == 1


def test_channels_last_layer_keeps_the_format():
    layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    y = layer(torch.randn(2, 3, 7, 8).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert nn.MaxPool2d(2)(y).is_contiguous(memory_format=torch.channels_last)


# ---- local response normalisation in the papers' conventions


def lrn_by_definition(x, first, last, alpha, beta, k):
    y = torch.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c + first) : c + last + 1]
        y[:, c] = x[:, c] / (k + alpha * window.square().sum(1)) ** beta
    return y


def test_lrn_as_in_the_paper():
    x = torch.randn(2, 9, 3, 4, dtype=torch.float64)
    assert_close(nn.LocalResponseNorm.as_in_paper()(x), lrn_by_definition(x, -2, 2, 1e-4, 0.75, 2.0))
    layer = nn.LocalResponseNorm.as_in_paper(n=3, alpha=0.7, beta=0.5, k=1.5)
    assert_close(layer(x), lrn_by_definition(x, -1, 1, 0.7, 0.5, 1.5))


def test_lrn_as_in_tensorflow():
    x = torch.randn(2, 9, 3, 4, dtype=torch.float64)
    assert_close(nn.LocalResponseNorm.as_in_tensorflow()(x), lrn_by_definition(x, -5, 5, 1.0, 0.5, 1.0))
    layer = nn.LocalResponseNorm.as_in_tensorflow(depth_radius=2, bias=1.5, alpha=0.7, beta=0.75)
    assert_close(layer(x), lrn_by_definition(x, -2, 2, 0.7, 0.75, 1.5))


def test_lrn_conventions_refuse_impossible_windows():
    with pytest.raises(ValueError, match="n: expected an odd"):
        nn.LocalResponseNorm.as_in_paper(n=4)
    with pytest.raises(ValueError, match="depth_radius"):
        nn.LocalResponseNorm.as_in_tensorflow(depth_radius=-1)


# ---- the connection table

C3 = [[0, 1, 2], [1, 2, 3], [0, 1, 2, 3], [0, 2]]


def as_dense(layer):
    dense = torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    dense.weight = torch.nn.Parameter(layer.dense_weight().detach())
    dense.bias = torch.nn.Parameter(layer.bias.detach())
    return dense


@pytest.mark.parametrize(
    ("table", "convolutions"),
    [
        (C3, 3),
        ([[2, 1, 0], [1, 3, 2], [3, 0, 1]], 1),
        ([[0, 1], [2], [1, 2], [3]], 2),  # the output maps of a convolution are not neighbours
        ([[0, 1], [2, 3], [0, 1], [2, 3]], 1),  # two groups, interleaved
        ([[0, 1, 2, 3]] * 3, 1),  # dense
        ([[0], [1], [2], [3]], 1),  # depthwise
    ],
)
def test_connection_table(table, convolutions, calls):
    layer = nn.ConnectionTableConv2d(4, table, (3, 2), stride=(1, 2), padding=(1, 0))
    assert layer.connections == sum(map(len, table))
    assert sum(p.numel() for p in layer.parameters()) == layer.connections * 6 + len(table)
    dense = as_dense(layer)
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y, y2 = layer(x), dense(x2)
    assert len(calls) == convolutions
    assert_close(y, y2)
    y.square().sum().backward()
    y2.square().sum().backward()
    assert_close(x.grad, x2.grad)
    assert_close(layer.bias.grad, dense.bias.grad)
    rows = [dense.weight.grad[output, i] for output, inputs in enumerate(table) for i in sorted(inputs)]
    assert_close(layer.weight.grad, torch.stack(rows))
    assert_close(layer(x[0]), y[0])


def test_connection_table_computes_only_the_connections(monkeypatch):
    done = []

    def conv2d(x, weight, bias, stride, padding, dilation, groups):
        done.append(weight.numel())
        return TF.conv2d(x, weight, bias, stride, padding, dilation, groups)

    monkeypatch.setattr(functional, "conv2d", conv2d)
    nn.ConnectionTableConv2d(4, C3, 3)(torch.randn(1, 4, 5, 5))
    assert sum(done) == sum(map(len, C3)) * 9


def test_connection_table_as_a_matrix():
    matrix = torch.zeros(4, 4, dtype=torch.bool)
    for output, inputs in enumerate(C3):
        matrix[output, inputs] = True
    for table in (matrix, matrix.tolist()):
        layer = nn.ConnectionTableConv2d(4, table, 3)
        assert layer.table == tuple(map(tuple, C3))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "got none"),
        ([[0], []], "output map 1 has no input"),
        ([[0], [4]], "output map 1: expected input maps 0 to 3"),
        ([[0], [-1]], "output map 1: expected input maps 0 to 3"),
        ([[1, 1]], "twice"),
        ([[0.5]], "integers"),
        ([[True, False]], "expected 4 entries"),
        ([[False] * 4], "no input"),
        (torch.ones(4, dtype=torch.bool), "for every output map"),
    ],
)
def test_connection_table_refuses(table, message):
    with pytest.raises(ValueError, match=message):
        nn.ConnectionTableConv2d(4, table, 3)


def test_connection_table_layer_behaves():
    layer = nn.ConnectionTableConv2d(4, [[0, 1], [2], [1, 2], [3]], 3, padding=1, bias=False)
    x = torch.randn(2, 4, 5, 6)
    assert set(layer.state_dict()) == {"weight"}
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, layer(x))
    assert layer.double()(x.double()).dtype == torch.float64
    assert "connections=6" in repr(layer)
    with pytest.raises(RuntimeError, match=r"input: expected \[N, 4, H, W\]"):
        layer(torch.randn(2, 3, 5, 6))


# ---- the other layers of the papers


def test_trainable_subsampling():
    layer = nn.TrainableSubsampling2d(3)
    x = torch.randn(2, 3, 6, 8, requires_grad=True)
    assert_close(layer(x), TF.avg_pool2d(x, 2))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 3.0]))
        layer.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    y = layer(x)
    assert_close(y[:, 1], -2 * TF.avg_pool2d(x, 2)[:, 1])
    assert_close(y[:, 2], 3 * TF.avg_pool2d(x, 2)[:, 2] - 1)
    assert_close(layer(x[0]), y[0])
    y.sum().backward()
    assert_close(layer.bias.grad, torch.full((3,), 2.0 * 3 * 4))
    assert sum(p.numel() for p in layer.parameters()) == 6
    assert nn.TrainableSubsampling2d(3, 3, stride=2)(x).shape == (2, 3, 2, 3)


def test_rbf_output():
    codes = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    layer = nn.RBFOutput(codes)
    assert layer(codes).tolist() == [[0.0, 4.0], [4.0, 0.0]]
    assert layer(torch.tensor([0.0, 0.0, 3.0])).tolist() == [6.0, 6.0]
    assert not list(layer.parameters())
    assert torch.equal(layer.state_dict()["codes"], codes)
    with pytest.raises(ValueError, match="codes"):
        nn.RBFOutput(torch.ones(3))


def test_pca_lighting_shifts_every_image_along_the_principal_colours():
    images = torch.rand(50, 3, 8, 8, dtype=torch.float64)
    images[:, 1] = 0.8 * images[:, 0] + 0.1 * images[:, 1]
    layer = nn.PCALighting.from_images(images)
    pixels = images.transpose(0, 1).reshape(3, -1)
    covariance = torch.cov(pixels, correction=0)
    # Ordered by size, and an eigensystem of the covariance.
    assert layer.eigenvalues.tolist() == sorted(layer.eigenvalues.tolist(), reverse=True)
    assert_close(layer.eigenvectors @ torch.diag(layer.eigenvalues) @ layer.eigenvectors.mT, covariance)

    torch.manual_seed(0)
    count = 4000
    shift = layer(torch.zeros(count, 3, 2, 2, dtype=torch.float64))
    assert torch.equal(shift, shift[:, :, :1, :1].expand_as(shift))  # one colour for all pixels of an image
    alpha = (shift[:, :, 0, 0] @ layer.eigenvectors) / layer.eigenvalues
    # Mean and standard deviation of normal variables lie within 5 standard errors of what they should be.
    assert alpha.mean(0).abs().max() < 5 * 0.1 / count**0.5
    assert (alpha.std(0) - 0.1).abs().max() < 5 * 0.1 / (2 * count) ** 0.5
    assert torch.corrcoef(alpha.mT).sub(torch.eye(3)).abs().max() < 5 / count**0.5


def test_pca_lighting_modes_and_kinds():
    layer = nn.PCALighting.imagenet()
    assert_close(layer.eigenvectors @ layer.eigenvectors.mT, torch.eye(3), atol=1e-3, rtol=0)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float16)
    assert layer(x).dtype == torch.float16
    assert layer(x[0]).shape == x[0].shape
    assert not torch.equal(layer(x), layer(x))
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert layer.eval()(x) is x
    with pytest.raises(RuntimeError, match="input"):
        layer(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match="eigenvalues"):
        nn.PCALighting(torch.ones(2), torch.ones(3, 3))
    with pytest.raises(ValueError, match="std"):
        nn.PCALighting(torch.ones(3), torch.eye(3), std=-1.0)
    with pytest.raises(ValueError, match="images"):
        nn.PCALighting.from_images(torch.rand(3, 4, 4))
