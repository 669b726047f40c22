"""An interactive page of the map: a click on a point shows the atom in its structure.

The viewer is chemiscope (Fraux et al. 2020, BSD-3-Clause). Its Python package ships the whole
application as one JavaScript file, which is written into the page together with the data, so that
the page opens by a double click, without a server and without a network.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float

from lamm.errors import ConfigError
from lamm.evaluate.extras import CHEMISCOPE, require_extras
from lamm.evaluate.feature_map import group_name, group_of
from lamm.evaluate.features import AtomFeatures
from lamm.files import write_text

CUTOFF = 4.0
"""Å around the chosen atom that the viewer draws as its environment."""
_SCRIPT = "sphinx/static/chemiscope.min.js"


def require_chemiscope() -> None:
    """Stop where chemiscope or its application isn't there.

    Raises:
        ConfigError: it isn't.
    """
    require_extras(CHEMISCOPE)
    if not (files("chemiscope") / _SCRIPT).is_file():
        raise ConfigError(
            f"this version of chemiscope has no file {_SCRIPT}, which holds its viewer.\n"
            "  Install chemiscope 1.1, or leave the page out with --no-page."
        )


def write_chemiscope_page(
    path: Path,
    atoms: AtomFeatures,
    projections: Mapping[str, Float[np.ndarray, "n 2"]],
    title: str,
    description: str = "",
) -> Path:
    """Write the page.

    Args:
        path: the HTML file.
        atoms: the sampled atoms.
        projections: by name; the first is shown when the page opens.
        title: of the page.
        description: a sentence below it.

    Raises:
        ConfigError: chemiscope isn't installed.
    """
    data = chemiscope_data(atoms, projections, title, description)
    script = (files("chemiscope") / _SCRIPT).read_text(encoding="utf-8")
    page = _PAGE
    for mark, text in (
        ("@TITLE@", html.escape(title)),
        ("@DESCRIPTION@", html.escape(description)),
        ("@DATA@", _json(data)),
        ("@SCRIPT@", script.replace("</script", "<\\/script")),
    ):
        page = page.replace(mark, text)
    write_text(path, page)
    return path


def chemiscope_data(
    atoms: AtomFeatures,
    projections: Mapping[str, Float[np.ndarray, "n 2"]],
    title: str,
    description: str = "",
) -> dict[str, Any]:
    """Structures, the sampled atoms as environments, their properties, as the viewer reads them.

    Raises:
        ConfigError: chemiscope isn't installed.
    """
    require_chemiscope()
    import chemiscope

    # Chemiscope wants environments by structure, then atom: the order in which they were drawn.
    environments = [
        (int(s), int(a), CUTOFF) for s, a in zip(atoms.structure, atoms.atom, strict=True)
    ]
    properties: dict[str, Any] = {}

    def add(name: str, values: list[Any], text: str, units: str = "") -> None:
        entry = {"target": "atom", "values": values, "description": text}
        properties[name] = entry | ({"units": units} if units else {})

    for name, points in projections.items():
        for axis in range(2):
            add(f"{name} {axis + 1}", points[:, axis].tolist(), f"axis {axis + 1} of {name}")
    numbers = atoms.element.tolist()
    add("subset", [atoms.subsets[k] for k in atoms.subset], "subset of the joint data set")
    add("subset number", atoms.subset.tolist(), "its place among the subsets")
    add("element", [chemical_symbols[z] for z in numbers], "chemical symbol")
    add("atomic number", numbers, "atomic number")
    add("group", [group_name(group_of(z)) for z in numbers], "group of the periodic table")
    ids = [structure.id or structure.origin for structure in atoms.structures]
    add("structure id", [ids[k] for k in atoms.structure], "id in its store")
    if np.isfinite(atoms.energy_error).any():
        add("energy error", atoms.energy_error.tolist(), "prediction minus label", "meV/atom")
    first = next(iter(projections))
    settings = {
        "map": {
            "x": {"property": f"{first} 1"},
            "y": {"property": f"{first} 2"},
            "color": {"property": "atomic number"},
            "symbol": "subset",
            "size": {"factor": 25},
        },
        "structure": [{"environments": {"activated": True, "cutoff": CUTOFF}}],
    }
    result: dict[str, Any] = chemiscope.create_input(
        structures=[structure.to_atoms() for structure in atoms.structures],
        properties=properties,
        environments=environments,
        settings=settings,
        metadata={"name": title, "description": description},
    )
    return result


def _json(value: dict[str, Any]) -> str:
    """JSON that may stand in a page; a number that isn't there is null, and NaN to the viewer."""

    def nulls(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: nulls(item) for key, item in part.items()}
        if isinstance(part, list):
            return [nulls(item) for item in part]
        return None if isinstance(part, float) and not np.isfinite(part) else part

    return json.dumps(nulls(value), allow_nan=False).replace("</", "<\\/")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>@TITLE@</title>
<style>
html, body { height: 100%; margin: 0; font-family: sans-serif; color: #1c1c1c; }
body { display: flex; flex-direction: column; }
header { padding: 0.6rem 1rem 0.2rem; }
h1 { font-size: 1.1rem; margin: 0; }
p { margin: 0.2rem 0; font-size: 0.85rem; color: #555; }
main { flex: 1; display: flex; min-height: 0; padding: 0 0.5rem 0.5rem; gap: 0.5rem; }
#left { flex: 3; display: flex; flex-direction: column; min-width: 0; }
#right { flex: 2; display: flex; flex-direction: column; min-width: 0; }
#map, #structure { flex: 1; min-height: 0; position: relative; }
#meta { display: none; }
#message { color: #a00; white-space: pre-wrap; padding: 0 1rem; }
</style>
</head>
<body>
<header><h1>@TITLE@</h1><p>@DESCRIPTION@ Viewer: <a href="https://chemiscope.org">chemiscope</a>
(BSD-3-Clause), contained in this file.</p></header>
<div id="message"></div>
<main>
<div id="left"><div id="meta"></div><div id="map"></div></div>
<div id="right"><div id="structure"></div><div id="info"></div></div>
</main>
<script type="application/json" id="data">@DATA@</script>
<script>@SCRIPT@</script>
<script>
const say = (text) => { document.getElementById("message").textContent = text; };
const warnings = new Chemiscope.Warnings();
warnings.addHandler((text) => console.warn(text));
Chemiscope.DefaultVisualizer.load(
  { map: "map", info: "info", meta: "meta", structure: "structure" },
  JSON.parse(document.getElementById("data").textContent, (_, v) => (v === null ? NaN : v)),
  warnings
).then(() => { document.body.dataset.drawn = "yes"; }, (error) => say(String(error)));
</script>
</body>
</html>
"""
