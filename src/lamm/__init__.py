"""LaMM: pre-train one neural network potential on every data set there is, then fine-tune it.

The names below are loaded when they are first used, so that ``import lamm`` stays quick:

======================  ===================================================================
`load`                  a trained potential by name or path
`build`                 a new potential from a preset
`Store`                 a data set on disk
`JointDataset`          several stores as one data set, with splits and sampling
`plan_epoch`            which structures go where, for each step and rank
`LaMMCalculator`        a potential as an ASE calculator
======================  ===================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lamm.balance.plan import plan_epoch
    from lamm.calculators.ase import LaMMCalculator
    from lamm.data.joint import JointDataset
    from lamm.data.store import Store
    from lamm.models.potential import build
    from lamm.train.checkpoint import load

_HOME = {
    "load": "lamm.train.checkpoint",
    "build": "lamm.models.potential",
    "Store": "lamm.data.store",
    "JointDataset": "lamm.data.joint",
    "plan_epoch": "lamm.balance.plan",
    "LaMMCalculator": "lamm.calculators.ase",
}
__all__ = [
    "JointDataset",
    "LaMMCalculator",
    "Store",
    "__version__",
    "build",
    "load",
    "plan_epoch",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` and give the name (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'lamm' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
