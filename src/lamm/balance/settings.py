"""The configuration of batch planning."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lamm.schema import Frozen

DEFAULT_BATCH_SIZE = 8
AUTO = "auto"
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class BalanceConfig(Frozen):
    """How structures are put together into mini-batches and GPU batches (Sec. 3.4)."""

    planner: Literal["random", "greedy", "paper", "paper_shuffled", "balanced"] = "balanced"
    """`balanced` is ours, `paper` the three steps of Sec. 3.4 (`paper_shuffled`: its
    mini-batches in random order), `greedy` FAIR-Chem's."""
    batch_size: PositiveInt | Literal["auto"] | None = None
    """Structures per rank and step, on average (B'). `auto`: as many as the device's memory holds
    and its speed gains from, by a few measured steps. Where no budget is given either, `auto` on a
    GPU and 8 on a CPU."""
    memory: str | None = None
    """Memory of a rank, as 14GiB, in place of `batch_size`; `auto` for most of what is free on its
    device. The batch size follows from a few measured steps."""
    max_cost: PositiveFloat | None = None
    """Largest cost of a rank's part of a mini-batch, in place of `batch_size`, in atoms that have
    all the neighbours they can have."""
    edge_share: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Share of a fully connected atom's cost that its edges cause; the rest is its own. Where the
    run folder has measured costs (`lamm plan`), theirs counts."""
    oversized: Literal["stop", "set_aside"] = "stop"
    """What to do about a structure that doesn't fit into the memory alone: stop the run, or go on
    without it and list it in ``set_aside.jsonl`` of the run folder."""

    warm_up: bool | None = None
    """One step at the largest planned load before the first, thrown away, so that memory is
    allocated once and what doesn't fit is split from the start; on a GPU where left out."""

    @field_validator("memory")
    @classmethod
    def _is_memory(cls, value: str | None) -> str | None:
        if value is not None and value != AUTO:
            parse_bytes(value)
        return value

    @model_validator(mode="after")
    def _one_size(self) -> BalanceConfig:
        given = [name for name in ("batch_size", "memory", "max_cost") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are given; expected one of batch_size, memory, max_cost"
            )
        return self

    @property
    def has_budget(self) -> bool:
        """Whether the batch size follows from a budget or a trial, which need measured costs."""
        return AUTO in (self.batch_size, self.memory) or bool(self.memory or self.max_cost)

    @property
    def structures_per_rank(self) -> int:
        """B'; not before a budget was turned into `batch_size`."""
        assert not self.has_budget, "a budget is turned into a batch size before it is planned with"
        return DEFAULT_BATCH_SIZE if self.batch_size is None else int(self.batch_size)

    def on(self, device: str) -> BalanceConfig:
        """The settings on a kind of device; the size of batches is found where nothing is given.

        Args:
            device: ``cuda`` or ``cpu``.
        """
        nothing = self.batch_size is None and not self.has_budget
        found = nothing and device != "cpu"
        return self.model_copy(update={"batch_size": AUTO}) if found else self


def parse_bytes(text: str) -> int:
    """Bytes of a person's words, as 14GiB, 14 GB or 500MiB.

    Raises:
        ValueError: it is no such thing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise ValueError(f"'{text}' is no amount of memory; expected one as 14GiB, or `auto`")
    return round(float(match[1]) * unit)
