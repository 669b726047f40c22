"""Work in blocks gives what plain operations give: values, gradients, precision."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lamm.models.blockwise import Into, Rows, blockwise
from lamm.models.so2 import SO2Convolution
from lamm.models.so3 import Layout

EXACT = {"rtol": 0, "atol": 1e-12}
LAYOUT = Layout(2, 1)
ROWS, ATOMS, WIDTH = 11, 5, 7 * 3
blocks = pytest.mark.parametrize("block", [1, 4, 11, 100])


def tensors(rows=ROWS, dtype=torch.float64):
    """Values by atom, values by row, a matrix of all rows; and the product's weights."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(ATOMS, WIDTH), (rows, WIDTH), (WIDTH, WIDTH)]
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    torch.manual_seed(1)
    weights = SO2Convolution(3, 2, LAYOUT, extra=1).double().weights()
    return [one.detach().to(dtype).requires_grad_() for one in (*drawn, *weights)]


def index(rows=ROWS, seed=2):
    """Atoms of the rows; one of them, the last, is in no row."""
    return torch.randint(0, ATOMS - 1, (rows,), generator=torch.Generator().manual_seed(seed))


def work(x, y, matrix):
    return torch.sin(x @ matrix) * y


def apply(inputs, block, *, product=False, into=None, rows=ROWS):
    atoms, own, matrix, *weights = inputs
    return blockwise(
        work,
        (Rows(atoms, index(rows)), Rows(own)),
        (matrix,),
        block=block,
        product=weights if product else (),
        into=into,
    )


def gradients(result, inputs):
    """Of a sum with fixed weights."""
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(3)).to(result.dtype)
    wanted = [one for one in inputs if one.requires_grad]
    return torch.autograd.grad(result, wanted, grad, allow_unused=True)


@blocks
@pytest.mark.parametrize("product", [False, True], ids=["plain", "product"])
@pytest.mark.parametrize("summed", [False, True], ids=["rows", "sums"])
def test_blocks_change_no_value_and_no_gradient(block, product, summed):
    into = Into(index(seed=4), ATOMS) if summed else None
    results, grads = [], []
    for size in (None, block):
        inputs = tensors()
        results.append(apply(inputs, size, product=product, into=into))
        grads.append(gradients(results[-1], inputs if product else inputs[:3]))
    assert_close(results[1], results[0], **EXACT)
    for one, other in zip(*grads, strict=True):
        assert_close(one, other, **EXACT)


def test_the_result_is_the_function_of_the_indexed_rows():
    inputs = tensors()
    atoms, own, matrix, *_ = inputs
    expected = work(atoms[index()], own, matrix)
    for block in (None, 3):
        assert_close(apply(inputs, block), expected, **EXACT)
    where = index(seed=4)
    sums = torch.stack([expected[where == atom].sum(dim=0) for atom in range(ATOMS)])
    for block in (None, 3):
        assert_close(apply(inputs, block, into=Into(where, ATOMS)), sums, **EXACT)


@pytest.mark.parametrize("frozen", range(4))
@pytest.mark.parametrize("product", [False, True], ids=["plain", "product"])
def test_inputs_without_a_gradient_get_none(frozen, product):
    grads = []
    for block in (None, 4):
        inputs = tensors() if product else tensors()[:3]
        inputs[min(frozen, len(inputs) - 1)].requires_grad_(False)
        grads.append(gradients(apply(inputs, block, product=product), inputs))
    for one, other in zip(*grads, strict=True):
        assert_close(one, other, **EXACT)


def test_only_the_product_may_be_learnt():
    """As where the encoder is frozen up to a layer."""
    grads = []
    for block in (None, 4):
        inputs = tensors()
        for one in inputs[:3]:
            one.requires_grad_(False)
        grads.append(gradients(apply(inputs, block, product=True), inputs))
    for one, other in zip(*grads, strict=True):
        assert_close(one, other, **EXACT)


@pytest.mark.parametrize("product", [False, True], ids=["plain", "product"])
@pytest.mark.parametrize("summed", [False, True], ids=["rows", "sums"])
def test_no_rows_give_nothing_and_zero_gradients(product, summed):
    for block in (None, 4):
        inputs = tensors(rows=0)
        into = Into(index(0), ATOMS) if summed else None
        result = apply(inputs, block, product=product, into=into, rows=0)
        assert result.shape == (ATOMS if summed else 0, 1 + 7 * 2 if product else WIDTH)
        assert (result == 0).all()
        for one in gradients(result, inputs if product else inputs[:3]):
            assert (one == 0).all()


@pytest.mark.parametrize("block", [None, 4])
def test_a_second_derivative_is_right_or_refused(block):
    """Also where another term carries a graph, which would hide that one is missing."""

    def second(block):
        inputs = tensors()
        result = apply(inputs, block, product=True)
        (grad,) = torch.autograd.grad(result.square().sum(), inputs[0], create_graph=True)
        total = grad.square().sum() + inputs[0].pow(3).sum()
        return torch.autograd.grad(total, inputs[0])[0]

    if block is None:
        assert second(None).isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="edge_block"):
            second(block)


@pytest.mark.parametrize("product", [False, True], ids=["plain", "product"])
@pytest.mark.parametrize("summed", [False, True], ids=["rows", "sums"])
def test_blocks_follow_mixed_precision(product, summed):
    into = Into(index(seed=4), ATOMS) if summed else None
    results, grads = [], []
    for block, low in ((None, False), (None, True), (4, True)):
        inputs = tensors(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            results.append(apply(inputs, block, product=product, into=into))
        # The gradient is taken outside, as in training.
        grads.append(gradients(results[-1], inputs if product else inputs[:3]))
    assert results[2].dtype == results[1].dtype
    if summed:
        assert results[2].dtype == torch.float32
    for plain, blocked in ((results[0], results[2]), *zip(grads[0], grads[2], strict=True)):
        assert blocked.dtype == plain.dtype or not summed
        assert (blocked - plain).abs().max() < 0.06 * plain.abs().max() + 0.02
