"""Structures to graphs: which atoms are neighbours, and the batch that every model is given.

`GraphBatch` is loaded when it is first used: whoever only counts edges does without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lamm.graph.counting import count_edges
from lamm.graph.neighbors import GraphConfig, neighbor_edges

if TYPE_CHECKING:
    from lamm.graph.batch import GraphBatch, edge_vectors

__all__ = ["GraphBatch", "GraphConfig", "count_edges", "edge_vectors", "neighbor_edges"]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is asked for (PEP 562)."""
    if name not in ("GraphBatch", "edge_vectors"):
        raise AttributeError(f"module 'lamm.graph' has no attribute '{name}'")
    return getattr(import_module("lamm.graph.batch"), name)
