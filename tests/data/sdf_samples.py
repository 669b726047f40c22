"""Records of SDF files, as text."""

from __future__ import annotations

WATER = (("O", 0.0, 0.0, 0.1173), ("H", 0.0, 0.7572, -0.4692), ("H", 0.0, -0.7572, -0.4692))


def molblock(
    atoms: tuple[tuple[str, float, float, float], ...] = WATER,
    title: str = "water",
    dimensions: str = "3D",
) -> str:
    """A V2000 table, as RDKit and OpenEye write it."""
    lines = [
        title,
        f"  -OEChem-1008240917{dimensions}",
        "",
        f"{len(atoms):3d}  0  0     0  0  0  0  0  0999 V2000",
        *(
            f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3} 0  0  0  0  0  0  0  0  0  0  0  0"
            for symbol, x, y, z in atoms
        ),
        "M  END",
    ]
    return "\n".join(lines) + "\n"


def record(table: str = "", **fields: str) -> str:
    """A table with data fields; ``__`` in a name is a colon."""
    data = "".join(
        f">  <{name.replace('__', ':')}>  (1) \n{value}\n\n" for name, value in fields.items()
    )
    return (table or molblock()) + data + "$$$$\n"
