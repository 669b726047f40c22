"""One measurement of `lamm.bench.model`: reads a job from stdin, writes its answer to stdout."""

from __future__ import annotations

import json
import logging
import sys
import types
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lamm.bench.timing import timed
from lamm.graph.batch import GraphBatch, edge_vectors
from lamm.runtime import keep_freed_memory, tune_cpu
from lamm.typing import JSONDict

Energies = tuple[Tensor, Tensor]
Predict = Callable[[], Energies]


def main() -> None:
    """Do the job."""
    job: JSONDict = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    if job["contender"] == "lamm":
        tune_cpu()
    elif job["contender"] == "fairchem-tuned":
        keep_freed_memory()
        torch.set_float32_matmul_precision("medium")
    if job["phase"] == "weights":
        torch.save(_first_weights(job), job["weights"])
        answer: JSONDict = {}
    else:
        build = _lamm if job["contender"] == "lamm" else _fairchem
        answer = _measure(job, *build(job))
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _first_weights(job: JSONDict) -> dict[str, Tensor]:
    if job["contender"] != "lamm":
        return _original(job["config"]).state_dict()
    return {}


def _measure(job: JSONDict, model: nn.Module, predict: Predict) -> JSONDict:
    """Warm up once, then time the calls."""
    model.train(job["phase"] == "step")
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(_shape(job), generator=generator)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        energy, forces = predict()
        loss = energy.abs().mean() + 100 * (forces - target).norm(dim=-1).mean()
        loss.backward()

    def infer() -> Energies:
        with torch.no_grad():
            return predict()

    before = _peak_mib()
    call: Callable[[], object] = step if job["phase"] == "step" else infer
    call()
    costs = [timed(call) for _ in range(job["calls"])]
    answer: JSONDict = {
        "wall": [cost.wall for cost in costs],
        "cpu": [cost.cpu for cost in costs],
        "before_mib": before,
        "peak_mib": _peak_mib(),
    }
    if job["phase"] == "inference":
        energy, forces = infer()
        answer |= {"energy": energy.tolist(), "forces": forces.tolist()}
    return answer


def _shape(job: JSONDict) -> tuple[int, int]:
    """(N, 3)."""
    return len(_batch(job)["atomic_numbers"]), 3


def _peak_mib() -> float:
    """The most memory that this process ever had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _lamm(job: JSONDict) -> tuple[nn.Module, Predict]:
    """Our model with the given weights, or, without peers, with its own first ones."""
    from lamm.graph.batch import GraphBatch
    from lamm.models.fairchem import from_fairchem
    from lamm.models.potential import build

    weights = torch.load(job["weights"], weights_only=True)
    if weights:
        model = from_fairchem(job["config"], weights)
    else:
        model = build(job["preset"], ["one"], job["seed"])
    batch = GraphBatch(**_batch(job)).with_edges_for(model.graph_config)

    def predict() -> Energies:
        prediction = model(batch, normalised=True)
        return prediction.energy[:, 0], prediction.forces[:, 0]

    return model, predict


def _batch(job: JSONDict) -> dict[str, Any]:
    """The fields of the `GraphBatch` that all contenders work on."""
    fields: dict[str, Any] = torch.load(job["batch"], weights_only=True)
    return fields


def _original(config: JSONDict) -> nn.Module:
    """FAIR-Chem's model of a configuration, with random weights."""
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    if find_spec("torch_sparse") is None:
        # Only a model that isn't measured here needs it.
        stub = types.ModuleType("torch_sparse")
        stub.SparseTensor = type("SparseTensor", (), {})  # type: ignore[attr-defined]
        sys.modules["torch_sparse"] = stub
    if "backbone" in config:
        import_module("fairchem.core.models.equiformer_v2.equiformer_v2")
        hydra = import_module("fairchem.core.models.base").HydraModel
        model: nn.Module = hydra(**config, pass_through_head_outputs=True)
        return model
    painn = import_module("fairchem.core.models.painn.painn").PaiNN
    own: nn.Module = painn(**{key: value for key, value in config.items() if key != "name"})
    return own


def _fairchem(job: JSONDict) -> tuple[nn.Module, Predict]:
    """The original, which is given the edges instead of looking for them."""
    model = _original(job["config"])
    model.load_state_dict(torch.load(job["weights"], weights_only=True))
    base, data = import_module("fairchem.core.models.base"), import_module("torch_geometric.data")
    fields = _batch(job)
    edge_index, counts = fields["edge_index"], fields["num_atoms"]
    structure_of_edge = fields["structure_index"][edge_index[1]]
    vectors = edge_vectors(GraphBatch(**fields))
    start = 0
    parts = []
    for b, count in enumerate(counts.tolist()):
        atoms = slice(start, start + count)
        parts.append(
            data.Data(
                pos=fields["positions"][atoms],
                atomic_numbers=fields["atomic_numbers"][atoms].float(),
                cell=fields["cell"][b][None],
                natoms=torch.tensor([count]),
            )
        )
        start += count
    batch = data.Batch.from_data_list(parts)
    batch.natoms = batch.natoms.view(-1)

    def given_graph(*_: Any, **__: Any) -> Any:
        return base.GraphData(
            edge_index=edge_index,
            edge_distance=vectors.norm(dim=1),
            edge_distance_vec=vectors,
            cell_offsets=fields["cell_offsets"],
            offset_distances=None,
            neighbors=structure_of_edge.bincount(minlength=len(counts)),
            batch_full=batch.batch,
            atomic_numbers_full=batch.atomic_numbers.long(),
            node_offset=0,
        )

    getattr(model, "backbone", model).generate_graph = given_graph

    def predict() -> Energies:
        output = model(batch.clone())
        return output["energy"].view(-1), output["forces"]

    return model, predict


if __name__ == "__main__":
    main()
