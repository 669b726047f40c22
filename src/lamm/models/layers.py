"""What encoders and heads are made of: activation, radial basis, safe norm, sums over atoms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ScaledSiLU(nn.Module):
    """SiLU(x) / 0.6, which keeps the variance of a normal input near 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return functional.silu(x) * (1 / 0.6)


def xavier_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and, where it has them, biases of zero."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, activation, linear."""
    return nn.Sequential(
        xavier_linear(inputs, hidden), ScaledSiLU(), xavier_linear(hidden, outputs)
    )


def last_layer(net: nn.Sequential) -> nn.Linear:
    """The second linear layer of `two_layers`."""
    layer = net[2]
    assert isinstance(layer, nn.Linear)
    return layer


def chosen_output(x: Tensor, weight: Tensor, bias: Tensor | None, row: Tensor) -> Tensor:
    """One output of a linear layer for each atom: (N, ..., C) to (N, ..., 1).

    A matrix product sums each of its columns in an order that depends on how many there are. Here
    an output is the same to the last bit, however many others the layer has.

    Args:
        x: inputs.
        weight: (D, C) of the layer.
        bias: (D,).
        row: (N,) the output of each atom.
    """
    between = (1,) * (x.ndim - 2)
    chosen = weight.index_select(0, row).unflatten(0, (-1, *between))  # (N, ..., C)
    total: Tensor = (x * chosen).sum(dim=-1, keepdim=True)
    if bias is not None:
        total = total + bias.index_select(0, row).view(-1, *between, 1)
    return total


class GaussianBasis(nn.Module):
    r"""Gaussians of the distance under a polynomial that goes smoothly to zero at the cutoff.

    With x = d / r_c, centres :math:`\mu_k` evenly from 0 to 1, spacing s and exponent p:

    .. math::

        e_k(d) = u(x) \exp\left(-\frac{(x - \mu_k)^2}{2 s^2}\right), \quad
        u(x) = 1 - \tfrac{(p+1)(p+2)}{2} x^p + p(p+2) x^{p+1} - \tfrac{p(p+1)}{2} x^{p+2}
    """

    def __init__(self, num_radial: int, cutoff: float, exponent: int = 5) -> None:
        super().__init__()
        self.num_radial, self.cutoff, self.exponent = num_radial, cutoff, exponent

    def forward(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (E,) in Å to the basis (E, K) and its envelope u (E,)."""
        x = distance / self.cutoff  # (E,)
        centres = torch.linspace(0, 1, self.num_radial, device=x.device, dtype=x.dtype)  # (K,)
        steps = (x[:, None] - centres) * (self.num_radial - 1)  # (E, K)
        envelope = polynomial_envelope(x, self.exponent)
        return torch.exp(-0.5 * steps**2) * envelope[:, None], envelope


def polynomial_envelope(x: Tensor, exponent: int) -> Tensor:
    """From 1 at x = 0 to 0 at x = 1, where two derivatives vanish; 0 beyond."""
    p = exponent
    value = (
        1
        - (p + 1) * (p + 2) / 2 * x**p
        + p * (p + 2) * x ** (p + 1)
        - p * (p + 1) / 2 * x ** (p + 2)
    )
    return torch.where(x < 1, value, torch.zeros_like(value))


def safe_norm(vectors: Tensor, smallest: float = 1e-12) -> Tensor:
    """Length of each vector along dimension 1: (N, 3, C) to (N, C).

    A vector shorter than `smallest`, as on a lone atom or a symmetric site, has length zero with
    gradient zero, where the plain norm's gradient is NaN.
    """
    square = (vectors * vectors).sum(dim=1)
    long = square > smallest**2
    return torch.where(long, torch.where(long, square, 1.0).sqrt(), 0.0)


def refuse_second_derivative() -> None:
    """Called by gradients that are written by hand and have none of their own.

    Raises:
        RuntimeError: the gradient is to be differentiated again (``create_graph``).
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this gradient can't be differentiated again. Put the model into training mode, or set "
            "`edge_block: null` in the encoder's configuration."
        )


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows of `values` that have the same index: (E, ...) to (size, ...).

    Half precision is summed in float32, the others in their own.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.new_zeros((size, *values.shape[1:]), dtype=dtype).index_add(
        0, index, values.to(dtype)
    )
