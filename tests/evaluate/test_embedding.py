"""Features of sampled atoms, their projections, their measures and the map of Fig. 8."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.data import atomic_numbers
from matplotlib.patches import Ellipse

from lamm.errors import ConfigError, DataError
from lamm.evaluate import feature_map as maps
from lamm.evaluate.chemiscope_page import chemiscope_data, require_chemiscope, write_chemiscope_page
from lamm.evaluate.features import AtomFeatures, AtomSource, atom_features, sample_atoms
from lamm.evaluate.predict import structure_of
from lamm.evaluate.projection import (
    principal_axes,
    separation,
    subset_separation_within_elements,
    umap_projection,
)
from lamm.keyed import key_of
from lamm.models.potential import build
from lamm.structure import Structure
from small import SMALL_MODELS, small_structure


def source(name: str, count: int = 6, seed: int = 0) -> AtomSource:
    rng = np.random.default_rng(seed)
    structures = [small_structure(rng, f"{name}/{k}") for k in range(count)]
    sizes = np.array([one.num_atoms for one in structures])
    return AtomSource(name, sizes, structures.__getitem__)


@pytest.fixture(scope="module")
def sample() -> AtomFeatures:
    model = build(SMALL_MODELS["painn"], ["a", "b"], seed=0).eval()
    return atom_features(model, [source("a"), source("other", seed=1)], atoms_per_subset=20)


def test_every_atom_is_drawn_equally_often():
    sizes = np.array([1, 4, 2, 3])
    drawn = np.zeros(10)
    for seed in range(2000):
        structure, atom = sample_atoms(sizes, 3, key_of("test", seed))
        places = (np.cumsum(sizes) - sizes)[structure] + atom
        assert len(set(places.tolist())) == 3
        drawn[places] += 1
    assert np.abs(drawn / 600 - 1).max() < 0.17  # four standard deviations


def test_all_atoms_are_taken_where_there_are_no_more():
    structure, atom = sample_atoms(np.array([2, 3]), 100, 7)
    assert structure.tolist() == [0, 0, 1, 1, 1]
    assert atom.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(("name", "bound"), [("painn", 2e-6), ("equiformer_v2", 1e-3)])
def test_features_of_a_structure_do_not_turn_with_it(name: str, bound: float):
    """EquiformerV2 to the error of its coarse grid on the sphere, 3e-4 of the largest feature."""
    model = build(SMALL_MODELS[name], ["a"], seed=0).eval().double()
    atoms = molecule("CH3CH2OH")
    turned = atoms.copy()
    turned.rotate(90, "z")
    both = [structure_of(atoms), structure_of(turned)]
    one, two = (
        atom_features(model, [AtomSource("a", np.array([9]), lambda _, s=s: s)]).features
        for s in both
    )
    assert one.shape == (9, model.config.encoder.channels)
    assert np.abs(one - two).max() < bound * np.abs(one).max()
    assert np.abs(one - one[0]).max() > 1e-3


def test_a_feature_belongs_to_the_atom_it_is_listed_with(sample: AtomFeatures):
    model = build(SMALL_MODELS["painn"], ["a", "b"], seed=0).eval()
    assert len(sample) == 40
    assert sample.subsets == ("a", "other")
    k = 33
    alone = sample.structures[sample.structure[k]]
    whole = atom_features(model, [AtomSource("x", np.array([alone.num_atoms]), lambda _: alone)])
    assert np.allclose(whole.features[sample.atom[k]], sample.features[k], atol=1e-5)
    assert sample.element[k] == alone.atomic_numbers[sample.atom[k]]


def test_the_energy_error_is_that_of_the_output_with_the_subsets_name(sample: AtomFeatures):
    model = build(SMALL_MODELS["painn"], ["a", "b"], seed=0).eval()
    from lamm.evaluate.predict import predict

    first = sample.structures[0]
    (prediction,) = predict(model, [first], "a")
    expected = 1000 * (prediction.energy - first.energy) / first.num_atoms
    assert sample.energy_error[0] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(sample.energy_error[sample.subset == 1]).all()


def test_a_broken_model_is_named():
    model = build(SMALL_MODELS["painn"], ["a"], seed=0).eval()
    with torch.no_grad():
        model.encoder.embedding.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"'a/0'.*not finite"):
        atom_features(model, [source("a")])


def test_an_empty_subset_is_named():
    model = build(SMALL_MODELS["painn"], ["a"], seed=0).eval()
    with pytest.raises(DataError, match="subset 'empty'"):
        atom_features(model, [AtomSource("empty", np.zeros(0, dtype=int), lambda _: Structure)])


def test_principal_axes_are_those_of_the_singular_value_decomposition():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(60, 5)) * [5, 3, 1, 0.5, 0.1] + 7).astype(np.float32)
    result = principal_axes(features)
    left, values, _ = np.linalg.svd(features.astype(float) - features.mean(axis=0, dtype=float))
    assert np.allclose(result.variance_share, values**2 / (values**2).sum())
    assert np.allclose(np.abs(result.projection), np.abs(left[:, :2] * values[:2]), atol=1e-5)


def test_separation_of_two_far_groups_is_complete_and_of_dealt_labels_is_none():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    far = rng.normal(size=(100, 3)) + 100.0 * labels[:, None]
    apart = separation(far, labels)
    assert apart.purity == 1.0
    assert apart.silhouette > 0.95
    assert apart.chance == pytest.approx(49 / 99)
    mixed = separation(rng.normal(size=(100, 3)), labels)
    assert abs(mixed.purity - mixed.chance) < 0.1
    assert abs(mixed.silhouette) < 0.05


def test_silhouettes_by_hand():
    """On a line at 0, 1 and 4: a = 1, b = 4 and a = 1, b = 3; a label alone counts as zero."""
    result = separation(np.array([[0.0], [1.0], [4.0]]), np.array([5, 5, 9]), neighbors=1)
    assert result.silhouette == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert result.purity == pytest.approx(2 / 3)


def test_elements_alone_do_not_count_as_separation_within_elements():
    """Subsets of different elements are apart; within the shared element they are mixed."""
    rng = np.random.default_rng(1)
    element = np.repeat([1, 6, 8], 60)
    subset = np.concatenate([np.arange(60) % 2, np.zeros(60, int), np.ones(60, int)])
    features = rng.normal(size=(180, 3)) + 50.0 * element[:, None]
    assert separation(features, subset).purity > 0.8
    within = subset_separation_within_elements(features, subset, element)
    assert abs(within.purity - within.chance) < 0.12
    none = subset_separation_within_elements(features, element, element)
    assert np.isnan(none.purity)


@pytest.mark.parametrize(
    ("symbol", "group"), [("H", 1), ("He", 18), ("C", 14), ("Fe", 8), ("Lu", 3), ("La", 19)]
)
def test_groups_of_the_periodic_table(symbol: str, group: int):
    assert maps.group_of(atomic_numbers[symbol]) == group


def test_the_ellipse_has_the_moments_of_its_points():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(100_000, 2)) * [3.0, 1.0]
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre, width, height, degrees = maps.confidence_ellipse(points @ turn.T + [5, -2])
    assert np.allclose(centre, [5, -2], atol=0.05)
    assert (width, height) == pytest.approx((2 * 1.5 * 3, 2 * 1.5 * 1), rel=0.02)
    assert degrees % 180 == pytest.approx(30, abs=1)


def test_names_are_pushed_apart():
    places = np.tile([[0.5, 0.5]], (9, 1)) + np.arange(9)[:, None] * 1e-3
    box = np.array([0.06, 0.05])
    moved = maps.apart(places, box)
    for i in range(9):
        for j in range(i):
            assert (np.abs(moved[i] - moved[j]) >= box - 1e-6).any()


def test_the_map_has_four_panels_with_all_atoms_and_an_ellipse_per_frequent_element(
    sample: AtomFeatures,
):
    points = principal_axes(sample.features).projection
    figure = maps.feature_map(points, sample, ("PCA 1", "PCA 2"))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title[:3] for title in titles] == ["(a)", "(b)", "(c)", "(d)"]
    assert len(figure.axes[0].collections[0].get_offsets()) == len(sample)
    ellipses = [patch for patch in figure.axes[3].patches if isinstance(patch, Ellipse)]
    _, count = np.unique(sample.element, return_counts=True)
    assert len(ellipses) == (count >= maps.FEWEST_FOR_ELLIPSE).sum() > 0
    assert {text.get_text() for text in figure.axes[3].texts} == {"H", "C", "O"}
    rows = maps.map_rows(sample, {"pca": points})
    assert len(rows) == len(sample)
    assert rows[-1]["energy_error_mev_per_atom"] == ""
    assert float(rows[3]["pca_2"]) == pytest.approx(points[3, 1], rel=1e-5)


@pytest.mark.parametrize(
    ("call", "package", "instead"),
    [
        (lambda: umap_projection(np.zeros((9, 2))), "umap-learn", "--projection pca"),
        (require_chemiscope, "chemiscope", "--no-page"),
    ],
    ids=["umap", "chemiscope"],
)
def test_an_absent_extra_is_one_clear_message(
    call, package: str, instead: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=package) as caught:
        call()
    assert "lamm[map]" in str(caught.value)
    assert instead in str(caught.value)


def test_umap_gives_the_same_map_for_the_same_seed():
    pytest.importorskip("umap")
    features = np.random.default_rng(0).normal(size=(40, 6))
    first, again = (umap_projection(features, seed=3) for _ in range(2))
    assert first.shape == (40, 2)
    assert np.array_equal(first, again)


def test_the_page_holds_viewer_and_data_and_asks_for_nothing_else(sample: AtomFeatures, tmp_path):
    pytest.importorskip("chemiscope")
    points = {"pca": principal_axes(sample.features).projection}
    data = chemiscope_data(sample, points, "title")
    assert len(data["structures"]) == len(sample.structures)
    assert [(e["structure"], e["center"]) for e in data["environments"]] == list(
        zip(sample.structure.tolist(), sample.atom.tolist(), strict=True)
    )
    assert data["properties"]["pca 1"]["values"] == points["pca"][:, 0].tolist()
    text = write_chemiscope_page(tmp_path / "page.html", sample, points, "<b>").read_text()
    assert "<title>&lt;b&gt;</title>" in text
    assert "<script src" not in text
    assert "<link" not in text.split("<script")[0]
    start = text.index('id="data">') + len('id="data">')
    inside = json.loads(text[start : text.index("</script>", start)])
    assert inside["properties"]["energy error"]["values"][-1] is None
