"""Pre-trained models that the package ships, by name: no download, no network.

``lamm.load("lamm-xs")``, ``lamm finetune --from lamm-xs`` and every other command that takes a
checkpoint know these names. A file or folder of the same name where the command runs comes first.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lamm.typing import PathLike

FOLDER = "pretrained"
"""In the package; one folder per model, with its weights, its configuration and its card."""


def shipped_models() -> dict[str, Path]:
    """Name and folder of each model that the package ships."""
    home = Path(str(files("lamm") / FOLDER))
    return {path.name: path for path in sorted(home.iterdir()) if path.is_dir()}


def checkpoint_path(name_or_path: PathLike) -> Path:
    """The path of a checkpoint: a shipped model's folder where it is one's name, else as it is."""
    path = Path(name_or_path).expanduser()
    if path.exists() or len(path.parts) != 1:
        return path
    return shipped_models().get(str(path), path)
