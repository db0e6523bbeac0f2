"""A table of what a model consists of: `summary` runs it once and watches every layer and operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from fastconv.models.receptive_field import ReceptiveFields, window_of

__all__ = ["LayerRecord", "Summary", "summary"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerRecord:
    """One call of a layer, or of a convolution, pooling or matrix product that a container calls as a function.

    Attributes:
        name: in the model ("layer1.0.conv1"); of a function, the container's.
        layer: the class, or the operator.
        outputs: the shapes of all tensors that come out.
        kernel: the window of a convolution or pooling.
        parameters: elements of the layer's own parameters, 0 where an earlier call has counted them.
        macs: multiplications (with an addition each) of convolutions and matrix products, for the whole batch.
        receptive_field: how many positions along each axis of the input one value of the output depends on, as far as
            the operators tell; it may be larger than the input where that is padded.
        call: 1, or more where a layer is called again.
        depth: number of containers around it.
    """

    name: str
    layer: str
    outputs: tuple[Shape, ...]
    kernel: Shape | None
    parameters: int
    macs: int
    receptive_field: Shape | None
    call: int
    depth: int

    @property
    def output(self) -> Shape | None:
        """The shape of the first tensor that comes out."""
        return self.outputs[0] if self.outputs else None


@dataclass(eq=False)
class Call:
    """A call of a module, with the calls inside it, in the order of their beginnings; for `draw`.

    `sources` are the calls whose results it takes (the model's own: the model's input), and `returned` those whose
    results its first output is made of.
    """

    module: torch.nn.Module
    name: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...] = ()
    kernel: Shape | None = None
    macs: int = 0
    receptive_field: Shape | None = None
    inner: list[Call] = field(default_factory=list)
    sources: tuple[Call, ...] = field(default=(), repr=False)
    returned: tuple[Call, ...] = field(default=(), repr=False)


def is_chain(module: torch.nn.Module) -> bool:
    """Whether a module only calls its layers, one after the other."""
    return type(module).forward is torch.nn.Sequential.forward


class Summary(list[LayerRecord]):
    """The records in the order of the calls. `print` it for a plain table; rich prints one of its own.

    Attributes:
        model: the model's class.
        inputs: the shapes of the inputs.
        parameters, trainable: numbers of elements of all the model's parameters, and of those that require gradients.
        macs: of all layers together.
        unused: parameters of layers that were not called, such as auxiliary heads outside of training.
        root: the call of the model itself.
    """

    def __init__(self, records: Sequence[LayerRecord], root: Call) -> None:
        super().__init__(records)
        every = list(root.module.parameters())
        self.model = type(root.module).__name__
        self.inputs = root.inputs
        self.parameters = sum(parameter.numel() for parameter in every)
        self.trainable = sum(parameter.numel() for parameter in every if parameter.requires_grad)
        self.macs = sum(record.macs for record in records)
        self.unused = self.parameters - sum(record.parameters for record in records)
        self.root = root

    HEADER = ("layer", "", "output", "kernel", "parameters", "MACs", "field")

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table."""
        rows: list[tuple[str, ...]] = []
        for record in self:
            name = record.name or "(the model)"
            rows.append(
                (
                    name if record.call == 1 else f"{name} (call {record.call})",
                    record.layer,
                    ", ".join(map(_times, record.outputs)),
                    _times(record.kernel),
                    f"{record.parameters:,}",
                    f"{record.macs:,}",
                    _times(record.receptive_field),
                )
            )
        return rows

    def totals(self) -> str:
        """What stands under the table."""
        inputs = ", ".join(map(_times, self.inputs))
        text = f"{self.model}: {self.parameters:,} parameters, {self.macs:,} MACs for an input of {inputs}"
        if self.trainable != self.parameters:
            text += f"; {self.trainable:,} parameters are trained"
        if self.unused:
            text += f"; {self.unused:,} parameters belong to layers that were not called"
        return text

    def __str__(self) -> str:
        rows = [self.HEADER, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * width for width in widths))
        lines = []
        for cells in rows:
            padded = [
                cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join([*lines, "", self.totals()])

    __repr__ = __str__

    def __rich__(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        styles = ("", "cyan", "", "", "green", "magenta", "")
        for column, (title, style) in enumerate(zip(self.HEADER, styles, strict=True)):
            table.add_column(
                title, style=style, justify="right" if column in _NUMBERS else "left", no_wrap=column > 1, min_width=4
            )
        for cells in self.rows():
            # One line a row: where the terminal is too narrow, names are cut, numbers are not.
            names = (Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells[:2])
            table.add_row(*names, *("" if cell == "0" else cell for cell in cells[2:]))
        return Group(table, Text(self.totals()))


_NUMBERS = (4, 5, 6)


def _times(sizes: Sequence[int] | None) -> str:
    return "x".join(map(str, sizes)) if sizes is not None else ""


class _Watcher(TorchDispatchMode):
    """Hands every operator, with its arguments and result, to the summary."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.recorder.operator(func, args, kwargs, result)
        return result


class _Recorder:
    """Follows the calls of modules and of operators inside them."""

    def __init__(self, model: torch.nn.Module, inputs: Sequence[Tensor]) -> None:
        self.fields = ReceptiveFields(inputs)
        self.inputs = tuple(tuple(tensor.shape) for tensor in inputs)
        self.sources = WeakTensorKeyDictionary()  # of each tensor, the calls that it was made by
        self.names = {module: name for name, module in model.named_modules()}
        self.stack: list[Call] = []
        self.root: Call | None = None
        self.calls: list[Call | _Function] = []

    def enter(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(module, self.names[module], self.inputs if self.root is None else ())
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        call.sources = self._made_by(given)
        if self.root is None:
            self.root = call
            for tensor in given:
                self.sources[tensor] = (call,)
        elif self.stack:
            self.stack[-1].inner.append(call)
        self.stack.append(call)
        self.calls.append(call)

    def _made_by(self, tensors: Sequence[Tensor]) -> tuple[Call, ...]:
        return tuple(dict.fromkeys(call for tensor in tensors for call in self.sources.get(tensor, ())))

    def leave(self, module: torch.nn.Module, _: Any, result: Any) -> None:
        call = self.stack.pop()
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        call.outputs = tuple(tuple(tensor.shape) for tensor in tensors)
        call.receptive_field = self.fields.of(tensors[0]) if tensors else None
        call.returned = self._made_by(tensors[:1])
        if not is_chain(module):
            for tensor in tensors:
                self.sources[tensor] = (call,)
        if isinstance(module, torch.nn.RNNBase):
            steps = sum(tensor.shape[:-1].numel() for tensor in tensors[:1])
            weights = (value for name, value in module.named_parameters(recurse=False) if name.startswith("weight"))
            call.macs = steps * sum(weight.numel() for weight in weights)

    def operator(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        self.fields.record(func, args, kwargs, result)
        sources = self._made_by([leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        if sources:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.sources[leaf] = sources
        window = window_of(func, args, result)
        count = flop_registry.get(func.overloadpacket)
        macs = count(*args, **kwargs, out_val=result) // 2 if count is not None else 0
        if not self.stack or (window is None and not macs):
            return
        call = self.stack[-1]
        kernel = window.kernel if window is not None else None
        if any(True for _ in call.module.children()):
            tensor = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            title = func.overloadpacket.__name__.removesuffix("_with_indices").lstrip("_")
            self.calls.append(
                _Function(call.name, title, tuple(tensor.shape), kernel, macs, self.fields.of(tensor), len(self.stack))
            )
        else:
            call.kernel = kernel or call.kernel
            call.macs += macs

    def records(self) -> list[LayerRecord]:
        """One for each call of a layer without layers inside, or with parameters of its own, and for each function."""
        counted: set[Tensor] = set()
        times: dict[str, int] = {}
        result = []
        for call in self.calls:
            if isinstance(call, _Function):
                outputs = (call.output,)
                result.append(
                    LayerRecord(
                        call.name, call.title, outputs, call.kernel, 0, call.macs, call.receptive_field, 1, call.depth
                    )
                )
                continue
            own = list(call.module.parameters(recurse=False))
            if not own and any(True for _ in call.module.children()):
                continue
            new = [parameter for parameter in own if parameter not in counted]
            counted.update(new)
            times[call.name] = times.get(call.name, 0) + 1
            result.append(
                LayerRecord(
                    call.name,
                    type(call.module).__name__,
                    call.outputs,
                    call.kernel,
                    sum(parameter.numel() for parameter in new),
                    call.macs,
                    call.receptive_field,
                    times[call.name],
                    call.name.count(".") + bool(call.name),
                )
            )
        return result


@dataclass(frozen=True)
class _Function:
    """A convolution, pooling or matrix product that a module with layers of its own calls as a function."""

    name: str
    title: str
    output: Shape
    kernel: Shape | None
    macs: int
    receptive_field: Shape | None
    depth: int


@contextmanager
def _in_the_open() -> Iterator[None]:
    """Attention as matrix products: the fused operators, and torch's for a whole layer, do not tell what they do."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Whatever the block does to buffers and random numbers is undone."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
            yield
    finally:
        for module, name, buffer, value in buffers:
            if not buffer.is_meta:
                buffer.copy_(value)
            setattr(module, name, buffer)


def summary(
    model: torch.nn.Module,
    input_size: Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    input_data: Any = None,
    dtype: torch.dtype | None = None,
) -> Summary:
    """For every layer of any torch model: output shape, kernel, parameters, MACs, receptive field.

    The model runs once, in the mode it is in, without gradients, on zeros or on `input_data`; a model on the meta
    device (`with torch.device("meta"): …`) costs neither time nor memory. It is left as it was: mode, buffers
    (running statistics too), random numbers and hooks.

    Args:
        model: fastconv's, torchvision's, any other.
        input_size: shape of the input with the batch dimension, such as (1, 3, 224, 224), or a sequence of shapes for
            a model of several inputs.
        input_data: in place of zeros: a tensor, a tuple of arguments or a dict of keyword arguments.
        dtype: of the zeros; that of the model's first floating-point parameter if not given. A model of token indices
            wants torch.int64.

    Raises ValueError if neither or both of `input_size` and `input_data` are given, and for a model with lazy layers
    that have not seen an input yet; whatever the model raises for such an input.

    Example:
        >>> with torch.device("meta"):
        ...     table = summary(models.resnet50(), (1, 3, 224, 224))
        >>> table.parameters, table[0].name, table[0].output, table[0].receptive_field
        (25557032, 'conv1', (1, 64, 112, 112), (7, 7))
    """
    if (input_size is None) == (input_data is None):
        raise ValueError("expected either input_size or input_data")
    tensors = [*model.parameters(), *model.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        raise ValueError("the model has lazy layers that do not know their shapes yet: call it once before")
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if input_size is not None:
        floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
        dtype = dtype or next(floating, torch.get_default_dtype())
        device = tensors[0].device if tensors else None
        sizes: Any = input_size if isinstance(input_size[0], Sequence) else [input_size]
        args = tuple(torch.zeros(*size, dtype=dtype, device=device) for size in sizes)
    elif isinstance(input_data, Mapping):
        kwargs = dict(input_data)
    else:
        args = tuple(input_data) if isinstance(input_data, (list, tuple)) else (input_data,)

    recorder = _Recorder(model, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
    with ExitStack() as stack:
        for module in model.modules():
            for handle in (
                module.register_forward_pre_hook(recorder.enter, with_kwargs=True),
                module.register_forward_hook(recorder.leave),
            ):
                stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_undisturbed(model))
        stack.enter_context(_in_the_open())
        stack.enter_context(_Watcher(recorder))
        model(*args, **kwargs)
    assert recorder.root is not None
    return Summary(recorder.records(), recorder.root)
