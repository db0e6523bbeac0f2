"""What is benchmarked: problems, written as one writes them on the command line, and suites of them.

A problem is `operator:sizes,kernel,parameter=value,...`:

    conv2d:8,128,28,28,128,3x3,stride=1,padding=1     N, C, H, W, output channels, kernel
    conv1d:8,64,1000,64,3,padding=1                   N, C, L, output channels, kernel
    max_pool2d:16,64,112,112,3x3,stride=2             N, C, H, W, kernel
    adaptive_avg_pool2d:8,512,14,14,7x7               N, C, H, W, output size
    local_response_norm:16,64,112,112,5               N, C, H, W, size

Pairs are written 3x2; a single number stands for both. Convolutions have a bias unless they say bias=0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CONVOLUTIONS = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
POOLINGS = ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d")
ADAPTIVE_POOLINGS = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d")
OPERATORS = (*CONVOLUTIONS, *POOLINGS, *ADAPTIVE_POOLINGS, "local_response_norm")

_CONVOLUTION_PARAMETERS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": 1}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "conv1d": _CONVOLUTION_PARAMETERS,
    "conv2d": _CONVOLUTION_PARAMETERS,
    "conv_transpose1d": {**_CONVOLUTION_PARAMETERS, "output_padding": 0},
    "conv_transpose2d": {**_CONVOLUTION_PARAMETERS, "output_padding": 0},
    "max_pool1d": {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": 0},
    "max_pool2d": {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": 0},
    "avg_pool1d": {"stride": None, "padding": 0, "ceil_mode": 0, "count_include_pad": 1},
    "avg_pool2d": {"stride": None, "padding": 0, "ceil_mode": 0, "count_include_pad": 1},
    "local_response_norm": {"alpha": 1e-4, "beta": 0.75, "k": 1.0},
}
_FLAGS = ("bias", "ceil_mode", "count_include_pad")
_SCALARS = ("groups", "alpha", "beta", "k", *_FLAGS)


@dataclass(frozen=True)
class Case:
    """One problem: an operator, the shape of its input, and its arguments as torch.nn.functional names them."""

    operator: str
    shape: tuple[int, ...]  # of the input
    out_channels: int  # of a convolution; else that of the input
    kernel: tuple[int, ...]  # a convolution's or pooling's kernel, an adaptive pooling's output size, or LRN's (size,)
    parameters: dict[str, Any] = field(hash=False)  # the operator's other keyword arguments, and `bias` as a bool
    problem: str  # the text this was read from
    name: str  # what a table calls it

    @property
    def is_convolution(self) -> bool:
        return self.operator in CONVOLUTIONS

    @property
    def is_transposed(self) -> bool:
        return self.operator.startswith("conv_transpose")

    @property
    def dimensions(self) -> int:
        """The number of spatial dimensions."""
        return len(self.shape) - 2

    @property
    def passes(self) -> tuple[str, ...]:
        """What can be timed of it: each pass on its own, and at last all of them together."""
        gradients = ("input_gradient", "weight_gradient") if self.is_convolution else ("backward",)
        return ("forward", *gradients, "training_step")

    @property
    def output_shape(self) -> tuple[int, ...]:
        if self.operator == "local_response_norm":
            return self.shape
        if self.operator in ADAPTIVE_POOLINGS:
            return (*self.shape[:2], *self.kernel)
        stride, padding = self.spatial("stride"), self.spatial("padding")
        dilation, extra = self.spatial("dilation"), self.spatial("output_padding")
        sizes = []
        for i, size in enumerate(self.shape[2:]):
            reach = dilation[i] * (self.kernel[i] - 1)
            if self.is_transposed:
                sizes.append((size - 1) * stride[i] - 2 * padding[i] + reach + extra[i] + 1)
            elif self.parameters.get("ceil_mode"):
                out = -(-(size + 2 * padding[i] - reach - 1) // stride[i]) + 1
                sizes.append(out - ((out - 1) * stride[i] >= size + padding[i]))
            else:
                sizes.append((size + 2 * padding[i] - reach - 1) // stride[i] + 1)
        return (self.shape[0], self.out_channels, *sizes)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of a convolution."""
        groups = self.parameters["groups"]
        channels = self.shape[1]
        if self.is_transposed:
            return (channels, self.out_channels // groups, *self.kernel)
        return (self.out_channels, channels // groups, *self.kernel)

    @property
    def operations(self) -> int:
        """Floating-point operations of one pass, a multiply-add counted as 2, those on padding included.

        Any pass of a convolution has the same number. A pooling has one for each element of each window. LRN is counted
        as 10 an element; it and pooling are judged by their memory traffic.
        """
        if self.is_convolution:
            positions = self.shape if self.is_transposed else self.output_shape
            return 2 * positions[0] * math.prod(positions[2:]) * math.prod(self.weight_shape)
        if self.operator == "local_response_norm":
            return 10 * math.prod(self.shape)
        if self.operator in ADAPTIVE_POOLINGS:
            return math.prod(self.shape)
        return math.prod(self.output_shape) * math.prod(self.kernel)

    def operations_of(self, pass_: str) -> int:
        """Those of a pass, or of all passes in a training step."""
        return self.operations * (len(self.passes) - 1 if pass_ == "training_step" else 1)

    def bytes(self, pass_: str, element: int = 4) -> int:
        """The memory traffic one pass cannot avoid: each tensor it needs read once, each one it makes written once.

        Of a training step, that of the passes it consists of.
        """
        if pass_ == "training_step":
            return sum(self.bytes(part, element) for part in self.passes[:-1])
        source, result = math.prod(self.shape), math.prod(self.output_shape)
        weight = math.prod(self.weight_shape) if self.is_convolution else 0
        both = self.operator == "local_response_norm" and pass_ == "backward"
        return element * (source + result + weight + (source if both else 0))

    @property
    def bound_by_memory(self) -> bool:
        """Whether its speed is told in GB/s."""
        return not self.is_convolution

    @property
    def kind(self) -> str:
        """dense, grouped, depthwise, pooling or normalisation."""
        if self.operator == "local_response_norm":
            return "normalisation"
        if not self.is_convolution:
            return "pooling"
        per_group = self.shape[1] // self.parameters["groups"]
        if self.parameters["groups"] == 1 or per_group >= 32:
            return "dense"
        return "depthwise" if per_group == 1 else "grouped"

    @property
    def family(self) -> str:
        """What it is averaged with."""
        if self.kind == "normalisation":
            return "LRN"
        if self.shape[0] == 1 and self.operations < 5_000_000:
            return "tiny"
        if self.kind == "pooling":
            return "average pooling" if "avg" in self.operator else "max pooling"
        if self.is_transposed:
            return "transposed"
        if self.dimensions == 1:
            return "1-D"
        if self.kind == "depthwise":
            return "depthwise"
        channels = self.shape[1] // self.parameters["groups"]
        if self.kind == "grouped":
            return f"groups of {'2-4' if channels <= 4 else '8' if channels <= 8 else '16+'}"
        if channels <= 4:
            return "stem"
        if self.kernel == (1, 1):
            return "1x1" if max(self.spatial("stride")) == 1 else "strided"
        if max(self.spatial("stride")) > 1:
            return "strided"
        if max(self.spatial("dilation")) > 1:
            return "dilated"
        if self.kernel == (3, 3):
            return "3x3" if min(channels, self.out_channels) >= 32 else "3x3, few channels"
        return "5x5" if self.kernel == (5, 5) else "other dense"

    def spatial(self, parameter: str) -> tuple[int, ...]:
        """The stride, padding or so in every dimension, the operator's own default if the problem says nothing."""
        value = self.parameters.get(parameter)
        if value is None:
            return self.kernel if parameter == "stride" else (int(parameter == "dilation"),) * self.dimensions
        return value


def parse(problem: str, name: str = "") -> Case:
    """The case that `problem` describes.

    Raises ValueError with what was expected.
    """
    operator, colon, rest = problem.strip().partition(":")
    if operator not in OPERATORS or not colon:
        raise ValueError(f"problem {problem!r}: expected OPERATOR:SIZES with an operator of {', '.join(OPERATORS)}")
    positional = [part for part in rest.split(",") if "=" not in part]
    named = [part for part in rest.split(",") if "=" in part]
    convolution = operator in CONVOLUTIONS
    if operator == "local_response_norm":
        dimensions = len(positional) - 3
        expected = "N,C,H,W,SIZE"
    else:
        dimensions = int(operator[-2])
        expected = "N,C," + ("H,W," if dimensions == 2 else "L,") + ("OUT_CHANNELS," if convolution else "")
        expected += "OUTPUT_SIZE" if operator in ADAPTIVE_POOLINGS else "KERNEL"
    if not 1 <= dimensions <= 2 or len(positional) != dimensions + 3 + convolution:
        raise ValueError(f"problem {problem!r}: expected {operator}:{expected}, got {len(positional)} sizes")

    parameters = dict(_PARAMETERS.get(operator, {}))
    for part in named:
        key, _, value = part.partition("=")
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"problem {problem!r}: unknown parameter {key!r}; {operator} has {known}")
        parameters[key] = _value(problem, value) if key in ("alpha", "beta", "k") else _sizes(problem, key, value)
    for key, value in parameters.items():
        if key in _FLAGS:
            parameters[key] = bool(value if isinstance(value, int) else value[0])
        elif key in _SCALARS:
            parameters[key] = value[0] if isinstance(value, tuple) else value
        elif value is not None:
            parameters[key] = _spread(value, dimensions)

    numbers = [_sizes(problem, "sizes", part) for part in positional]
    if any(len(number) != 1 for number in numbers[:-1]):
        raise ValueError(f"problem {problem!r}: expected single numbers before the kernel")
    shape = tuple(number[0] for number in numbers[: dimensions + 2])
    kernel = numbers[-1] if operator == "local_response_norm" else _spread(numbers[-1], dimensions)
    out_channels = numbers[-2][0] if convolution else shape[1]
    if len(kernel) != (1 if operator == "local_response_norm" else dimensions):
        raise ValueError(f"problem {problem!r}: the kernel has {len(kernel)} sizes, expected {dimensions}")
    case = Case(operator, shape, out_channels, kernel, parameters, problem.strip(), name or problem.strip())
    groups = parameters.get("groups", 1)
    if min(*shape, out_channels, *kernel, groups) < 1 or shape[1] % groups or out_channels % groups:
        raise ValueError(f"problem {problem!r}: sizes must be positive, channels divisible by groups")
    if any(min(case.spatial(key)) < 1 for key in ("stride", "dilation")):
        raise ValueError(f"problem {problem!r}: stride and dilation must be positive")
    if min(case.output_shape) < 1:
        raise ValueError(f"problem {problem!r}: its output would be {list(case.output_shape)}")
    return case


def _sizes(problem: str, what: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split("x"))
    except ValueError:
        raise ValueError(f"problem {problem!r}: {what} must be numbers such as 3 or 3x2, got {text!r}") from None


def _value(problem: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"problem {problem!r}: expected a number, got {text!r}") from None


def _spread(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    sizes = value if isinstance(value, tuple) else (value,)
    return sizes * dimensions if len(sizes) == 1 else sizes


@dataclass(frozen=True)
class Target:
    """The least ratio of torch's time to fastconv's that is asked for."""

    ratio: float
    layout: str = "best"  # or the layout in which both are compared


@dataclass(frozen=True)
class Suite:
    cases: tuple[Case, ...]
    targets: dict[str, Target] = field(default_factory=dict, hash=False)  # by kind of case


def _suite(problems: Iterable[tuple[str, str]], targets: dict[str, Target] | None = None) -> Suite:
    return Suite(tuple(parse(problem, name) for name, problem in problems), targets or {})


# A layer or two of every family: a minute.
_QUICK = [
    ("ResNet 3x3 128", "conv2d:8,128,28,28,128,3x3,padding=1"),
    ("ResNet 1x1 256-64", "conv2d:8,256,56,56,64,1x1"),
    ("ResNet stem 7x7 s2", "conv2d:8,3,224,224,64,7x7,stride=2,padding=3"),
    ("ResNeXt 3x3 g32", "conv2d:8,128,56,56,128,3x3,padding=1,groups=32"),
    ("depthwise 3x3", "conv2d:8,128,56,56,128,3x3,padding=1,groups=128"),
    ("max pool 3/2", "max_pool2d:8,64,112,112,3,stride=2,padding=1"),
    ("average pool 3/2", "avg_pool2d:8,64,112,112,3,stride=2,padding=1"),
    ("LRN 5", "local_response_norm:8,64,56,56,5"),
]

# Where torch stands was measured on these layers; the floor every kernel must reach is stated on them.
_FLOOR = [
    ("AlexNet c1 11x11 s4", "conv2d:8,3,227,227,96,11x11,stride=4"),
    ("AlexNet c2 5x5 g2", "conv2d:8,96,27,27,256,5x5,padding=2,groups=2"),
    ("VGG c1 3x3", "conv2d:4,3,224,224,64,3x3,padding=1"),
    ("VGG 3x3 256", "conv2d:4,256,56,56,256,3x3,padding=1"),
    ("ResNet stem 7x7 s2", "conv2d:8,3,224,224,64,7x7,stride=2,padding=3"),
    ("ResNet 1x1 256-64", "conv2d:8,256,56,56,64,1x1"),
    ("ResNet 3x3 128", "conv2d:8,128,28,28,128,3x3,padding=1"),
    ("ResNet 1x1 2048-512", "conv2d:8,2048,7,7,512,1x1"),
    ("depthwise 3x3 128", "conv2d:8,128,56,56,128,3x3,padding=1,groups=128"),
    ("depthwise 7x7 96", "conv2d:8,96,56,56,96,7x7,padding=3,groups=96"),
    ("ResNeXt 3x3 g32", "conv2d:8,128,56,56,128,3x3,padding=1,groups=32"),
    ("dilated 3x3 256 d2", "conv2d:2,256,64,64,256,3x3,padding=2,dilation=2"),
    ("LeNet c1 5x5", "conv2d:64,1,32,32,6,5x5"),
    ("max pool 3/2", "max_pool2d:16,64,112,112,3,stride=2"),
    ("max pool 2/2", "max_pool2d:16,64,112,112,2"),
    ("average pool 3/2", "avg_pool2d:16,64,112,112,3,stride=2"),
    ("LRN 5", "local_response_norm:16,64,112,112,5"),
]
_FLOOR_TARGETS = {
    "dense": Target(0.6),
    "grouped": Target(1.5),
    "depthwise": Target(1.5),
    "pooling": Target(3.0, "channels_first"),
    "normalisation": Target(10.0),
}

# Krizhevsky et al., 2012, with its two groups.
_ALEXNET = [
    ("conv1 11x11 s4", "conv2d:8,3,227,227,96,11x11,stride=4"),
    ("norm1", "local_response_norm:8,96,55,55,5"),
    ("pool1 3/2", "max_pool2d:8,96,55,55,3,stride=2"),
    ("conv2 5x5 g2", "conv2d:8,96,27,27,256,5x5,padding=2,groups=2"),
    ("norm2", "local_response_norm:8,256,27,27,5"),
    ("pool2 3/2", "max_pool2d:8,256,27,27,3,stride=2"),
    ("conv3 3x3", "conv2d:8,256,13,13,384,3x3,padding=1"),
    ("conv4 3x3 g2", "conv2d:8,384,13,13,384,3x3,padding=1,groups=2"),
    ("conv5 3x3 g2", "conv2d:8,384,13,13,256,3x3,padding=1,groups=2"),
    ("pool5 3/2", "max_pool2d:8,256,13,13,3,stride=2"),
]

# Simonyan and Zisserman, 2014, configuration D: (channels, outputs, size) of its different layers.
_VGG16 = [
    (f"3x3 {c}-{k} @{size}", f"conv2d:4,{c},{size},{size},{k},3x3,padding=1")
    for c, k, size in (
        (3, 64, 224),
        (64, 64, 224),
        (64, 128, 112),
        (128, 128, 112),
        (128, 256, 56),
        (256, 256, 56),
        (256, 512, 28),
        (512, 512, 28),
        (512, 512, 14),
    )
]
_VGG16 += [
    (f"max pool {c} @{size}", f"max_pool2d:4,{c},{size},{size},2") for c, size in ((64, 224), (256, 56), (512, 14))
]


def _googlenet() -> list[tuple[str, str]]:
    """Szegedy et al., 2014, table 1: (size, input, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool projection)."""
    modules = {
        "3a": (28, 192, 64, 96, 128, 16, 32, 32),
        "3b": (28, 256, 128, 128, 192, 32, 96, 64),
        "4a": (14, 480, 192, 96, 208, 16, 48, 64),
        "4b": (14, 512, 160, 112, 224, 24, 64, 64),
        "4c": (14, 512, 128, 128, 256, 24, 64, 64),
        "4d": (14, 512, 112, 144, 288, 32, 64, 64),
        "4e": (14, 528, 256, 160, 320, 32, 128, 128),
        "5a": (7, 832, 256, 160, 320, 32, 128, 128),
        "5b": (7, 832, 384, 192, 384, 48, 128, 128),
    }
    problems = [
        ("conv1 7x7 s2", "conv2d:8,3,224,224,64,7x7,stride=2,padding=3"),
        ("pool1 3/2", "max_pool2d:8,64,112,112,3,stride=2,ceil_mode=1"),
        ("norm1", "local_response_norm:8,64,56,56,5"),
        ("conv2 1x1", "conv2d:8,64,56,56,64,1x1"),
        ("conv2 3x3", "conv2d:8,64,56,56,192,3x3,padding=1"),
    ]
    for name, (size, c, one, reduce3, three, reduce5, five, projection) in modules.items():
        at = f"{size},{size}"
        problems += [
            (f"{name} 1x1", f"conv2d:8,{c},{at},{one},1x1"),
            (f"{name} 3x3 reduce", f"conv2d:8,{c},{at},{reduce3},1x1"),
            (f"{name} 3x3", f"conv2d:8,{reduce3},{at},{three},3x3,padding=1"),
            (f"{name} 5x5 reduce", f"conv2d:8,{c},{at},{reduce5},1x1"),
            (f"{name} 5x5", f"conv2d:8,{reduce5},{at},{five},5x5,padding=2"),
            (f"{name} pool 3/1", f"max_pool2d:8,{c},{at},3,stride=1,padding=1"),
            (f"{name} projection", f"conv2d:8,{c},{at},{projection},1x1"),
        ]
    problems.append(("average pool 7", "avg_pool2d:8,1024,7,7,7"))
    return _different(problems)


def _resnet50() -> list[tuple[str, str]]:
    """He et al., 2015, with the stride in the 3x3 convolution as torchvision has it; no biases."""
    problems = [
        ("conv1 7x7 s2", "conv2d:8,3,224,224,64,7x7,stride=2,padding=3,bias=0"),
        ("pool1 3/2", "max_pool2d:8,64,112,112,3,stride=2,padding=1"),
    ]
    channels, size = 64, 56
    for stage, width in enumerate((64, 128, 256, 512), start=2):
        out, stride = 4 * width, 1 if stage == 2 else 2
        small = size // stride
        problems += [
            (f"conv{stage}_1 1x1 reduce", f"conv2d:8,{channels},{size},{size},{width},1x1,bias=0"),
            (f"conv{stage}_1 3x3", f"conv2d:8,{width},{size},{size},{width},3x3,stride={stride},padding=1,bias=0"),
            (f"conv{stage}_x 3x3", f"conv2d:8,{width},{small},{small},{width},3x3,padding=1,bias=0"),
            (f"conv{stage}_x 1x1 expand", f"conv2d:8,{width},{small},{small},{out},1x1,bias=0"),
            (f"conv{stage}_1 shortcut", f"conv2d:8,{channels},{size},{size},{out},1x1,stride={stride},bias=0"),
            (f"conv{stage}_x 1x1 reduce", f"conv2d:8,{out},{small},{small},{width},1x1,bias=0"),
        ]
        channels, size = out, small
    problems.append(("global average pool", "adaptive_avg_pool2d:8,2048,7,7,1"))
    return _different(problems)


def _densenet121() -> list[tuple[str, str]]:
    """Huang et al., 2016: the first, middle and last layer of each block, the transitions; growth 32, no biases."""
    problems = [
        ("conv0 7x7 s2", "conv2d:8,3,224,224,64,7x7,stride=2,padding=3,bias=0"),
        ("pool0 3/2", "max_pool2d:8,64,112,112,3,stride=2,padding=1"),
    ]
    channels, size = 64, 56
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in (0, layers // 2, layers - 1):
            c = channels + 32 * layer
            problems.append((f"block{block} 1x1 {c}-128", f"conv2d:8,{c},{size},{size},128,1x1,bias=0"))
        problems.append((f"block{block} 3x3 128-32", f"conv2d:8,128,{size},{size},32,3x3,padding=1,bias=0"))
        channels += 32 * layers
        if block < 4:
            problems.append((f"transition{block} 1x1", f"conv2d:8,{channels},{size},{size},{channels // 2},1x1,bias=0"))
            problems.append((f"transition{block} pool", f"avg_pool2d:8,{channels // 2},{size},{size},2"))
            channels, size = channels // 2, size // 2
    return _different(problems)


def _mobilenet() -> list[tuple[str, str]]:
    """MobileNetV2 (Sandler et al., 2018): (channels, expansion, outputs, size, stride). And a 5x5 of MobileNetV3."""
    problems = [("conv1 3x3 s2", "conv2d:8,3,224,224,32,3x3,stride=2,padding=1,bias=0")]
    for c, expansion, k, size, stride in (
        (32, 1, 16, 112, 1),
        (16, 6, 24, 112, 2),
        (24, 6, 24, 56, 1),
        (24, 6, 32, 56, 2),
        (32, 6, 32, 28, 1),
        (32, 6, 64, 28, 2),
        (64, 6, 64, 14, 1),
        (96, 6, 96, 14, 1),
        (96, 6, 160, 14, 2),
        (160, 6, 160, 7, 1),
    ):
        hidden, small = c * expansion, size // stride
        if expansion > 1:
            problems.append((f"expand {c}-{hidden} @{size}", f"conv2d:8,{c},{size},{size},{hidden},1x1,bias=0"))
        depthwise = f"conv2d:8,{hidden},{size},{size},{hidden},3x3,stride={stride},padding=1,groups={hidden},bias=0"
        problems.append((f"depthwise {hidden} s{stride} @{size}", depthwise))
        problems.append((f"project {hidden}-{k} @{small}", f"conv2d:8,{hidden},{small},{small},{k},1x1,bias=0"))
    problems.append(("last 1x1 320-1280 @7", "conv2d:8,320,7,7,1280,1x1,bias=0"))
    problems.append(("V3 depthwise 5x5 240 @14", "conv2d:8,240,14,14,240,5x5,padding=2,groups=240,bias=0"))
    return _different(problems)


def _deepbench() -> list[tuple[str, str]]:
    """Baidu's DeepBench, training, the convolutions at their smallest batch: (W, H, C, N, K, S, R, padding, stride)."""
    problems = []
    for w, h, c, n, k, s, r, padding, stride in (
        (700, 161, 1, 4, 32, 20, 5, 0, 2),
        (341, 79, 32, 4, 32, 10, 5, 0, 2),
        (480, 48, 1, 16, 16, 3, 3, 1, 1),
        (240, 24, 16, 16, 32, 3, 3, 1, 1),
        (120, 12, 32, 16, 64, 3, 3, 1, 1),
        (60, 6, 64, 16, 128, 3, 3, 1, 1),
        (108, 108, 3, 8, 64, 3, 3, 1, 2),
        (54, 54, 64, 8, 64, 3, 3, 1, 1),
        (27, 27, 128, 8, 128, 3, 3, 1, 1),
        (14, 14, 128, 8, 256, 3, 3, 1, 1),
        (7, 7, 256, 8, 512, 3, 3, 1, 1),
        (224, 224, 3, 8, 64, 3, 3, 1, 1),
        (112, 112, 64, 8, 128, 3, 3, 1, 1),
        (56, 56, 128, 8, 256, 3, 3, 1, 1),
        (28, 28, 256, 8, 512, 3, 3, 1, 1),
        (14, 14, 512, 8, 512, 3, 3, 1, 1),
        (7, 7, 512, 8, 512, 3, 3, 1, 1),
        (224, 224, 3, 16, 64, 7, 7, 3, 2),
        (28, 28, 192, 16, 32, 5, 5, 2, 1),
        (28, 28, 192, 16, 64, 1, 1, 0, 1),
        (14, 14, 512, 16, 48, 5, 5, 2, 1),
        (14, 14, 512, 16, 192, 1, 1, 0, 1),
        (7, 7, 832, 16, 256, 1, 1, 0, 1),
        (7, 7, 832, 16, 128, 5, 5, 2, 1),
        (56, 56, 64, 8, 64, 3, 3, 1, 1),
        (56, 56, 64, 8, 256, 1, 1, 0, 2),
        (28, 28, 128, 8, 128, 3, 3, 1, 1),
        (28, 28, 128, 8, 512, 1, 1, 0, 2),
        (14, 14, 256, 8, 256, 3, 3, 1, 1),
        (7, 7, 512, 8, 512, 1, 1, 0, 1),
        (7, 7, 2048, 8, 512, 1, 1, 3, 2),
        (700, 161, 1, 16, 64, 5, 5, 1, 2),
        (350, 80, 64, 16, 64, 3, 3, 1, 1),
        (350, 80, 64, 16, 128, 5, 5, 1, 2),
        (84, 20, 256, 16, 256, 3, 3, 1, 1),
        (84, 20, 256, 16, 512, 5, 5, 1, 2),
    ):
        text = f"conv2d:{n},{c},{h},{w},{k},{r}x{s},stride={stride},padding={padding},bias=0"
        problems.append((f"{r}x{s} {c}-{k} {h}x{w} s{stride}", text))
    return _different(problems)


# What GPUs are compared on: layers users asked about, and those of architectures at the batch they train with.
_GPU = [
    ("ResNet stem 7x7 s2", "conv2d:16,3,224,224,64,7x7,stride=2,padding=3"),
    ("AlexNet c1 11x11 s4", "conv2d:128,3,227,227,96,11x11,stride=4"),
    ("patches 16x16 s16", "conv2d:64,3,224,224,768,16x16,stride=16"),
    ("3x3 64-128 @112", "conv2d:16,64,112,112,128,3x3,padding=1"),
    ("3x3 128-256 @56", "conv2d:16,128,56,56,256,3x3,padding=1"),
    ("3x3 256-512 @28", "conv2d:16,256,28,28,512,3x3,padding=1"),
    ("3x3 512 @14", "conv2d:16,512,14,14,512,3x3,padding=1"),
    ("3x3 512 @7", "conv2d:16,512,7,7,512,3x3,padding=1"),
    ("3x3 3-64 @32", "conv2d:512,3,32,32,64,3x3,padding=1"),
    ("1x1 64 @56", "conv2d:16,64,56,56,64,1x1"),
    ("1x1 256-128 s2", "conv2d:16,256,56,56,128,1x1,stride=2"),
    ("1x1 1024-2048 s2", "conv2d:16,1024,14,14,2048,1x1,stride=2"),
    ("5x5 192-32 @28", "conv2d:16,192,28,28,32,5x5,padding=2"),
    ("AlexNet c2 5x5 g2", "conv2d:128,96,27,27,256,5x5,padding=2,groups=2"),
    ("5x10 32 s2", "conv2d:4,32,79,341,32,5x10,stride=2"),
    ("dilated 3x3 512 d2", "conv2d:4,512,33,33,512,3x3,padding=2,dilation=2"),
    ("dilated 3x3 2048-256 d12", "conv2d:4,2048,33,33,256,3x3,padding=12,dilation=12"),
    ("ResNeXt 3x3 g32 s2", "conv2d:100,2048,14,14,2048,3x3,stride=2,padding=1,groups=32"),
    ("3x3 64 g8", "conv2d:32,64,56,56,64,3x3,padding=1,groups=8"),
    ("3x3 128 g32", "conv2d:32,128,56,56,128,3x3,padding=1,groups=32"),
    ("depthwise 3x3 32 @112", "conv2d:32,32,112,112,32,3x3,padding=1,groups=32"),
    ("depthwise 3x3 512 @14", "conv2d:32,512,14,14,512,3x3,padding=1,groups=512"),
    ("depthwise 3x3 144 s2", "conv2d:32,144,56,56,144,3x3,stride=2,padding=1,groups=144"),
    ("depthwise 5x5 480", "conv2d:16,480,14,14,480,5x5,padding=2,groups=480"),
    ("depthwise 7x7 96", "conv2d:64,96,56,56,96,7x7,padding=3,groups=96"),
    ("depthwise 31x31 128", "conv2d:16,128,56,56,128,31x31,padding=15,groups=128"),
    ("depthwise 1-D 4", "conv1d:1,12288,16384,12288,4,groups=12288"),
    ("1-D 3", "conv1d:3072,128,202,384,3"),
    ("max pool 3/2", "max_pool2d:64,64,112,112,3,stride=2,padding=1"),
    ("average pool 2/2", "avg_pool2d:64,256,56,56,2"),
    ("global average pool", "adaptive_avg_pool2d:256,2048,7,7,1"),
    ("LRN 5", "local_response_norm:128,96,55,55,5"),
]

# One image, small layers: what a call costs counts as much as the kernel.
_TINY = [
    ("LeNet C1", "conv2d:1,1,32,32,6,5x5"),
    ("LeNet S2", "avg_pool2d:1,6,28,28,2"),
    ("LeNet C3", "conv2d:1,6,14,14,16,5x5"),
    ("LeNet S4", "avg_pool2d:1,16,10,10,2"),
    ("LeNet C5", "conv2d:1,16,5,5,120,5x5"),
    ("max pool 2/2", "max_pool2d:1,6,28,28,2"),
    ("global average pool", "adaptive_avg_pool2d:1,64,7,7,1"),
    ("LRN 5", "local_response_norm:1,16,8,8,5"),
    ("conv1d 3", "conv1d:1,16,64,16,3,padding=1"),
]


def _different(problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each problem once, under its first name."""
    names: dict[str, str] = {}
    for name, problem in problems:
        names.setdefault(problem, name)
    return [(name, problem) for problem, name in names.items()]


SUITES: dict[str, Suite] = {
    "quick": _suite(_QUICK),
    "floor": _suite(_FLOOR, _FLOOR_TARGETS),
    "alexnet": _suite(_ALEXNET),
    "vgg16": _suite(_VGG16),
    "googlenet": _suite(_googlenet()),
    "resnet50": _suite(_resnet50()),
    "densenet121": _suite(_densenet121()),
    "mobilenet": _suite(_mobilenet()),
    "deepbench": _suite(_deepbench()),
    "tiny": _suite(_TINY),
    "gpu": _suite(_GPU),
}


def select(what: Iterable[str]) -> Suite:
    """The cases that command-line words ask for: names of suites, `all`, and problems.

    Raises ValueError for a word that is neither.
    """
    cases: dict[str, Case] = {}
    targets: dict[str, Target] = {}
    for word in what:
        if word == "all":
            chosen = [SUITES[name] for name in SUITES if name not in ("quick", "floor", "gpu")]
        elif word in SUITES:
            chosen = [SUITES[word]]
        elif ":" in word:
            chosen = [Suite((parse(word),))]
        else:
            raise ValueError(f"{word!r} is no suite ({', '.join(SUITES)}, all) and no problem such as {_QUICK[0][1]}")
        for suite in chosen:
            targets.update(suite.targets)
            for case in suite.cases:
                cases.setdefault(case.problem, case)
    return Suite(tuple(cases.values()), targets)
