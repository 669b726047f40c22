"""The configuration of batch planning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lamm.schema import Frozen


class BalanceConfig(Frozen):
    """How structures are put together into mini-batches and GPU batches (Sec. 3.4)."""

    planner: Literal["random", "greedy", "paper", "paper_shuffled", "balanced"] = "balanced"
    """`balanced` is ours, `paper` the three steps of Sec. 3.4 (`paper_shuffled`: its
    mini-batches in random order), `greedy` FAIR-Chem's."""
    batch_size: PositiveInt = 8
    """Structures per rank and step, on average (B')."""
    edge_share: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Share of a fully connected atom's cost that its edges cause; the rest is its own."""
    oversized: Literal["stop", "set_aside"] = "stop"
    """What to do about a structure that doesn't fit into the memory alone: stop the run, or go on
    without it and list it in ``set_aside.jsonl`` of the run folder."""
