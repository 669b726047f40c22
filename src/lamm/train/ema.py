"""Averaged weights: an exponential moving average of the parameters, used for validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    r"""Exponential moving average of a model's parameters.

    .. math:: \bar\theta \leftarrow \alpha \bar\theta + (1 - \alpha) \theta, \quad
              \alpha = \min\big(\text{decay}, (1 + t) / (10 + t)\big)

    The rising :math:`\alpha` lets the average forget the random weights of the start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._names = [name for name, _ in model.named_parameters()]
        self._live = [parameter for _, parameter in model.named_parameters()]
        self._average = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Move the average towards the weights after step number `step`, counted from 0.

        Args:
            step: sets alpha.
            skip: on the device, 1 where the step changed nothing and the average has to stay too.
        """
        alpha = min(self.decay, (1 + step) / (10 + step))
        live = [parameter.detach() for parameter in self._live]
        if skip is None:
            torch._foreach_lerp_(self._average, live, 1 - alpha)
            return
        weight = (1 - skip).to(live[0].dtype) * (1 - alpha)
        torch._foreach_lerp_(self._average, live, [weight] * len(live))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged weights inside the block and its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, average in zip(self._live, self._average, strict=True):
            held = live.detach().clone()
            live.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages that `state_dict` gave."""
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(state[name])
