"""Which groups of an HDF5 file hold structures, by the patterns of a layout."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import h5py

from lamm.data.readers.layouts import LAYOUTS, Layout
from lamm.errors import DataError

_OUTLINE: Final = 4
"""Names of a group that a message lists."""
_WILD: Final = "*?["


def families(
    file: h5py.File, layout: Layout, path: Path
) -> Iterator[tuple[h5py.Group, str, list[str]]]:
    """Groups that hold structures: the group above them, its path, and their names in it.

    Raises:
        DataError: there is none.
    """
    found_any = False
    for pattern in layout.groups:
        parts = [part for part in pattern.split("/") if part]
        is_deep = parts[-1:] == ["**"]
        if is_deep:
            parts = parts[:-1]
        for family in _matches(file, "", parts, are_groups=layout.one_per_group):
            members = _deep(*family, layout.positions, set()) if is_deep else [family]
            for member in members:
                found_any = found_any or bool(member[2])
                yield member
    if not found_any:
        wanted = " or ".join(f"'{pattern}'" for pattern in layout.groups)
        if any(pattern.endswith("**") for pattern in layout.groups):
            wanted += f" with positions ({', '.join(layout.positions)})"
        raise DataError(
            f"{path}: no group {wanted}; the file has:\n{_outline(file)}\n"
            "  Say in the card what things are called: `reader: {layout: {groups: ..., positions: "
            f"...}}}}`, or name a layout: {', '.join(LAYOUTS)}."
        )


def _matches(
    group: h5py.Group, below: str, parts: list[str], are_groups: bool
) -> Iterator[tuple[h5py.Group, str, list[str]]]:
    """Groups whose path matches a pattern that is cut at its slashes.

    Args:
        group: where the pattern begins.
        below: path of that group.
        parts: the pattern.
        are_groups: whether whatever matches at the end is known to be a group.
    """
    if not parts:
        yield group, below, [""]
        return
    first, *rest = parts
    is_plain = not any(letter in first for letter in _WILD)
    if is_plain:
        names = [first] if first in group else []
    else:
        names = [name for name in group if first == "*" or fnmatchcase(name, first)]
    if not rest:
        if not is_plain and not are_groups:
            names = [name for name in names if group.get(name, getclass=True) is h5py.Group]
        yield group, below, names
        return
    for name in names:
        inner = group.get(name)
        if isinstance(inner, h5py.Group):
            yield from _matches(inner, f"{below}/{name}".strip("/"), rest, are_groups)


def _deep(
    parent: h5py.Group,
    below: str,
    names: list[str],
    positions: tuple[str, ...],
    seen: set[tuple[int, int]],
) -> Iterator[tuple[h5py.Group, str, list[str]]]:
    """Groups with positions, at any depth; one that has several paths comes once."""
    for name in names:
        group = parent[name] if name else parent
        if not isinstance(group, h5py.Group):
            continue
        info = h5py.h5o.get_info(group.id)
        if (info.fileno, info.addr) in seen:
            continue
        seen.add((info.fileno, info.addr))
        if any(one in group for one in positions):
            yield parent, below, [name]
        inner = [one for one in group if group.get(one, getclass=True) is h5py.Group]
        yield from _deep(group, f"{below}/{name}".strip("/"), inner, positions, seen)


def path_behind(path: str, layout: Layout) -> str:
    """A group's path behind the part that is the same for all: ``data/*/*`` leaves out ``data``."""
    for pattern in layout.groups:
        parts = [part for part in pattern.split("/") if part]
        plain = 0
        while plain < len(parts) and not any(letter in parts[plain] for letter in _WILD):
            plain += 1
        if path.split("/")[:plain] == parts[:plain]:
            return "/".join(path.split("/")[plain:])
    return path


def _outline(file: h5py.File) -> str:
    """What a file has, two levels deep, for a message."""
    lines = []
    for name, item in _first(file):
        lines.append(f"    {_described(name, item)}")
        if isinstance(item, h5py.Group):
            lines += [f"      {_described(below, inner)}" for below, inner in _first(item)]
            if len(item) > _OUTLINE:
                lines.append(f"      ... {len(item) - _OUTLINE:,} more")
    if len(file) > _OUTLINE:
        lines.append(f"    ... {len(file) - _OUTLINE:,} more")
    return "\n".join(lines) or "    nothing"


def _first(group: h5py.Group) -> Iterator[tuple[str, Any]]:
    for number, name in enumerate(group):
        if number == _OUTLINE:
            return
        yield name, group.get(name)


def _described(name: str, item: Any) -> str:
    if isinstance(item, h5py.Dataset):
        return f"{name}: array {item.shape} of {item.dtype}"
    return f"{name}/ ({len(item)} members)" if isinstance(item, h5py.Group) else f"{name}: a link"
