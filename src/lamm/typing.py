"""The dimension letters of every shape in this project.

======  ==========================================================================
``B``   structures in a batch
``N``   atoms of all structures in a batch
``E``   directed edges of all structures in a batch
``D``   subsets of the joint data set, one output of each head per subset
``C``   channels of a feature
``K``   radial functions
``M``   SO(3) coefficients
``3``   Cartesian components, always last
======  ==========================================================================

In signatures the same dimensions are spelt for `jaxtyping`: ``structures``, ``atoms``, ``edges``,
``subsets``, ``channels``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

PathLike: TypeAlias = str | Path
JSONDict: TypeAlias = dict[str, Any]
FloatArray: TypeAlias = NDArray[np.floating[Any]]
IntArray: TypeAlias = NDArray[np.integer[Any]]
BoolArray: TypeAlias = NDArray[np.bool_]
