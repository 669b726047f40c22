"""Unpack what was downloaded: whole or not at all, and never outside its folder."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TypeAlias

from lamm.data.catalogue import FOLDERS, Unpack
from lamm.errors import DataError
from lamm.files import sync

Tell: TypeAlias = Callable[[int], None]
"""Is told how many bytes of the archive are done; raises to stop the work."""
_CHUNK = 1 << 20
_DAMAGED = (EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def unpack(archive: Path, kind: Unpack, to: Path, tell: Tell = lambda done: None) -> None:
    """Unpack an archive into a folder, or a compressed file into a file.

    All is written beside `to` and renamed when it is complete: what a killed run left is removed
    and begun anew, and what is at `to` is never half of something.

    Args:
        archive: the downloaded file.
        kind: how it is packed.
        to: the folder, or for ``xz`` and ``gz`` the file, that it becomes.
        tell: is told now and then how far it is.

    Raises:
        DataError: the archive is damaged, or holds what could end up outside `to`: absolute names,
            ``..``, links, devices.
    """
    temporary = to.with_name(f".{to.name}.unpacking")
    _remove(temporary)
    try:
        with archive.open("rb") as raw, _damage_named(archive):
            if kind in FOLDERS:
                temporary.mkdir(parents=True)
                fill = _unzip if kind == "zip" else _untar
                fill(archive, raw, temporary, tell)
            else:
                _decompress(raw, kind, temporary, tell)
        # The archive may be deleted next.
        for written in (*temporary.rglob("*"), temporary):
            sync(written)
        _remove(to)
        temporary.rename(to)
    finally:
        _remove(temporary)


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    """Turn what the libraries raise on a damaged archive into a message with its name."""
    try:
        yield
    except OSError as error:
        # The operating system's own errors (a full disk) carry a number; a bad gzip doesn't.
        if error.errno is not None:
            raise DataError(f"{archive}: can't be unpacked: {error.strerror}.") from error
        raise _damaged(archive, error) from error
    except _DAMAGED as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DataError:
    what, _, _ = str(error).partition(":\n")
    return DataError(
        f"{archive}: damaged or not whole ({what or type(error).__name__}).\n"
        "  Delete the file and download it again."
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_outside(archive: Path, name: str) -> None:
    """Refuse a name that leads out of the folder, on any operating system."""
    pieces = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if rooted or ".." in pieces:
        raise DataError(f"{archive}: refused: the member '{name}' would land outside the folder.")


def _untar(archive: Path, raw: IO[bytes], folder: Path, tell: Tell) -> None:
    with tarfile.open(fileobj=raw, mode="r:*") as tar:
        for member in tar:
            _refuse_outside(archive, member.name)
            if not (member.isfile() or member.isdir()):
                raise DataError(
                    f"{archive}: refused: the member '{member.name}' is a link or a device, "
                    "expected files and folders."
                )
            tar.extract(member, folder, filter="data")
            # Else the list of members grows with the archive.
            tar.members = []  # type: ignore[attr-defined]
            tell(raw.tell())


def _unzip(archive: Path, raw: IO[bytes], folder: Path, tell: Tell) -> None:
    with zipfile.ZipFile(raw) as packed:
        for member in packed.infolist():
            _refuse_outside(archive, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(
                    f"{archive}: refused: the member '{member.filename}' is a link or a device, "
                    "expected files and folders."
                )
            packed.extract(member, folder)
            tell(raw.tell())


def _decompress(raw: IO[bytes], kind: Unpack, to: Path, tell: Tell) -> None:
    opener = lzma.open if kind == "xz" else gzip.open
    to.parent.mkdir(parents=True, exist_ok=True)
    with opener(raw, "rb") as packed, to.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            file.write(chunk)
            tell(raw.tell())
