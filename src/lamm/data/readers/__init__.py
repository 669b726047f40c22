"""File formats that can be ingested: one reader each, in the dictionary `FORMATS`."""

from __future__ import annotations

from lamm.data.readers.ase_any import SUFFIXES as ASE_SUFFIXES
from lamm.data.readers.ase_any import AseOptions, count_ase, read_ase
from lamm.data.readers.aselmdb import SUFFIXES as ASELMDB_SUFFIXES
from lamm.data.readers.aselmdb import count_aselmdb, read_aselmdb
from lamm.data.readers.cif_csv import SUFFIXES as CIF_CSV_SUFFIXES
from lamm.data.readers.cif_csv import CifCsvOptions, read_cif_csv
from lamm.data.readers.common import KeysFound, SkippedRecord
from lamm.data.readers.extxyz import SUFFIXES as EXTXYZ_SUFFIXES
from lamm.data.readers.extxyz import read_extxyz
from lamm.data.readers.format import Format, OnError, Reader
from lamm.data.readers.hdf5 import SUFFIXES as HDF5_SUFFIXES
from lamm.data.readers.hdf5 import Hdf5Options, count_hdf5, read_hdf5
from lamm.data.readers.npz import SUFFIXES as NPZ_SUFFIXES
from lamm.data.readers.npz import NpzOptions, count_npz, read_npz
from lamm.data.readers.oc20 import SUFFIXES as OC20_SUFFIXES
from lamm.data.readers.oc20 import Oc20Options, read_oc20
from lamm.data.readers.oc_lmdb import SUFFIXES as OC_LMDB_SUFFIXES
from lamm.data.readers.oc_lmdb import OcLmdbOptions, count_oc_lmdb, read_oc_lmdb
from lamm.data.readers.parquet import SUFFIXES as PARQUET_SUFFIXES
from lamm.data.readers.parquet import ParquetOptions, count_parquet, read_parquet
from lamm.data.readers.pymatgen import SUFFIXES as PYMATGEN_SUFFIXES
from lamm.data.readers.pymatgen import PymatgenOptions, read_pymatgen
from lamm.data.readers.qmugs import ENERGY as QMUGS_ENERGY
from lamm.data.readers.qmugs import SUFFIXES as QMUGS_SUFFIXES
from lamm.data.readers.qmugs import count_qmugs, read_qmugs
from lamm.data.readers.qmugs_summary import QMugsOptions
from lamm.data.readers.sdf import SUFFIXES as SDF_SUFFIXES
from lamm.data.readers.sdf import SdfOptions, read_sdf
from lamm.data.readers.store import SUFFIXES as STORE_SUFFIXES
from lamm.data.readers.store import count_store, read_store

__all__ = ["FORMATS", "Format", "KeysFound", "OnError", "Reader", "SkippedRecord"]

FORMATS: dict[str, Format] = {
    "extxyz": Format(read_extxyz, EXTXYZ_SUFFIXES, "extended XYZ with any key names"),
    "hdf5": Format(
        read_hdf5,
        HDF5_SUFFIXES,
        "HDF5 of groups of structures: Transition1x, QM7-X, SPICE, ANI, or a declared layout",
        options=Hdf5Options,
        count=count_hdf5,
    ),
    "npz": Format(
        read_npz,
        NPZ_SUFFIXES,
        "NumPy arrays of structures: rMD17, or a declared layout",
        options=NpzOptions,
        count=count_npz,
    ),
    "aselmdb": Format(
        read_aselmdb,
        ASELMDB_SUFFIXES,
        "ASE databases in LMDBs: OMat24, OMol25, ODAC25",
        count=count_aselmdb,
    ),
    "oc20": Format(
        read_oc20,
        OC20_SUFFIXES,
        "OC20 S2EF as published: extended XYZ with an index of reference energies",
        options=Oc20Options,
    ),
    "oc-lmdb": Format(
        read_oc_lmdb,
        OC_LMDB_SUFFIXES,
        "LMDBs and pickle files of OC20, OC22, ODAC23 and their scripts",
        options=OcLmdbOptions,
        count=count_oc_lmdb,
    ),
    "parquet": Format(
        read_parquet,
        PARQUET_SUFFIXES,
        "Parquet with a structure per row: ColabFit, or declared columns",
        options=ParquetOptions,
        count=count_parquet,
    ),
    "qmugs": Format(
        read_qmugs,
        QMUGS_SUFFIXES,
        "QMugs: structures.tar.gz, or the folder of it, with summary.csv beside it",
        options=QMugsOptions,
        header={
            "labels": ["energy"],
            "periodic": False,
            "units": {"energy": "Hartree"},
            "keys": {"energy": QMUGS_ENERGY},
        },
        count=count_qmugs,
        folders=True,
    ),
    "sdf": Format(
        read_sdf,
        SDF_SUFFIXES,
        "SDF with any data fields, such as PubChem3D's",
        options=SdfOptions,
    ),
    "ase": Format(
        read_ase,
        ASE_SUFFIXES,
        "whatever ASE reads: .traj, databases, CIF, files of VASP and others, zips of CIFs",
        options=AseOptions,
        count=count_ase,
    ),
    "cif-csv": Format(
        read_cif_csv,
        CIF_CSV_SUFFIXES,
        "tables with a crystal per row as CIF text: CDVAE's data sets",
        options=CifCsvOptions,
    ),
    "pymatgen": Format(
        read_pymatgen,
        PYMATGEN_SUFFIXES,
        "JSON of pymatgen's structures with labels: mlearn, the Materials Project",
        options=PymatgenOptions,
    ),
    "store": Format(
        read_store,
        STORE_SUFFIXES,
        "stores of LaMM: several become one, or one with fewer labels",
        count=count_store,
        folders=True,
    ),
}
"""Name on the command line to format."""
