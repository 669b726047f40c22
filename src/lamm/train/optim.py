"""The optimizer, its parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Annotated, Self

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from torch import nn

from lamm.schema import Frozen


class OptimConfig(Frozen):
    """AdamW, warm-up and cosine decay, gradient clipping, averaged weights."""

    lr: PositiveFloat = 2e-4
    """Peak learning rate."""
    encoder_lr_factor: PositiveFloat = 1.0
    """What the encoder's rate is multiplied by; below 1 in fine-tuning keeps what it learnt."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What the rate falls by with each layer of the encoder, from the last to the first and on to
    what lies below it; below 1 in fine-tuning keeps what early layers learnt. Heads have `lr`."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled decay of matrices; biases, norms and embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: NonNegativeInt = 100
    """Steps in which the rate rises linearly from zero."""
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The rate at the last step, as a share of the peak."""
    clip_norm: PositiveFloat = 10.0
    """Upper bound of the gradient's norm over all parameters."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay per step of the averaged weights; 0 switches the average off."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}, expected two numbers from 0 to below 1")
        return self


def learning_rate_factor(step: int, num_steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine.

    Args:
        step: steps done before this one.
        num_steps: steps of the whole run.
        config: warm-up length and final share.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine


def parameter_groups(
    model: nn.Module, encoder: nn.Module, config: OptimConfig
) -> list[dict[str, object]]:
    """Cut the parameters into layers of the encoder and heads, each with and without weight decay.

    Only matrices of linear layers decay: a bias, a norm's gain or an element's embedding has no
    reason to be small. A module says by `undecayed` which of its tensors of more dimensions are
    gains.
    """
    depths = layers_above(encoder)
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    gains = {
        id(getattr(module, name))
        for module in model.modules()
        for name in getattr(module, "undecayed", ())
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings | gains
        decay = config.weight_decay if matrix else 0.0
        rate = config.lr
        if id(parameter) in depths:
            rate *= config.encoder_lr_factor * config.layer_decay ** depths[id(parameter)]
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def layers_above(encoder: nn.Module) -> dict[int, int]:
    """How many layers an encoder's parameter has above it, by its ``id``.

    The layers are the entries of the encoder's own lists of modules: 0 for the last, L - 1 for the
    first of L. What is in no such list, the embeddings below all layers, has L; what comes after
    the last layer, which the encoder names by `after_layers`, has 0.
    """
    lists = {
        name: len(module)
        for name, module in encoder.named_children()
        if isinstance(module, nn.ModuleList)
    }
    num_layers = max(lists.values(), default=0)
    after = tuple(getattr(encoder, "after_layers", ()))
    depths = {}
    for name, parameter in encoder.named_parameters():
        top, *rest = name.split(".")
        if top in lists:
            depths[id(parameter)] = lists[top] - 1 - int(rest[0])
        else:
            depths[id(parameter)] = 0 if top in after else num_layers
    return depths


def build_optimizer(
    model: nn.Module, encoder: nn.Module, config: OptimConfig
) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`, all parameters of a group updated by one fused kernel.

    Its moments are there from the start, so that no step has to find memory for them.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, encoder, config), lr=config.lr, betas=config.betas, fused=True
    )
    _make_moments(optimizer)
    return optimizer


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer take a step that changes nothing, in which it makes all that it keeps."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    held = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.found_inf = parameters[0].new_ones((), dtype=torch.float32, requires_grad=False)  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]
    for parameter, gradient in zip(parameters, held, strict=True):
        parameter.grad = gradient


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
