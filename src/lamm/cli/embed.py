"""``lamm embed``: how a model sees atoms, as arrays, as the map of Fig. 8 and as a page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from lamm.cli import common
from lamm.cli.common import ForceFlag, JsonFlag
from lamm.cli.structures import (
    Checkpoint,
    Device,
    Precision,
    check_device,
    check_folder,
    counting,
    own_configuration,
    read_atoms,
    say_table,
)
from lamm.errors import ConfigError, nearest_names

if TYPE_CHECKING:
    from lamm.evaluate.features import AtomSource
    from lamm.models.potential import Potential


class Projection(StrEnum):
    """Which maps to draw."""

    umap = "umap"
    pca = "pca"
    both = "both"


def embed(
    checkpoint: Checkpoint,
    to: Annotated[Path, typer.Option("--to", help="Folder for the files.")],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...",
            help="Stores, files of structures, NAME=PATH for either, or one configuration; the "
            "subsets of the checkpoint's own run where left out.",
        ),
    ] = None,
    atoms: Annotated[int, typer.Option(min=1, help="Atoms drawn from each subset.")] = 1000,
    projection: Annotated[Projection, typer.Option(help="Which maps to draw.")] = Projection.both,
    neighbors: Annotated[int, typer.Option(min=2, help="Neighbours of an atom in UMAP.")] = 15,
    min_distance: Annotated[
        float, typer.Option(min=0, max=1, help="How close points may come in UMAP.")
    ] = 0.1,
    elements: Annotated[
        str | None, typer.Option(help="Elements named in panel (d), as H,C,Cu; else the commonest.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also show IS2RE subsets, which the paper leaves out.")
    ] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Write the page.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of atoms and of UMAP.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch at most.")] = 32,
    device: Device = "cpu",
    dtype: Precision = "float32",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Map the representations of atoms (Fig. 8): figures, arrays, measures, interactive page."""
    from lamm.evaluate.chemiscope_page import require_chemiscope
    from lamm.evaluate.embedding import embedding_files, measures, project, write_embedding
    from lamm.evaluate.extras import CHEMISCOPE, UMAP, require_extras
    from lamm.evaluate.features import atom_features
    from lamm.evaluate.style import subset_colours

    common.start_logging(quiet=as_json)
    names = ["umap", "pca"] if projection is Projection.both else [projection.value]
    symbols = _symbols(elements)
    check_folder(to, embedding_files(names, page), force)
    require_extras(*([UMAP] if "umap" in names else []), *([CHEMISCOPE] if page else []))
    if page:
        require_chemiscope()
    model = _load(checkpoint, device, dtype)
    sources, known = _sources(checkpoint, data or [], everything)
    used = sum(min(atoms, int(source.num_atoms.sum())) for source in sources)
    if used < 4:
        raise ConfigError(f"{used} atoms in all are too few for a map: expected 4 or more.")
    expected = sum(min(atoms, len(source.num_atoms)) for source in sources)
    with counting("computing features", expected, "structures", visible=not as_json) as show:
        sample = atom_features(
            model,
            sources,
            atoms_per_subset=atoms,
            seed=seed,
            batch_size=batch_size,
            progress=show,
        )
    projections = project(sample, names, neighbors=neighbors, min_distance=min_distance, seed=seed)
    numbers = measures(sample)
    settings = {
        "checkpoint": str(checkpoint),
        "data": data or [],
        "encoder": model.config.encoder.name,
        "atoms_per_subset": atoms,
        "seed": seed,
        "umap": {"neighbors": neighbors, "min_distance": min_distance},
        "dtype": dtype,
        "device": device,
    }
    paths = write_embedding(
        to,
        sample,
        projections,
        numbers,
        settings,
        title=f"Atoms in the features of {checkpoint.name} ({model.config.encoder.name})",
        colours=subset_colours(known),
        elements=symbols,
        with_page=page,
    )
    if as_json:
        files = {path.name: str(path) for path in paths}
        common.emit_json({"to": to, "files": files, "atoms": len(sample), "measures": numbers})
        return
    _say(numbers, len(sample), len(sources), to / paths[-1].name)


def _say(numbers: dict[str, Any], count: int, subsets: int, path: Path) -> None:
    share = 100 * sum(numbers["pca_variance_share"][:2])
    common.say(f"{count:,} atoms of {subsets} subsets; two axes of PCA hold {share:.0f}%")
    rows = []
    for key, title in (
        ("element", "element"),
        ("subset", "subset"),
        ("subset_within_element", "subset, atoms of one element"),
    ):
        values = [numbers[key][name] for name in ("purity", "chance", "silhouette")]
        rows.append((title, *("-" if value is None else f"{value:.2f}" for value in values)))
    say_table(("separation by", "neighbours alike", "by chance", "silhouette"), rows)
    common.say(f"-> {path}")


def _symbols(text: str | None) -> list[str] | None:
    from ase.data import chemical_symbols

    if text is None:
        return None
    symbols = [part.strip() for part in text.split(",") if part.strip()]
    for symbol in symbols:
        if symbol not in chemical_symbols[1:]:
            raise ConfigError(
                f"--elements {text}: '{symbol}' is no chemical element. "
                "Give symbols such as H,C,Cu."
            )
    return symbols


def _load(checkpoint: Path, device: str, dtype: str) -> Potential:
    import torch

    from lamm.train.checkpoint import load

    precisions = {"float32": torch.float32, "float64": torch.float64}
    if dtype not in precisions:
        raise ConfigError(f"dtype is '{dtype}'. {nearest_names(dtype, precisions)}")
    return load(checkpoint, device=check_device(device)).to(precisions[dtype])


def _sources(
    checkpoint: Path, data: list[str], everything: bool
) -> tuple[list[AtomSource], tuple[str, ...]]:
    """The subsets to show, and the names of all that there are, in their order.

    Raises:
        LaMMError: nothing there, unreadable, or two of one name.
    """
    if not data:
        instead = "stores, files of structures or a configuration"
        return _configured(own_configuration(checkpoint, instead), everything)
    if len(data) == 1 and data[0].endswith((".yaml", ".yml")):
        return _configured(Path(data[0]), everything)
    sources: list[AtomSource] = []
    for text in data:
        name, equals, path = text.partition("=")
        source = _store_or_file(path, name) if equals else _store_or_file(text, None)
        if source.name in (one.name for one in sources):
            raise ConfigError(
                f"two subsets are named '{source.name}'. Name them yourself, as NAME={text}."
            )
        sources.append(source)
    return sources, tuple(source.name for source in sources)


def _configured(path: Path, everything: bool) -> tuple[list[AtomSource], tuple[str, ...]]:
    from lamm.cli.figures import read_data_config
    from lamm.data.joint import JointDataset
    from lamm.evaluate.dataset_figures import RELAXED_TASKS
    from lamm.evaluate.features import source_of_rows

    joint = JointDataset(read_data_config(path))
    subsets = joint.subsets
    others = [one for one in subsets if one.store.card.task not in RELAXED_TASKS]
    shown = subsets if everything or not others else others
    return [source_of_rows(one.name, one.store, one.all_rows()) for one in shown], joint.names


def _store_or_file(text: str, name: str | None) -> AtomSource:
    from lamm.data.joint import store_path
    from lamm.data.store import Store
    from lamm.evaluate.features import AtomSource
    from lamm.evaluate.predict import structure_of

    path = store_path(text)
    if path.is_file():
        structures = [
            structure_of(one, f"{path}, structure {k}") for k, one in enumerate(read_atoms(path))
        ]
        sizes = np.array([one.num_atoms for one in structures], dtype=np.int64)
        return AtomSource(name or path.stem, sizes, structures.__getitem__)
    store = Store.open(path)
    return AtomSource(name or path.name, store.index.num_atoms, lambda number: store[number])
