"""Times a whole model, layer by layer and as a whole: on torch, on fastconv, and each layer on the faster of them."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastconv import models
from fastconv.bench import gpu
from fastconv.bench.agreement import TOLERANCE, difference, tensors
from fastconv.bench.timing import Timing, interleave
from fastconv.convert import revert
from fastconv.fastest import LIBRARIES, LayerTime, Seconds, time_layers
from fastconv.swap import FAST, change_class, exchangeable

PASSES = ("inference", "training step")
GRAPH = "inference as a graph"
CHOICES = (*LIBRARIES, "fastest")  # who runs the layers
_FORMATS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and what it is given; JSON can hold it."""

    name: str  # of the registry, or FILE.py:CALLABLE, or MODULE:CALLABLE
    inputs: tuple[tuple[int, ...], ...] = ()  # the shapes of its arguments; of the registry's, empty
    batch: int = 8  # of the registry's models

    def load(self) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        """The model, on torch's layers, and its arguments.

        Raises ValueError if there is no such model, or no sizes for the arguments of a model of one's own.
        """
        torch.manual_seed(0)
        if ":" not in self.name and not self.name.endswith(".py"):
            entry = models.model_entry(self.name)
            shapes = self.inputs or ((self.batch, *entry.input_shape),)
            model, dtype = entry.builder(), entry.input_dtype
        else:
            if not self.inputs:
                raise ValueError(f"{self.name}: say the sizes of its input, such as --input 8x3x224x224")
            shapes, model, dtype = self.inputs, _build(self.name), torch.float32
        revert(model)
        if dtype.is_floating_point:
            return model, tuple(torch.randn(shape, dtype=dtype) for shape in shapes)
        return model, tuple(torch.zeros(shape, dtype=dtype) for shape in shapes)


def _build(name: str) -> torch.nn.Module:
    """The model of FILE.py:CALLABLE or MODULE:CALLABLE; without a callable, `model`, which may be the model itself."""
    place, _, attribute = name.partition(":")
    attribute = attribute or "model"
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            module = importlib.import_module(place)
        made = getattr(module, attribute)
    except (ImportError, OSError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error
    model = made() if callable(made) and not isinstance(made, torch.nn.Module) else made
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{name}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


@dataclass(frozen=True)
class Run:
    """A pass of the model in one layout, its layers run by one of CHOICES."""

    pass_: str
    choice: str
    layout: str
    timing: Timing
    error: float  # of inference: largest difference from torch's output, relative to its largest element
    memory: int | None = None  # bytes, at the peak, of the process with this alone: model, gradients and all between
    dtype: str = "float32"

    @property
    def wrong(self) -> bool:
        return not self.error <= TOLERANCE[self.dtype]


@dataclass(frozen=True)
class Setting:
    """Where a model runs: 16-bit types by autocast, with the loss scaled in float16."""

    device: str = "cpu"
    dtype: str = "float32"
    clock: Callable[[], float] = time.perf_counter
    graph: bool = False  # whether inference is timed as a CUDA graph, too

    @property
    def passes(self) -> tuple[str, ...]:
        return (PASSES[0], GRAPH, PASSES[1]) if self.graph else PASSES

    def autocast(self) -> torch.autocast:
        half = self.dtype in ("float16", "bfloat16")
        return torch.autocast(self.device, getattr(torch, self.dtype) if half else None, enabled=half)


@dataclass(frozen=True)
class ModelResult:
    """What was measured of a model."""

    source: ModelSource
    images: int  # in a batch
    layers: dict[str, list[LayerTime]]  # by layout
    runs: list[Run]

    def best(self, pass_: str, choice: str) -> Run:
        """In the faster layout."""
        return min(
            (run for run in self.runs if (run.pass_, run.choice) == (pass_, choice)), key=lambda run: run.timing.median
        )

    def ratio(self, run: Run) -> float:
        """The time of torch in its faster layout divided by that of `run`."""
        return self.best(run.pass_, "torch").timing.median / run.timing.median

    def ratio_range(self, run: Run) -> tuple[float, float]:
        """Between which the ratio lies as far as the quartiles tell."""
        theirs, ours = self.best(run.pass_, "torch").timing, run.timing
        return theirs.lower / ours.upper, theirs.upper / ours.lower

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelResult:
        """From what `dataclasses.asdict` and JSON make of it."""
        source = data["source"]
        return cls(
            ModelSource(source["name"], tuple(map(tuple, source["inputs"])), source["batch"]),
            data["images"],
            {
                layout: [
                    LayerTime(name, layer, calls, Seconds(*theirs), Seconds(*ours), refusal)
                    for name, layer, calls, theirs, ours, refusal in layers
                ]
                for layout, layers in data["layers"].items()
            },
            [Run(**{**run, "timing": Timing(**run["timing"])}) for run in data["runs"]],
        )


CPU = Setting()


def run_model(
    source: ModelSource,
    seconds: float,
    layouts: Sequence[str],
    memory: bool = False,
    progress: Callable[[str], None] = lambda what: None,
    setting: Setting = CPU,
    choices: Sequence[str] = CHOICES,
) -> ModelResult:
    """Times the layers of a model in the calls of one training pass, then its inference and its training step.

    All choices and layouts take turns, for about `seconds` a pass. The loss is the mean square of the outputs, the
    optimizer plain SGD. Layouts other than channels_first apply to inputs of four dimensions. Layers are timed only if
    "fastest" is one of the `choices`. Raises ValueError as `ModelSource.load` does.
    """
    model, arguments = source.load()
    model, arguments = model.to(setting.device), tuple(argument.to(setting.device) for argument in arguments)
    if not any(argument.dim() == 4 for argument in arguments):
        layouts = layouts[:1]
    work: dict[tuple[str, str, str], Callable[[], Any]] = {}
    layers = {}
    for layout in layouts:
        progress(f"layers, {layout}")
        one = copy.deepcopy(model).train()
        one.to(memory_format=_FORMATS[layout])  # type: ignore[call-overload]
        inputs = in_layout(arguments, layout)
        if "fastest" in choices:
            with setting.autocast():
                layers[layout] = time_layers(one, inputs)
        for pass_ in setting.passes:
            for choice in choices:
                tree = _sharing_parameters(one)
                arrange(tree, libraries(layers[layout], pass_, choice) if layers else _everywhere(tree, choice))
                work[pass_, choice, layout] = _work(tree, inputs, pass_, setting)
    runs = []
    for pass_ in setting.passes:
        progress(pass_)
        chosen = {key: function for key, function in work.items() if key[0] == pass_}
        errors = dict.fromkeys(chosen, 0.0)
        if pass_ != "training step":
            reference = work["inference", "torch", layouts[0]]()
            errors = {key: difference(function(), reference) for key, function in chosen.items()}
        for key, samples in interleave(chosen, seconds, clock=setting.clock).items():
            peak = None
            if memory and pass_ == "training step":
                progress(f"memory, {key[1]}, {key[2]}")
                peak = peak_memory(source, key[2], libraries(layers[key[2]], pass_, key[1]))
            runs.append(Run(*key, Timing.of(samples), errors[key], peak, setting.dtype))
    return ModelResult(source, arguments[0].shape[0], layers, runs)


def libraries(layers: Sequence[LayerTime], pass_: str, choice: str) -> dict[str, str]:
    """Who runs each layer, by its name."""
    if choice != "fastest":
        return {layer.name: choice for layer in layers if choice == "torch" or not layer.refusal}
    return {layer.name: _faster(layer, pass_) for layer in layers}


def _everywhere(model: torch.nn.Module, library: str) -> dict[str, str]:
    """Each layer that either library could run, on this one."""
    return {name: library for name, module in model.named_modules() if exchangeable(module)}


def _faster(layer: LayerTime, pass_: str) -> str:
    if pass_ != "training step" and not layer.refusal:
        return "torch" if layer.torch.forward < layer.fastconv.forward else "fastconv"
    return "torch" if layer.reason_to_keep else "fastconv"


def arrange(model: torch.nn.Module, runs_on: dict[str, str]) -> None:
    """Gives each named layer to its library, and the others to torch."""
    for name, module in model.named_modules():
        layer = exchangeable(module)
        if layer:
            change_class(module, FAST[layer] if runs_on.get(name) == "fastconv" else layer)


def in_layout(tensors: Sequence[Tensor], layout: str) -> tuple[Tensor, ...]:
    """Those of four dimensions in that layout."""
    return tuple(
        tensor.contiguous(memory_format=_FORMATS[layout]) if tensor.dim() == 4 else tensor for tensor in tensors
    )


def _sharing_parameters(model: torch.nn.Module) -> torch.nn.Module:
    """Another model with the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _work(model: torch.nn.Module, arguments: Sequence[Tensor], pass_: str, setting: Setting = CPU) -> Callable[[], Any]:
    """One pass as a function of no arguments."""
    model.train(pass_ == "training step")

    def inference() -> Any:
        with torch.no_grad(), setting.autocast():
            return model(*arguments)

    if pass_ == GRAPH:
        return gpu.graphed(lambda: inference)
    if pass_ == "inference":
        return inference
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(setting.device, enabled=setting.dtype == "float16")

    def training_step() -> None:
        optimizer.zero_grad()
        with setting.autocast():
            loss = torch.stack([tensor.float().square().mean() for tensor in tensors(model(*arguments))]).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return training_step


def peak_memory(source: ModelSource, layout: str, runs_on: dict[str, str]) -> int:
    """Bytes that two training steps take at their peak, beside the libraries, in a process of their own.

    What the system counts as resident: oneDNN's scratch memory is not torch's and escapes torch's own counts.
    """
    request = json.dumps([source.name, source.inputs, source.batch, layout, runs_on, torch.get_num_threads()])
    command = [sys.executable, "-c", "from fastconv.bench.model import answer_peak_memory as f; f()"]
    done = subprocess.run(command, input=request, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def answer_peak_memory() -> None:
    """The other side of `peak_memory`: reads the request from standard input, prints the number."""
    name, inputs, batch, layout, runs_on, threads = json.load(sys.stdin)
    torch.set_num_threads(threads)
    before = _resident("VmRSS")
    model, arguments = ModelSource(name, tuple(map(tuple, inputs)), batch).load()
    model.to(memory_format=_FORMATS[layout])  # type: ignore[call-overload]
    arrange(model, runs_on)
    step = _work(model, in_layout(arguments, layout), "training step")
    step()
    step()
    print(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS, now; VmHWM, at the peak. Unlike getrusage's, not the parent's peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
