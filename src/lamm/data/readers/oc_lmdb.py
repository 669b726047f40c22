"""LMDBs and files of pickled records: OC20, OC22, ODAC23, and what was made by the same scripts.

A record is a `Data` object of PyTorch Geometric (either layout) or a dict of tensors, with `pos`,
`atomic_numbers`, `cell`, `fixed`, `force`, `sid`, `fid` and an energy. Which energy, see
`oc_energy.py`: a record may have those of the structure, of the first and of the relaxed one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    element_numbers,
    label_value,
    no_key,
    read_labels,
    reader_options,
    wanted_labels,
)
from lamm.data.readers.lmdb_records import count_values, lmdb_values
from lamm.data.readers.oc_energy import (
    USUAL_KEYS,
    check_task,
    energy_keys,
    is_relaxed,
    numbers_of,
    reference_energies,
    reference_energy,
    text_of,
)
from lamm.data.readers.torch_pickle import PygObject, fields, load_file, loads
from lamm.data.splits import split_named
from lamm.errors import DataError
from lamm.schema import Frozen
from lamm.structure import Structure

PICKLES: Final = (".pkl", ".pickle")
SUFFIXES: Final = (".lmdb", "data.mdb", *PICKLES)
MAX_RECORD_BYTES: Final = 1 << 28
"""Most that a compressed record may come to."""
_POSITIONS, _NUMBERS = "pos", "atomic_numbers"


class OcLmdbOptions(Frozen):
    """Options of the format `oc-lmdb`."""

    references: str | None = None
    """File of OC20's reference energies (`oc20_ref.pkl`), which turn its adsorption energies into
    total ones: the entry ``random<sid>`` is added to each energy. A relative path starts at the
    folder that the command runs in."""
    id: Annotated[str, Field(pattern=r"^[^{}]*\{sid\}[^{}]*(\{fid\}[^{}]*)?$")] | None = None
    """How ids are made of the number of the system, {sid}, and of the frame, {fid}. With
    ``random{sid}_frame{fid}`` they are those of OC20's extended XYZ files. Left out, they are
    ``{sid}_{fid}``, or ``{sid}`` without a frame; `keys.id` in the card goes first."""


class _Context(NamedTuple):
    """What is the same for all records of a source."""

    header: CardHeader
    id_pattern: str | None
    factors: Mapping[str, float]
    found: KeysFound
    references: Mapping[str, float] | None


def read_oc_lmdb(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures from an LMDB or a pickle file, in eV and Å; see `Reader` in `format.py`.

    Raises:
        DataError: a record can't become a structure, or the file can't be read.
        ConfigError: an option that contradicts the task.
    """
    path, name = Path(path), name or Path(path).name
    context = _context(header, found or KeysFound())
    source = _pickled(path, start, stop) if _is_pickle(path) else lmdb_values(path, start, stop)
    records = ((where, f"{name}:{number}", value) for where, number, value in source)
    yield from checked(
        path,
        records,
        lambda value, origin: _structure(_fields(value), origin, context),
        on_error,
    )


def count_oc_lmdb(path: str | Path, header: CardHeader) -> int | None:
    """How many records an LMDB has; None for a pickle file, which is read whole.

    Raises:
        DataError: the file can't be read.
    """
    path = Path(path)
    return None if _is_pickle(path) else count_values(path)


def _is_pickle(path: Path) -> bool:
    return path.name.lower().endswith(PICKLES)


def _context(header: CardHeader, found: KeysFound) -> _Context:
    options = reader_options(header, OcLmdbOptions)
    check_task(header, options.references)
    return _Context(
        header=header,
        id_pattern=options.id,
        factors=header.units.factors(),
        found=found,
        references=None if options.references is None else reference_energies(options.references),
    )


def _records(path: Path) -> Sequence[Any]:
    """The records of a pickle file."""
    held = load_file(path)
    if isinstance(held, (list, tuple)):
        return held
    if isinstance(held, PygObject) or (isinstance(held, dict) and _POSITIONS in held):
        return [held]
    raise DataError(
        f"{path}: holds a {type(held).__name__}, expected a list of records, or one record with "
        f"'{_POSITIONS}'.\n  Reference energies are named under `reader.references` in the card."
    )


def _pickled(path: Path, start: int, stop: int | None) -> Iterator[tuple[str, int, Any]]:
    held = _records(path)
    for number in range(len(held))[start:stop]:
        yield f"record {number}", number, held[number]


def _fields(value: Any) -> dict[str, Any]:
    """Names and values of a record, which an LMDB gives as bytes, or None where it has none."""
    if value is None:
        raise DataError(
            "there is no such key in the LMDB, whose other keys are numbered. It was not written "
            "to the end, or a record was deleted: fetch it again, or leave the record out with "
            "`--on-error skip`."
        )
    return fields(loads(_inflated(value)) if isinstance(value, bytes) else value)


def _inflated(value: bytes) -> bytes:
    """A record as it was before zlib or gzip."""
    if not value.startswith((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b")):
        return value
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib's header or gzip's
    try:
        inflated = inflater.decompress(value, MAX_RECORD_BYTES)
    except zlib.error as error:
        raise DataError(f"the compressed record is damaged ({error}).") from error
    if not inflater.eof:
        raise DataError(
            f"the compressed record is cut short, or more than {MAX_RECORD_BYTES} bytes long."
        )
    if inflated.startswith(b"{"):
        raise DataError(
            "the record is JSON, as ASE writes it, expected a pickle. Read the file with the "
            "format 'aselmdb'."
        )
    return inflated


def _structure(record: dict[str, Any], origin: str, context: _Context) -> Structure:
    header, factors = context.header, context.factors
    context.found.see(record)
    for key in (_POSITIONS, _NUMBERS):
        if key not in record:
            raise DataError(
                f"no '{key}'; the record has: {', '.join(sorted(record)) or 'nothing'}."
            )
    positions = numbers_of(_POSITIONS, record[_POSITIONS])
    numbers = element_numbers(numbers_of(_NUMBERS, record[_NUMBERS]).reshape(-1))
    _check_count(record, len(numbers))
    cell, pbc = _cell(record, header)
    labels = _labels(record, context)
    fixed = _fixed(record, header.keys.fixed)
    if positions.dtype not in (np.float32, np.float64):
        positions = positions.astype(np.float64)
    return Structure(
        atomic_numbers=numbers,
        positions=positions * factors["length"],
        cell=cell * factors["length"],
        pbc=pbc,
        energy=labels.get("energy"),
        forces=labels.get("forces"),
        stress=labels.get("stress"),
        fixed=fixed,
        id=_id(record, context) or origin,
        origin=origin,
        split=_split(record, header.keys.split),
    )


def _check_count(record: Mapping[str, Any], num_atoms: int) -> None:
    if "natoms" in record:
        told = numbers_of("natoms", record["natoms"])
        if told.size != 1 or told.item() != num_atoms:
            raise DataError(f"'natoms' is {told.tolist()}, and there are {num_atoms} '{_NUMBERS}'.")


def _cell(
    record: Mapping[str, Any], header: CardHeader
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(3, 3) cell and (3,) along which vectors it repeats: all that there are, where not said."""
    cell = np.zeros((3, 3))
    if "cell" in record:
        given = numbers_of("cell", record["cell"])
        if given.size != 9:
            raise DataError(f"'cell' has shape {given.shape}, expected three vectors.")
        cell = given.reshape(3, 3).astype(np.float64)
    if "pbc" not in record:
        if header.periodic is False:
            return cell, np.zeros(3, dtype=bool)
        return cell, np.asarray(cell.any(axis=1))
    told = numbers_of("pbc", record["pbc"]).reshape(-1)
    if told.size not in (1, 3) or not ((told == 0) | (told == 1)).all():
        raise DataError(f"'pbc' is {told.tolist()}, expected three of 0 or 1.")
    return cell, np.broadcast_to(told.astype(bool), (3,)).copy()


def _labels(record: dict[str, Any], context: _Context) -> dict[str, Any]:
    """The labels that are wanted and there, in eV, eV/Å and eV/Å³."""
    header = context.header
    wanted = wanted_labels(header)
    if is_relaxed(header):  # forces and stress are those of another structure
        wanted = tuple(label for label in wanted if label == "energy")
    usual: dict[str, Sequence[str]] = dict(USUAL_KEYS)
    if "energy" in wanted:
        usual["energy"] = energy_keys(record, header)

    def value_of(label: str, key: str) -> Any:
        value = label_value(label, key, numbers_of(key, record[key]))
        if label == "energy" and context.references is not None:
            value += reference_energy(record, context.references)
        return value

    return read_labels(wanted, header, context.found, context.factors, usual, record, value_of)


def _fixed(record: Mapping[str, Any], key: str | None) -> NDArray[np.bool_] | None:
    """(N,) atoms that are held still, or None where none is."""
    wanted = key or "fixed"
    if key == IGNORED or (key is None and wanted not in record):
        return None
    if wanted not in record:
        raise DataError(no_key(wanted, "fixed", record))
    values = numbers_of(wanted, record[wanted]).reshape(-1)
    if not ((values == 0) | (values == 1)).all():
        raise DataError(f"'{wanted}' has other values than 0 and 1, expected 1 for a fixed atom.")
    return values.astype(bool) if values.any() else None


def _id(record: Mapping[str, Any], context: _Context) -> str | None:
    """The record's name: not its own `id`, which counts the records of a data loader."""
    key, pattern = context.header.keys.id, context.id_pattern
    if key == IGNORED:
        return None
    if key is not None:
        if key not in record:
            raise DataError(no_key(key, "id", record))
        return text_of(record, key)
    system, frame = text_of(record, "sid"), text_of(record, "fid")
    if pattern is None:
        return system if system is None or frame is None else f"{system}_{frame}"
    if system is None or (frame is None and "{fid}" in pattern):
        raise DataError(f"no 'sid' or no 'fid' for an id like {pattern} (`reader.id` in the card).")
    return pattern.replace("{sid}", system).replace("{fid}", frame or "")


def _split(record: Mapping[str, Any], key: str | None) -> str | None:
    if key is None or key == IGNORED:
        return None
    if key not in record:
        raise DataError(no_key(key, "split", record))
    return split_named(f"'{key}'", str(record[key]).lower())
