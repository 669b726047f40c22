r"""Low-rank adapters (LoRA): an encoder that is fine-tuned by few numbers beside its own weights.

The weights W of the encoder's linear layers stay as they are, and a product of two small matrices
is added to each:

.. math:: W \leftarrow W + \frac{\alpha}{r} B A, \quad
          A \in \mathbb R^{r \times inputs}, \; B \in \mathbb R^{outputs \times r}

B is zero at first, so that nothing has changed before the first step. Only channels are mixed: what
EquiformerV2 adapts are the matrices of its degrees (SO(3)) and orders (SO(2)), which are
equivariant whatever numbers they hold. Biases, norms and embeddings stay as they are.

E. J. Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685.

    adapt(model, LoRAConfig(rank=8), seed=0)  # from here on the encoder's adapters are trained
    plain_state(model)  # the weights of a model without adapters that predicts the same
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from lamm.models.spherical import SO3Linear
from lamm.schema import Frozen

if TYPE_CHECKING:
    from lamm.models.potential import Potential

PREFIX = "adapters."
"""What the names of the adapters' weights begin with in a potential's state."""


class LoRAConfig(Frozen):
    """How large the adapters are."""

    rank: PositiveInt
    """r, columns of B; of a layer with fewer channels so many as it has."""
    alpha: PositiveFloat | None = None
    """Their product is multiplied by alpha / r; None: twice the rank."""

    @property
    def scale(self) -> float:
        """Alpha / r."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


class Adapter(nn.Module):
    """What is added to one matrix, or to each matrix of a stack."""

    def __init__(self, weight: Tensor, config: LoRAConfig) -> None:
        super().__init__()
        *stack, outputs, inputs = weight.shape
        rank = min(config.rank, outputs, inputs)  # a change of this matrix has no higher one
        self.scale = config.scale
        self.a = nn.Parameter(weight.new_empty(*stack, rank, inputs))
        self.b = nn.Parameter(weight.new_zeros(*stack, outputs, rank))
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, weight: Tensor) -> Tensor:
        """W + alpha / r B A, in the precision of W, mixed precision or not."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.b @ self.a)


class Adapters(nn.Module):
    """The adapters of all linear layers of an encoder."""

    def __init__(self, encoder: nn.Module, config: LoRAConfig) -> None:
        super().__init__()
        self.names = [
            f"{name}.weight"
            for name, layer in encoder.named_modules()
            if isinstance(layer, (nn.Linear, SO3Linear))
        ]
        """Of the encoder's weights that they change."""
        # A module's name has no dots.
        self.of = nn.ModuleDict(
            {
                name.replace(".", "/"): Adapter(encoder.get_parameter(name).detach(), config)
                for name in self.names
            }
        )

    def merged(self, encoder: nn.Module) -> dict[str, Tensor]:
        """The encoder's weights with what is added to them, by their names in the encoder."""
        return {
            name: adapter(encoder.get_parameter(name))
            for name, adapter in zip(self.names, self.of.values(), strict=True)
        }

    def call(self, encoder: nn.Module, *arguments: object) -> object:
        """Call the encoder with the merged weights."""
        return functional_call(encoder, self.merged(encoder), arguments)


def adapt(model: Potential, config: LoRAConfig, seed: int) -> None:
    """Give a potential's encoder adapters, and let them and the heads alone be trained.

    Args:
        model: changed in place; it predicts the same as before.
        config: size of the adapters.
        seed: of the matrices A.
    """
    model.encoder.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model.adapters = Adapters(model.encoder, config)


@torch.no_grad()
def plain_state(model: Potential) -> dict[str, Tensor]:
    """The state of a potential without adapters that predicts the same."""
    state: dict[str, Tensor] = model.state_dict()
    if model.adapters is None:
        return state
    merged = model.adapters.merged(model.encoder)
    plain = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
    return plain | {f"encoder.{name}": tensor for name, tensor in merged.items()}


def unmerged_state(model: Potential) -> dict[str, Tensor]:
    """What `plain_state` doesn't tell: the adapters, and the weights without them."""
    if model.adapters is None:
        return {}
    without = {f"encoder.{name}" for name in model.adapters.names}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name in without or name.startswith(PREFIX)
    }


def num_trained(model: nn.Module) -> int:
    """Numbers in the weights that training changes."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad)
