"""Imports follow the flow of the data, and importing the package is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import lamm

SOURCE = Path(lamm.__file__).parent
FORBIDDEN = {
    "models": ("data", "train", "evaluate", "calculators", "balance"),
    "graph": ("data", "train", "evaluate", "calculators", "models", "balance"),
    "balance": ("models", "graph", "train", "evaluate", "calculators", "structure"),
    "data": ("train", "evaluate", "calculators", "models"),
    "evaluate": ("data.joint", "finetune", "demo"),
    "train": ("calculators", "finetune", "demo"),
    "calculators": ("data", "finetune", "demo"),
}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name.removeprefix("lamm.") for name in found if name.startswith("lamm.")}


def test_imports_follow_the_data_flow():
    wrong = [
        f"{path.relative_to(SOURCE)} imports lamm.{name}"
        for part, banned in FORBIDDEN.items()
        for path in (SOURCE / part).rglob("*.py")
        for name in imports_of(path)
        if any(name == one or name.startswith(f"{one}.") for one in banned)
    ]
    wrong += [
        f"{path.relative_to(SOURCE)} imports the command line"
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "cli" and path.name != "__main__.py"
        for name in imports_of(path)
        if name.startswith("cli")
    ]
    assert not wrong


def test_importing_the_package_is_quick_and_pulls_in_nothing_heavy():
    script = (
        "import time, sys; start = time.perf_counter(); import lamm; "
        "print(time.perf_counter() - start, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    seconds, *modules = done.stdout.split()
    assert float(seconds) < 1.0
    assert not {"torch", "ase", "pyarrow", "matplotlib", "rdkit", "umap"} & set(modules)


def test_every_public_name_is_there():
    for name in lamm.__all__:
        assert getattr(lamm, name) is not None
