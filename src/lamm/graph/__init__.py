"""Structures to graphs: which atoms are neighbours, and the batch that every model is given."""

from lamm.graph.batch import GraphBatch, edge_vectors
from lamm.graph.neighbors import GraphConfig, count_edges, neighbor_edges

__all__ = ["GraphBatch", "GraphConfig", "count_edges", "edge_vectors", "neighbor_edges"]
