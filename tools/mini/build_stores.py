"""Turn the raw data of the generators into the stores that the package ships.

Every chunk of ``FROM/NAME/*.extxyz`` goes into the store ``TO/NAME``, with the card beside the
chunks, ``card.yaml``. Run it where LaMM is installed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.schema import load_yaml, parse

SHARD_BYTES = 400_000
"""Size of a shard, so that no file in the repository is large."""


def build(raw: Path, store: Path) -> int:
    """Write one store anew.

    Returns:
        How many structures it has.
    """
    card = raw / "card.yaml"
    mapping = {**load_yaml(card), "position_dtype": "float32"}
    header = parse(CardHeader, mapping, str(card))
    shutil.rmtree(store, ignore_errors=True)
    sources = sorted(raw.glob("*.extxyz"))
    written = ingest("extxyz", sources, store, header, shard_bytes=SHARD_BYTES)
    return written.num_structures


def main() -> None:
    """Build every store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="raw", type=Path, default=Path("build/mini"))
    parser.add_argument("--to", type=Path, default=Path("src/lamm/mini"))
    parser.add_argument("names", nargs="*", help="subsets; all where none is named")
    options = parser.parse_args()
    names = options.names or sorted(path.parent.name for path in options.raw.glob("*/card.yaml"))
    for name in names:
        count = build(options.raw / name, options.to / name)
        size = sum(path.stat().st_size for path in (options.to / name).iterdir())
        print(f"{name}: {count} structures, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
