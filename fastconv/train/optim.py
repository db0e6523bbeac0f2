"""Optimisers, learning-rate schedules and the moving average of the weights, as the options name them."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastconv.train.options import Options


def optimizer(parameters: Iterable[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    assert options.lr is not None
    assert options.weight_decay is not None
    if options.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    return torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)


def schedule(options: Options, steps: int) -> Callable[[int], float]:
    """The learning rate at a step, as a fraction of the highest: a linear warm-up, then what the options name."""
    warm_up = round(options.warm_up * steps)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        if options.schedule == "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up)))
        if options.schedule == "step":
            return options.decay ** sum(step >= milestone * steps for milestone in options.milestones)
        return 1.0

    return rate


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Averages of the weights and of the running statistics, each new value counting 1 - decay; None for 0."""
    if decay == 0:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
