"""`Potential`: encoder and heads, reference energies and scales; what the whole project passes on.

A potential predicts energies and forces as if a structure belonged to each of the D subsets
(Sec. 3.2). In physical units its energy is, in float64,

    E = energy_scale * (normalised output) + sum over atoms of reference_energies[element]
        + energy_shift

and its forces are ``force_scale`` times the output of the force head, or the energy's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lamm.errors import CheckpointError, ConfigError, DataError, nearest_names
from lamm.graph.batch import GraphBatch, edge_vectors
from lamm.graph.neighbors import GraphConfig
from lamm.models.architectures import ARCHITECTURES, AtomFeatures
from lamm.models.heads import copy_head, silence
from lamm.models.layers import segment_sum
from lamm.models.lora import Adapters
from lamm.models.presets import PRESETS, ModelConfig, resolve_model
from lamm.structure import MAX_ATOMIC_NUMBER
from lamm.typing import JSONDict

__all__ = ["PRESETS", "ModelConfig", "Potential", "Prediction", "build", "count_parameters"]


class Prediction(NamedTuple):
    """What a potential says of a batch: eV, eV/Å, eV/Å³, or the loss's normalised units.

    D is 1 where one output per structure was asked for.
    """

    energy: Tensor
    """(B, D), float64 in physical units."""
    forces: Tensor
    """(N, D, 3)."""
    stress: Tensor | None
    """(B, D, 6) Voigt, ASE's sign, zero without a cell; None for direct forces or normalised."""
    features: Tensor
    """(N, C) scalar representation of each atom, s_i of Eq. (1)."""
    vectors: Tensor
    """(N, 3, C) its vector representation."""


class Potential(nn.Module):
    """Encoder, heads and normalisation of one model; `subsets` names the output columns."""

    reference_energies: Tensor
    """(D, 119) float64, eV per atomic number."""
    known_elements: Tensor
    """(D, 119) whether the subset had the element when the references were fitted."""
    energy_scale: Tensor
    """(D,) float64, eV."""
    force_scale: Tensor
    """(D,) float64, eV/Å."""
    energy_shift: Tensor
    """(D,) float64, eV per structure; zero but for models that were normalised by a mean energy."""

    def __init__(self, config: ModelConfig, subsets: Sequence[str]) -> None:
        super().__init__()
        _check_subsets(subsets)
        self.config = config
        self.subsets = tuple(subsets)
        num_outputs, kind = len(subsets), ARCHITECTURES[config.encoder.name]
        self.encoder: Any = kind.encoder(config.encoder)
        self.adapters: Adapters | None = None  # fine-tuning may add them (`lamm.models.lora`)
        self.energy_head: Any = kind.energy_head(config.encoder, num_outputs)
        self.force_head: Any = None
        if config.forces == "direct":
            self.force_head = kind.force_head(config.encoder, num_outputs)
        size = (num_outputs, MAX_ATOMIC_NUMBER + 1)
        self.register_buffer("reference_energies", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("known_elements", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("energy_scale", torch.ones(num_outputs, dtype=torch.float64))
        self.register_buffer("force_scale", torch.ones(num_outputs, dtype=torch.float64))
        self.register_buffer("energy_shift", torch.zeros(num_outputs, dtype=torch.float64))

    def forward(
        self,
        batch: GraphBatch,
        subset_index: Tensor | None = None,
        normalised: bool = False,
    ) -> Prediction:
        """Predict energies and forces.

        Args:
            batch: structures and their edges.
            subset_index: (B,) the one output wanted of each structure; all D where not given.
            normalised: leave the references out and divide by the scales, as Eq. (5) compares.
        """
        batch = self._ready(batch)
        if self.force_head is None:
            energy, forces, stress, features = self._with_gradient(batch, subset_index)
        else:
            features = self._encode(batch, self._edge_vectors(batch))
            energy = self._energy(features, batch, subset_index)
            forces = self.force_head(features, _per_atom(subset_index, batch))
            stress = None
        energy = energy + self._idle_gradient(energy)

        energy_scale, force_scale = self._scales(batch, subset_index)  # (B or 1, D) each
        # What the number 1 in `forces` and in `stress` stands for, in eV/Å and eV/Å³.
        force_unit = energy_scale if self.force_head is None else force_scale
        if normalised:
            forces = forces * _each_atom(force_unit / force_scale, batch).to(forces)
            return Prediction(energy, forces, None, features.scalars, features.vectors)
        forces = forces * _each_atom(force_unit, batch).to(forces)
        if stress is not None:
            stress = stress * energy_scale[..., None].to(stress)
        energy = energy.double() * energy_scale + self._reference(batch, subset_index)
        return Prediction(energy, forces, stress, features.scalars, features.vectors)

    def energies(self, batch: GraphBatch) -> Tensor:
        """Energies of all outputs alone, (B, D) in eV, float64.

        Where forces are the energy's gradient, each output's would cost a backward pass.

        Args:
            batch: structures and their edges.
        """
        batch = self._ready(batch)
        features = self._encode(batch, self._edge_vectors(batch))
        energy = self._energy(features, batch, None).double()
        return energy * self.energy_scale[None] + self._reference(batch, None)

    def _ready(self, batch: GraphBatch) -> GraphBatch:
        """The batch with the edges of this model, its elements checked where that costs no wait."""
        if batch.atomic_numbers.device.type == "cpu":
            self._check_elements(batch.atomic_numbers)
        return batch.with_edges_for(self.graph_config)

    def _edge_vectors(self, batch: GraphBatch) -> Tensor:
        """(E, 3) in the precision of the weights."""
        return edge_vectors(batch).to(self.encoder.embedding.weight.dtype)

    def _idle_gradient(self, energy: Tensor) -> Tensor | float:
        """A zero whose gradient is zero in all weights that no output depends on.

        With it every weight has a gradient, as the sum over ranks and the optimizer expect.
        """
        if not torch.is_grad_enabled():
            return 0.0
        heads = (
            (self.energy_head,) if self.force_head is None else (self.energy_head, self.force_head)
        )
        idle = [one for head in heads for one in head.idle_parameters() if one.requires_grad]
        if not idle:
            return 0.0
        return torch.stack([one.flatten()[0] for one in idle]).sum().to(energy) * 0

    def _encode(self, batch: GraphBatch, vectors: Tensor) -> Any:
        """The encoder's features, with the adapters where there are any."""
        if self.adapters is None:
            return self.encoder(batch, vectors)
        return self.adapters.call(self.encoder, batch, vectors)

    def _energy(self, features: AtomFeatures, batch: GraphBatch, column: Tensor | None) -> Tensor:
        """Normalised energies, (B, D) or (B, 1)."""
        energy: Tensor = self.energy_head(
            features, batch.structure_index, batch.num_structures, _per_atom(column, batch)
        )
        return energy

    def _with_gradient(
        self, batch: GraphBatch, column: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, AtomFeatures]:
        r"""Normalised energies, and what their gradient gives: forces and stress.

        Both follow from the gradient :math:`g_e = \partial E / \partial \vec r_e` of the edge
        vectors: :math:`\vec F_i = \sum_{e \to i} g_e - \sum_{i \to e} g_e`, and
        :math:`\sigma = V^{-1} \sum_e \vec r_e \otimes g_e`, made symmetric.
        """
        keep = self.training and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if batch.positions.is_inference():
                batch = batch.copy()
            vectors = self._edge_vectors(batch).detach().requires_grad_()
            features = self._encode(batch, vectors)
            energy = self._energy(features, batch, column)  # (B, D)
            results = []
            for d in range(energy.shape[1]):
                last = d == energy.shape[1] - 1
                (gradient,) = torch.autograd.grad(
                    energy[:, d].sum(), vectors, create_graph=keep, retain_graph=keep or not last
                )
                results.append(_forces_and_stress(batch, vectors.detach(), gradient))
            vectors.requires_grad_(False)  # what follows asks for the weights' gradients alone
            forces = torch.stack([force for force, _ in results], dim=1)  # (N, D, 3)
            stress = torch.stack([one for _, one in results], dim=1)  # (B, D, 6)
        if not keep:
            energy, features = energy.detach(), features.detach()
        return energy, forces, stress, features

    def _scales(self, batch: GraphBatch, column: Tensor | None) -> tuple[Tensor, Tensor]:
        """Energy and force scale of each output: (1, D), or (B, 1) for one output each."""
        if column is None:
            return self.energy_scale[None], self.force_scale[None]
        return (
            self.energy_scale.index_select(0, column)[:, None],
            self.force_scale.index_select(0, column)[:, None],
        )

    def _reference(self, batch: GraphBatch, column: Tensor | None) -> Tensor:
        """Summed reference energies and shift in eV, float64: (B, D) or (B, 1)."""
        per_atom = self.reference_energies.T.index_select(0, batch.atomic_numbers)  # (N, D)
        per_atom = _pick(per_atom, _per_atom(column, batch))
        total = segment_sum(per_atom, batch.structure_index, batch.num_structures)
        shift = self.energy_shift[None] if column is None else self.energy_shift[column][:, None]
        return total + shift

    def _check_elements(self, atomic_numbers: Tensor) -> None:
        highest = self.config.encoder.highest_element
        wrong = (atomic_numbers < 1) | (atomic_numbers > highest)
        if wrong.any():
            raise DataError(
                f"element {int(atomic_numbers[wrong][0])} in the batch; this model has elements 1 "
                f"to {highest}. Leave such structures out, or use a model with more elements."
            )

    @property
    def graph_config(self) -> GraphConfig:
        """How the graphs are built that this model wants."""
        return self.config.graph

    @property
    def num_parameters(self) -> int:
        """Numbers in the weights, with the fitted scale of each layer, as the paper counts."""
        return sum(parameter.numel() for parameter in self.parameters())

    def encoder_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that fine-tuning keeps (Sec. 4.4)."""
        yield from self.encoder.named_parameters(prefix="encoder")

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that fine-tuning starts anew (Sec. 4.4)."""
        yield from self.energy_head.named_parameters(prefix="energy_head")
        if self.force_head is not None:
            yield from self.force_head.named_parameters(prefix="force_head")

    def column(self, name: str) -> int:
        """The output of a subset.

        Raises:
            ConfigError: the model has no such subset.
        """
        if name not in self.subsets:
            raise ConfigError(
                f"this model has no output for subset '{name}'. {nearest_names(name, self.subsets)}"
            )
        return self.subsets.index(name)

    @torch.no_grad()
    def set_normalisation(
        self,
        column: int,
        reference_energies: ArrayLike | Tensor,
        known: ArrayLike | Tensor,
        energy_scale: float,
        force_scale: float,
        energy_shift: float = 0.0,
    ) -> None:
        """Set what one output's energies and forces are normalised by.

        Args:
            column: the output.
            reference_energies: (119,) in eV, by atomic number.
            known: (119,) elements that the subset has.
            energy_scale: eV, above 0.
            force_scale: eV/Å, above 0.
            energy_shift: eV per structure.
        """
        for what, scale in (("energy_scale", energy_scale), ("force_scale", force_scale)):
            if not (np.isfinite(scale) and scale > 0):
                raise ConfigError(
                    f"{what} of subset '{self.subsets[column]}' is {scale}, expected a positive "
                    "number. Use 1.0 where there is nothing to fit it to."
                )
        self.reference_energies[column] = torch.as_tensor(reference_energies).to(
            self.reference_energies
        )
        self.known_elements[column] = torch.as_tensor(known).to(self.known_elements)
        self.energy_scale[column] = energy_scale
        self.force_scale[column] = force_scale
        self.energy_shift[column] = energy_shift

    def start_at_references(self, columns: Iterable[int] | None = None) -> Self:
        """Let outputs start at zero: the reference energies alone, and no force.

        Args:
            columns: which of them; all where left out.
        """
        chosen = range(len(self.subsets)) if columns is None else list(columns)
        silence(self.energy_head, chosen)
        if self.force_head is not None:
            silence(self.force_head, chosen)
        return self

    def with_subsets(
        self,
        subsets: Sequence[str],
        *,
        heads: Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> Potential:
        """A new potential with this encoder and other outputs, as fine-tuning starts (Sec. 4.4).

        Args:
            subsets: its output columns.
            heads: new subset to old subset: the output that the new one starts from, with the
                heads' shared layers and its normalisation. Outputs that aren't named start anew.
            seed: for what starts anew.

        Raises:
            ConfigError: `heads` names a subset that isn't there.
        """
        other = build(self.config, subsets, seed)
        other.to(self.energy_scale.device, self.encoder.embedding.weight.dtype)
        other.train(self.training)
        other.encoder.load_state_dict(self.encoder.state_dict())
        columns = {other.column(new): self.column(old) for new, old in (heads or {}).items()}
        if columns:
            copy_head(other.energy_head, self.energy_head, columns)
            if self.force_head is not None and other.force_head is not None:
                copy_head(other.force_head, self.force_head, columns)
        for new, old in columns.items():
            for name in _NORMALISATION:
                getattr(other, name)[new] = getattr(self, name)[old]
        return other

    def describe(self) -> JSONDict:
        """All that is needed to build the same architecture again, as JSON can hold it."""
        return {"config": self.config.model_dump(mode="json"), "subsets": list(self.subsets)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """The architecture that `describe` described, with new weights.

        Raises:
            CheckpointError: it describes no model of this version.
        """
        try:
            return cls(resolve_model(description["config"]), description["subsets"])
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(
                f"not the description of a model that this version knows: {error}"
            ) from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast everything, but keep references and scales in float64."""
        before = {name: self._buffers[name] for name in _NORMALISATION}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            changed = self._buffers[name]
            if exact is not None and changed is not None and changed.dtype != exact.dtype:
                self._buffers[name] = exact.to(changed.device)
        return self


_NORMALISATION = (
    "reference_energies",
    "known_elements",
    "energy_scale",
    "force_scale",
    "energy_shift",
)


def build(
    model: str | ModelConfig | dict[str, Any], subsets: Sequence[str], seed: int | None = None
) -> Potential:
    """A new potential.

    Args:
        model: name of a preset, or a configuration.
        subsets: names of the output columns.
        seed: of the first weights; with it they are the same whatever was drawn before, and nothing
            that is drawn later depends on them. None: from PyTorch's generator.

    Raises:
        ConfigError: the preset is unknown, or the subsets are none or repeated.
    """
    config = resolve_model(model)
    if seed is None:
        return Potential(config, subsets)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Potential(config, subsets)


def count_parameters(model: str | ModelConfig | dict[str, Any], num_subsets: int) -> int:
    """`Potential.num_parameters` of a model with so many outputs, without memory for them."""
    with torch.device("meta"):
        return Potential(resolve_model(model), [str(d) for d in range(num_subsets)]).num_parameters


def _check_subsets(subsets: Sequence[str]) -> None:
    if isinstance(subsets, str) or not subsets or len(set(subsets)) != len(subsets):
        raise ConfigError(
            f"subsets are {subsets!r}, expected one or more different names, one for each output."
        )


def _per_atom(column: Tensor | None, batch: GraphBatch) -> Tensor | None:
    """(B,) to (N,)."""
    return None if column is None else column.index_select(0, batch.structure_index)


def _pick(values: Tensor, column: Tensor | None) -> Tensor:
    """One column of each row, (X, D, ...) to (X, 1, ...); all of them where none is named."""
    if column is None:
        return values
    return values[torch.arange(len(column), device=column.device), column][:, None]


def _each_atom(scale: Tensor, batch: GraphBatch) -> Tensor:
    """Scales (B, 1) or, the same for all structures, (1, D) to (N, 1, 1) or (1, D, 1)."""
    if scale.shape[0] == batch.num_structures and scale.shape[1] == 1:
        scale = scale.index_select(0, batch.structure_index)
    return scale[..., None]


def _forces_and_stress(
    batch: GraphBatch, vectors: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Forces (N, 3) and stress (B, 6) from the energy's gradient by edge vectors, both (E, 3)."""
    source, target = batch.edge_index[0], batch.edge_index[1]
    num_atoms = len(batch.atomic_numbers)
    forces = segment_sum(gradient, target, num_atoms) - segment_sum(gradient, source, num_atoms)

    structure = batch.structure_index.index_select(0, target)  # (E,)
    virial = segment_sum(
        vectors[:, :, None] * gradient[:, None, :], structure, batch.num_structures
    )  # (B, 3, 3)
    virial = 0.5 * (virial + virial.transpose(1, 2))
    volume = torch.linalg.det(batch.cell.double()).abs()[:, None]  # (B, 1)
    order = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    voigt = torch.stack([virial[:, a, b] for a, b in order], dim=1)  # (B, 6)
    return forces, torch.where(volume > 0, voigt / volume.clamp(min=1e-12), 0.0).to(voigt.dtype)
