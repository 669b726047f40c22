"""Harmonics, rotations and grids on the sphere: by their definitions, and against e3nn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from awkward import random_rotation
from lamm.models.so3 import (
    POLAR,
    SHORTEST_EDGE,
    Layout,
    edge_wigner,
    grid_matrices,
    num_coefficients,
    spherical_harmonics,
    swap_matrix,
    wigner_of,
)

CPU = torch.device("cpu")
EXACT = {"rtol": 0, "atol": 1e-12}
Y = np.array([0.0, 1.0, 0.0])
AXES = np.concatenate((np.eye(3), -np.eye(3)))
LAYOUTS = [Layout(2, 1), Layout(2, 2), Layout(4, 2), Layout(6, 6), Layout(8, 3), Layout(3, 0)]


def directions(count: int = 20, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def awkward_edges() -> np.ndarray:
    """Along the axes, next to the poles, on both sides of where the frame changes; not unit."""
    edge = math.sqrt(1 - POLAR**2)
    close = [[s, sign, t] for sign in (1, -1) for s in (0, 1e-3, 1e-9, -1e-14) for t in (0, 1e-6)]
    change = [
        [edge * np.cos(a), sign * (POLAR + h), edge * np.sin(a)]
        for sign in (1, -1)
        for h in (1e-9, -1e-9, 1e-3, -1e-3)
        for a in (0.0, 0.4, 2.0)
    ]
    return 2.3 * np.concatenate((AXES, close, change, directions(40)))


@pytest.fixture
def o3():
    """e3nn, whose constants have the default precision."""
    module = pytest.importorskip("e3nn.o3")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield module
    torch.set_default_dtype(before)


def full(l_max: int) -> Layout:
    return Layout(l_max, l_max, by_degree=True)


def wigner(rotation: np.ndarray, l_max: int) -> np.ndarray:
    """All degrees, (M, M)."""
    blocks = [torch.from_numpy(wigner_of(rotation, degree)) for degree in range(l_max + 1)]
    return torch.block_diag(*blocks).numpy()


def frames(vectors: np.ndarray) -> np.ndarray:
    """(E, 3, 3) the rotation that each edge's Wigner matrix stands for: its l = 1 part, x y z."""
    return edge_wigner(torch.from_numpy(vectors), full(1))[:, 1:, 1:].numpy()


# --- layouts ---


def test_a_layout_counts_its_coefficients():
    layout = Layout(4, 2)
    assert layout.size == 5 + 2 * 4 + 2 * 3 == len(layout.degrees) == len(layout.orders)
    assert layout.degrees[:5].tolist() == [0, 1, 2, 3, 4]
    assert layout.orders.tolist() == [0] * 5 + [1] * 4 + [-1] * 4 + [2] * 3 + [-2] * 3
    assert [layout.count(m) for m in (0, 1, -1, 2)] == [5, 4, 4, 3]
    assert full(4).size == num_coefficients(4) == 25
    assert full(2).orders.tolist() == [0, -1, 0, 1, -2, -1, 0, 1, 2]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_only_cut_degrees_are_scaled_up(layout):
    for degree, rescale in zip(layout.degrees, layout.rescale, strict=True):
        kept, there = 2 * min(degree, layout.m_max) + 1, 2 * degree + 1
        assert rescale == pytest.approx(math.sqrt(there / kept), abs=1e-15)


# --- harmonics ---


def test_the_first_harmonics_are_their_polynomials():
    x, y, z = directions().T
    expected = [
        np.ones_like(x),
        *(math.sqrt(3) * np.stack((x, y, z))),
        math.sqrt(15) * x * z,
        math.sqrt(15) * x * y,
        math.sqrt(5) * (y**2 - (x**2 + z**2) / 2),
        math.sqrt(15) * y * z,
        math.sqrt(15) / 2 * (z**2 - x**2),
    ]
    result = spherical_harmonics(np.stack((x, y, z), axis=1), 2)
    np.testing.assert_allclose(result, np.stack(expected, axis=1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("l_max", [3, 6, 8])
def test_harmonics_are_orthogonal_and_of_mean_square_one(l_max):
    """By a rule that is exact for polynomials of degree 2 l_max: Gauss in y, equal steps around."""
    y, weights = np.polynomial.legendre.leggauss(l_max + 1)
    alpha = np.arange(2 * l_max + 1) * 2 * np.pi / (2 * l_max + 1)
    rho = np.sqrt(1 - y**2)[:, None]
    points = np.broadcast_arrays(rho * np.sin(alpha), y[:, None], rho * np.cos(alpha))
    values = spherical_harmonics(np.stack(points, axis=-1).reshape(-1, 3), l_max)
    mean = (values.T * np.repeat(weights / 2 / len(alpha), len(alpha))) @ values
    np.testing.assert_allclose(mean, np.eye(num_coefficients(l_max)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", range(9))
def test_harmonics_of_two_directions_depend_on_their_angle_alone(degree):
    """The addition theorem: sum over m of Y(a) Y(b) is (2l + 1) P_l(a . b)."""
    a, b = directions(15, 1), directions(15, 2)
    values = [spherical_harmonics(points, degree)[:, degree**2 :] for points in (a, b)]
    cosine = np.clip((a * b).sum(axis=1), -1, 1)
    expected = (2 * degree + 1) * np.polynomial.Legendre.basis(degree)(cosine)
    np.testing.assert_allclose((values[0] * values[1]).sum(axis=1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("l_max", [6, 8])
def test_harmonics_are_those_of_e3nn(o3, l_max):
    points = np.concatenate((directions(), AXES))
    degrees = list(range(l_max + 1))
    expected = o3.spherical_harmonics(
        degrees, torch.from_numpy(points), normalize=False, normalization="component"
    )
    np.testing.assert_allclose(spherical_harmonics(points, l_max), expected, rtol=0, atol=1e-11)


# --- rotations ---


@pytest.mark.parametrize("degree", range(9))
@pytest.mark.parametrize("handed", [1, -1], ids=["rotation", "reflection"])
def test_a_wigner_matrix_turns_harmonics(degree, handed):
    rotation, points = handed * random_rotation(degree), directions(30, 4)
    matrix = wigner_of(rotation, degree)
    before, after = (
        spherical_harmonics(one, degree)[:, degree**2 :] for one in (points, points @ rotation.T)
    )
    np.testing.assert_allclose(before @ matrix.T, after, rtol=0, atol=1e-11)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2 * degree + 1), rtol=0, atol=1e-12)


def test_wigner_matrices_multiply_as_rotations_do():
    first, second = random_rotation(1), random_rotation(2)
    together = wigner(first @ second, 5)
    np.testing.assert_allclose(wigner(first, 5) @ wigner(second, 5), together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", range(9))
def test_the_swap_is_its_own_inverse(degree):
    swap = swap_matrix(degree)
    np.testing.assert_allclose(swap, swap.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(swap @ swap, np.eye(2 * degree + 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", range(9))
def test_wigner_matrices_are_those_of_e3nn(o3, degree):
    rotation = random_rotation(degree)
    angles = o3.matrix_to_angles(torch.from_numpy(rotation))
    expected = o3.wigner_D(degree, *angles).numpy()
    np.testing.assert_allclose(wigner_of(rotation, degree), expected, rtol=0, atol=1e-11)


# --- edges ---


def test_an_edge_is_turned_to_the_polar_axis_by_a_rotation():
    vectors = awkward_edges()
    rotations = frames(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    along = np.einsum("exy,ey->ex", rotations, unit)
    np.testing.assert_allclose(along, np.broadcast_to(Y, along.shape), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("l_max", [2, 4, 6, 8])
def test_an_edges_matrices_of_all_degrees_are_of_one_rotation(l_max):
    vectors = awkward_edges()[::3]
    result = edge_wigner(torch.from_numpy(vectors), full(l_max)).numpy()
    expected = np.stack([wigner(rotation, l_max) for rotation in frames(vectors)])
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11)
    products = result @ result.transpose(0, 2, 1)
    identity = np.broadcast_to(np.eye(num_coefficients(l_max)), products.shape)
    np.testing.assert_allclose(products, identity, rtol=0, atol=1e-11)


def test_an_edges_rotation_adds_no_roll():
    """R_x(-beta) R_y(-alpha), on axes one further around where the edge is near the poles."""
    vectors = np.concatenate((directions(40, 3), AXES))
    cyclic = np.roll(np.eye(3), 1, axis=0)  # (x, y, z) -> (z, x, y)
    for vector, result in zip(vectors, frames(vectors), strict=True):
        turn = cyclic if abs(vector[1]) > POLAR else np.eye(3)
        x, y, z = turn @ vector
        rho = np.hypot(x, z)
        (c, s), (u, v) = (z / rho, x / rho), (y, rho)  # cosine and sine of alpha, of beta
        about_y = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        about_x = np.array([[1, 0, 0], [0, u, v], [0, -v, u]])
        np.testing.assert_allclose(result, about_x @ about_y @ turn, rtol=0, atol=1e-12)


@pytest.mark.parametrize("l_max", [2, 6])
def test_an_edges_matrices_are_those_of_e3nn(o3, l_max):
    vectors = awkward_edges()
    result = edge_wigner(torch.from_numpy(vectors), full(l_max)).numpy()
    for rotation, matrix in zip(frames(vectors), result, strict=True):
        rotation = torch.from_numpy(rotation)
        # e3nn finds angles from a cosine, whose inverse has half the digits at the poles, and
        # matrices by an exponential, whose digits depend on the processor: degree 1 shows both.
        angles = o3.matrix_to_angles(rotation)
        found = torch.stack((o3.angles_to_matrix(*angles), o3.wigner_D(1, *angles)))
        exact = (found - rotation).abs().max()
        assert exact < 1e-7
        blocks = [o3.wigner_D(degree, *angles) for degree in range(l_max + 1)]
        expected = torch.block_diag(*blocks).numpy()
        atol = 1e-10 + 3 * l_max * float(exact)
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_layout_picks_and_orders_rows(layout):
    vectors = torch.from_numpy(directions())
    everything = edge_wigner(vectors, full(layout.l_max))
    rows = layout.degrees * (layout.degrees + 1) + layout.orders
    assert_close(edge_wigner(vectors, layout), everything[:, rows], **EXACT)


def test_an_edge_has_the_same_frame_at_each_call_whatever_its_length():
    vectors = torch.from_numpy(awkward_edges())
    assert torch.equal(edge_wigner(vectors, Layout(4, 2)), edge_wigner(vectors, Layout(4, 2)))
    longer = edge_wigner(3.7 * vectors, Layout(4, 2))
    assert_close(longer, edge_wigner(vectors, Layout(4, 2)), rtol=0, atol=1e-6)
    away = torch.from_numpy(directions())
    assert_close(
        edge_wigner(3.7 * away, Layout(4, 2)), edge_wigner(away, Layout(4, 2)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("length", [0.0, 0.1 * SHORTEST_EDGE, 1e-300])
def test_an_edge_without_a_direction_stays_finite(length):
    vectors = torch.tensor([[length, 0.0, 0.0], [0.0, length, 0.0]], dtype=torch.float64)
    vectors.requires_grad_()
    result = edge_wigner(vectors, Layout(3, 2))
    assert result.isfinite().all()
    (gradient,) = torch.autograd.grad(result.square().sum() + result.sum(), vectors)
    assert gradient.isfinite().all()


class Operations(TorchDispatchMode):
    """The operations that are done."""

    def __init__(self) -> None:
        super().__init__()
        self.done: set[object] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.done.add(func)
        return func(*args, **(kwargs or {}))


def test_edges_wait_for_no_index_from_the_host():
    edges = torch.from_numpy(awkward_edges())
    edge_wigner(edges, Layout(2, 1))  # constants are copied once
    with Operations() as operations:
        edge_wigner(edges, Layout(2, 1))
    # Python numbers as an index are copied to a GPU, which the host waits for.
    assert torch.ops.aten.index.Tensor not in operations.done
    assert torch.ops.aten._to_copy.default not in operations.done


def test_no_edges_have_no_matrices():
    assert edge_wigner(torch.zeros(0, 3), Layout(4, 2)).shape == (0, 19, 25)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients_of_edges_matrices_are_finite_differences(check):
    """Of a sum with fixed weights for each edge; along the axes, beside them and between."""
    layout = Layout(3, 2)
    edges = np.concatenate((AXES, [[1e-4, 1, 0], [0, -1, 1e-7], [0.3, -0.5, 0.8]]))
    size = (len(edges), layout.size, num_coefficients(3))
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=size))

    def total(vectors):
        return (edge_wigner(vectors, layout) * weights).sum(dim=(1, 2))

    vectors = torch.tensor(1.7 * edges, requires_grad=True)
    assert check(total, vectors, atol=1e-6)


def test_float32_is_near_float64():
    vectors = torch.from_numpy(awkward_edges())
    single = edge_wigner(vectors.float(), Layout(6, 2))
    assert single.dtype == torch.float32
    kept = (vectors[:, 1].abs() / vectors.norm(dim=1) - POLAR).abs() > 1e-6  # the same frame
    expected = edge_wigner(vectors.float().double(), Layout(6, 2))
    assert_close(single[kept].double(), expected[kept], rtol=0, atol=1e-5)


# --- grids ---

GRIDS = [
    (Layout(2, 2), 10),
    (full(4), 18),
    (Layout(4, 2), 18),
    (Layout(6, 2), 14),
    (full(4), None),
    (Layout(4, 2), None),
    (full(2), 6),
]
grids = pytest.mark.parametrize(("layout", "resolution"), GRIDS, ids=str)


def on_grid(layout, resolution):
    return grid_matrices(layout, resolution, torch.float64, CPU)


@grids
def test_coefficients_come_back_from_the_grid(layout, resolution):
    to_grid, from_grid = on_grid(layout, resolution)
    # A cut degree is scaled up on both ways, as FAIR-Chem has it.
    expected = torch.from_numpy(np.diag(layout.rescale**2))
    assert_close(from_grid @ to_grid, expected, **EXACT)


@grids
def test_grid_values_are_sums_of_harmonics(layout, resolution):
    to_grid, _ = on_grid(layout, resolution)
    l_max = layout.l_max
    betas = resolution or 2 * (l_max + 1)
    beta = (np.arange(betas) + 0.5) * np.pi / betas
    alphas = len(to_grid) // betas
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=layout.size)
    values = (to_grid.numpy() @ coefficients).reshape(betas, alphas)
    for i, k in [(0, 0), (1, alphas - 1), (betas - 1, 2), (betas // 2, 1)]:
        alpha = 2 * np.pi * k / alphas
        sine = np.sin(beta[i])
        point = np.array([[sine * np.sin(alpha), np.cos(beta[i]), sine * np.cos(alpha)]])
        harmonics = spherical_harmonics(point, l_max)[0]
        total = 0.0
        for x, degree, m, rescale in zip(
            coefficients, layout.degrees, layout.orders, layout.rescale, strict=True
        ):
            scale = math.sqrt((2 * degree + 1) * (l_max + 1))
            total += rescale * x * harmonics[degree * (degree + 1) + m] / scale
        assert values[i, k] == pytest.approx(total, abs=1e-12)


@grids
def test_grids_are_those_of_e3nn(o3, layout, resolution):
    l_max = layout.l_max
    if resolution is None:
        steps = (2 * (l_max + 1), 2 * layout.m_max + (3 if l_max == layout.m_max else 1))
    else:
        steps = (resolution, resolution)
    if steps[1] < 2 * l_max + 1:
        pytest.skip("e3nn wants a grid that holds every order")
    options = {"normalization": "component", "dtype": torch.float64}
    to, back = o3.ToS2Grid(l_max, steps, **options), o3.FromS2Grid(steps, l_max, **options)
    theirs = torch.einsum("mbi,am->bai", to.shb, to.sha).flatten(0, 1)
    ours_to, ours_back = on_grid(layout, resolution)
    places = layout.degrees * (layout.degrees + 1) + layout.orders
    rescale = torch.from_numpy(layout.rescale)
    assert_close(ours_to, theirs[:, places] * rescale, **EXACT)
    theirs = torch.einsum("am,mbi->iba", back.sha, back.shb).flatten(1)
    assert_close(ours_back, theirs[places] * rescale[:, None], **EXACT)


def test_grids_are_of_the_precision_that_is_asked_for():
    for dtype in (torch.float32, torch.float64):
        assert all(one.dtype == dtype for one in grid_matrices(Layout(2, 1), 10, dtype, CPU))


def test_a_grid_made_for_inference_can_be_trained_with():
    layout = Layout(3, 1)
    with torch.inference_mode():
        to_grid, _ = grid_matrices(layout, 22, torch.float64, CPU)
        wigner = edge_wigner(torch.randn(3, 3, dtype=torch.float64), Layout(7, 1))
        assert wigner.is_inference()
    assert not to_grid.is_inference()
    x = torch.randn(layout.size, 2, dtype=torch.float64, requires_grad=True)
    (to_grid @ x).square().sum().backward()
    vectors = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    edge_wigner(vectors, Layout(7, 1)).square().sum().backward()
    assert vectors.grad.isfinite().all()


# --- the constants of the original ---


@pytest.fixture(scope="module")
def constants(shared):
    return np.load(shared / "oracle" / "so3_constants.npz")


def test_constants_are_the_originals(constants):
    for degree in range(7):
        matrix = constants[f"Jd/{degree}"]
        np.testing.assert_allclose(swap_matrix(degree), matrix, rtol=0, atol=1e-12)
        harmonics = spherical_harmonics(constants["sh_points"], degree)[:, degree**2 :]
        expected = constants[f"sh_component/{degree}"]
        np.testing.assert_allclose(harmonics, expected, rtol=0, atol=1e-11)
    for rotation, expected in zip(constants["edge_rot_mat"], constants["wigner_l4"], strict=True):
        np.testing.assert_allclose(wigner(rotation, 4), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("l_max", "m_max"), [(2, 2), (4, 2), (4, 4)])
def test_grids_are_the_originals(constants, l_max, m_max):
    name = f"{l_max}_{m_max}_18"
    layout = Layout(l_max, m_max, by_degree=True)
    to_grid, from_grid = on_grid(layout, 18)
    theirs = constants[f"to_grid/{name}"].reshape(324, -1)
    np.testing.assert_allclose(to_grid, theirs, rtol=0, atol=1e-6)
    theirs = constants[f"from_grid/{name}"].reshape(324, -1)
    np.testing.assert_allclose(from_grid.T, theirs, rtol=0, atol=1e-6)


def test_the_order_in_an_edges_frame_is_the_originals(constants):
    layout = Layout(4, 2)
    by_degree = Layout(4, 2, by_degree=True)
    np.testing.assert_array_equal(by_degree.degrees, constants["l_harmonic/4_2"])
    assert set(map(tuple, np.stack((layout.degrees, layout.orders), 1).tolist())) == set(
        map(tuple, np.stack((by_degree.degrees, by_degree.orders), 1).tolist())
    )
    permutation = constants["to_m/4_2"]
    np.testing.assert_array_equal(permutation @ by_degree.degrees, layout.degrees)
    np.testing.assert_array_equal(permutation @ by_degree.orders, layout.orders)
