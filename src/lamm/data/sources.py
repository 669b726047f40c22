"""The files that an ingestion is given: found, named, told apart, and their checksums."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lamm.errors import DataError


def find_sources(
    sources: Sequence[str | Path], suffixes: Sequence[str], *, folders: bool = False
) -> list[Path]:
    """The files that a list of files and folders means.

    Args:
        sources: files and folders; a folder means the files inside that end in a suffix.
        suffixes: how files of the format end, in lower case.
        folders: whether a folder is itself a source of the format.

    Raises:
        DataError: one is missing or is given twice, or a folder has no file of the format.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir() and not folders:
            paths += _inside(source, tuple(suffixes))
        elif source.exists():
            paths.append(source)
        else:
            raise DataError(f"{source}: no such file or folder. Check the path.")
    if not paths:
        raise DataError("no source file was named.")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path}: the file is named twice among the sources.")
        seen.add(path.resolve())
    return paths


def _inside(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder and its folders, in order of their names."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name.lower().endswith(suffixes)
    )
    if not found:
        raise DataError(
            f"{folder}: no file in this folder ends in {', '.join(suffixes)}.\n"
            "  Name the files themselves, or another format."
        )
    return found


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own, with as many folders before it as tell it from the others.

    Ids of records without a name are made of it, so it shouldn't change when files are added.
    """
    parts = [path.resolve().parts for path in paths]
    names = [""] * len(parts)
    unnamed = list(range(len(parts)))
    length = 0
    while unnamed:
        length += 1
        tails = Counter(parts[number][-length:] for number in unnamed)
        alike = []
        for number in unnamed:
            tail = parts[number][-length:]
            names[number] = "/".join(tail)
            if tails[tail] > 1 and length < len(parts[number]):
                alike.append(number)
        unnamed = alike
    return names


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_sha256(path: Path) -> str:
    """SHA-256 of a source; for a folder, of the names and checksums of the files in it."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for inner in sorted(inner for inner in path.rglob("*") if inner.is_file()):
        digest.update(f"{inner.relative_to(path).as_posix()} {file_sha256(inner)}\n".encode())
    return digest.hexdigest()
