"""What FAIR-Chem calls the weights of an architecture, and what we do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lamm.errors import CheckpointError
from lamm.models.potential import ModelConfig
from lamm.typing import JSONDict

Renames = tuple[tuple[str, str], ...]

_PREFIX = re.compile(r"^(?:module\.)*(?:backbone\.|output_heads\.(?P<head>[^.]+)\.)?(?:module\.)*")

_HEADS = ("energy_head.", "force_head.")


class Translation(NamedTuple):
    """How one of FAIR-Chem's models becomes ours."""

    label: str
    names: tuple[str, ...]
    """Its names in configurations."""
    defaults: JSONDict
    """Every key that changes the network, with FAIR-Chem's value where it isn't given."""
    ignored: frozenset[str]
    """Keys that don't change it."""
    renames: Renames
    """Patterns of its names, and ours."""
    constant: re.Pattern[str]
    """Buffers that follow from the configuration."""
    beside: re.Pattern[str]
    """Weights that aren't learnt by gradients: `configure` sees them."""
    configure: Callable[[JSONDict, Mapping[str, Tensor]], ModelConfig]
    """Its configuration, defaults filled in, and the weights beside to ours."""

    def rename(
        self, state_dict: Mapping[str, Tensor], heads: frozenset[str] = frozenset()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights under our names, and those beside under FAIR-Chem's, prefixes removed.

        Args:
            state_dict: FAIR-Chem's.
            heads: names of the output heads to leave out. A backbone's own heads are left out
                always: where there are output heads beside it, nothing uses them.

        Raises:
            CheckpointError: a weight is unknown, or there are none.
        """
        weights: dict[str, Tensor] = {}
        beside: dict[str, Tensor] = {}
        for name, value in state_dict.items():
            found = _PREFIX.match(name)
            assert found is not None  # every part of it is optional
            short = name[found.end() :]
            if found["head"] in heads or self.constant.search(short):
                continue
            if not isinstance(value, Tensor | np.ndarray):
                raise CheckpointError(
                    f"weight '{name}' is a {type(value).__name__}, expected a tensor."
                )
            ours = self.our_name(short)
            if self.beside.fullmatch(short):
                beside[short] = torch.as_tensor(value)
            elif ours is not None:
                if not ("backbone." in found[0] and ours.startswith(_HEADS)):
                    weights[ours] = torch.as_tensor(value)
            else:
                raise CheckpointError(
                    f"unknown weight '{name}': not a part of FAIR-Chem's {self.label}. "
                    "Give the state dict of the model alone."
                )
        if not weights:
            raise CheckpointError("the state dict holds no weights.")
        return weights, beside

    def learnt(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Names of all weights that are learnt by gradients, those of heads left out too."""
        short = {name: _PREFIX.sub("", name) for name in state_dict}
        return [
            name
            for name, one in short.items()
            if not self.constant.search(one) and not self.beside.fullmatch(one)
        ]

    def knows(self, state_dict: Mapping[str, Tensor]) -> int:
        """How many of these are its learnt weights."""
        short = [_PREFIX.sub("", name) for name in state_dict]
        return sum(
            self.our_name(name) is not None and not self.constant.search(name) for name in short
        )

    def our_name(self, short: str) -> str | None:
        """Our name of one of FAIR-Chem's weights, prefix removed; None where it isn't known."""
        for pattern, ours in self.renames:
            new, count = re.subn("^" + pattern, ours, short)
            if count:
                return new
        return None

    def original(self, name: str) -> str:
        """FAIR-Chem's name of one of our weights, for messages."""
        for pattern, ours in self.renames:
            found = re.match(re.sub(r"\\\\(\d)", r"(?P<g\1>\\w+)", re.escape(ours)), name)
            if found:
                theirs = pattern
                for group in found.groups():
                    theirs = re.sub(r"\([^)]*\)", group, theirs, count=1)
                theirs = theirs.replace("\\.", ".") + name[found.end() :]
                if self.our_name(theirs) == name:
                    return theirs
        return name

    def check(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Name the first weights that are missing, left over or of another shape.

        Raises:
            CheckpointError: there are such.
        """
        faults = [f"missing weight '{self.original(one)}'" for one in sorted(own.keys() - weights)]
        faults += [f"unknown weight '{self.original(one)}'" for one in sorted(weights.keys() - own)]
        faults += [
            f"'{self.original(one)}' has shape {tuple(weights[one].shape)}, expected "
            f"{tuple(own[one].shape)}"
            for one in sorted(own.keys() & weights.keys())
            if weights[one].shape != own[one].shape
        ]
        if faults:
            more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
            raise CheckpointError(
                f"weights and configuration don't fit: {'; '.join(faults[:5])}{more}.\n"
                "  Give the configuration that the weights were trained with."
            )
