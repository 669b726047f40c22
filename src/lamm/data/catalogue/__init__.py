"""The data sets that LaMM knows: where their files are, and the card that they start from.

One YAML file per data set lies beside this module. A source may be one file, a file for each part
of the data, or a long row of blocks whose names follow a pattern; all of them become
`SourceFile`s here. Facts that the source doesn't publish are left out, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self, TypeAlias
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from lamm.data.cards import CardHeader, Texts
from lamm.errors import ConfigError, nearest_names
from lamm.schema import Frozen, load_yaml, parse

Unpack: TypeAlias = Literal["none", "tar", "tar.gz", "tar.bz2", "zip", "xz", "gz"]
Split: TypeAlias = Literal["train", "val", "test"]

FOLDERS: Final = ("tar", "tar.gz", "tar.bz2", "zip")
"""Kinds of `Unpack` that become a folder; the others become one file."""
_SIZES: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40} | {
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def _parse_size(value: Any) -> Any:
    """Bytes of a size such as ``344 MiB``; everything else as it is."""
    if not isinstance(value, str):
        return value
    number, _, unit = value.partition(" ")
    try:
        return round(float(number) * _SIZES[unit])
    except (KeyError, ValueError):
        raise ValueError(
            f"found '{value}', expected a number and one of {', '.join(_SIZES)}, such as '1.7 GiB'."
        ) from None


Size: TypeAlias = Annotated[NonNegativeInt, BeforeValidator(_parse_size)]
Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


class SourceFile(Frozen):
    """A file at the source, and what becomes of it."""

    part: str
    """What `--parts` calls it; several files may belong to one part."""
    url: str = Field(pattern=r"^https?://\S+$")
    name: str = Field(default="", pattern=r"^[^/\\]*$")
    """Of the downloaded file; the last piece of the address where left out."""
    bytes: NonNegativeInt | None = None
    """Exact size, where it is known."""
    size: Size | None = None
    """Rounded size as the source gives it, such as ``344 MiB``."""
    unpacked_size: Size | None = None
    md5: Annotated[Digest, Field(min_length=32, max_length=32)] | None = None
    """As the source publishes it; likewise below. None: it publishes none that we know of."""
    sha256: Annotated[Digest, Field(min_length=64, max_length=64)] | None = None
    unpack: Unpack = "none"
    unpacked: str = Field(default="", pattern=r"^[^/\\]*$")
    """What unpacking makes: a folder, or the file of an ``xz`` or ``gz``. The part's name, or the
    file's without its ending, where left out."""
    ingest: Texts = ()
    """Patterns of the files to ingest, below the unpacked folder; all of the format's files, or the
    file itself, where left out."""
    split: Split | None = None
    """Where the source says what the whole file is for."""
    structures: PositiveInt | None = None
    optional: bool = False
    """Whether the source may lack it, as a block of which nothing is left."""
    aside: bool = False
    """Whether it only goes with the data and is not ingested, such as a table."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.name and not _last_piece(self.url):
            raise ValueError(f"'{self.url}' ends without a file's name: write `name: ...`.")
        if self.ingest and self.unpack not in FOLDERS:
            raise ValueError("`ingest` is for what is unpacked into a folder.")
        for pattern in self.ingest:
            if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
                raise ValueError(f"`ingest: {pattern}` leads out of the folder.")
        return self

    @property
    def file_name(self) -> str:
        """Of the downloaded file."""
        return self.name or _last_piece(self.url)

    @property
    def product(self) -> str:
        """Name of what is left for ingestion: the unpacked folder or file, or the file itself."""
        if self.unpack == "none":
            return self.file_name
        if self.unpacked:
            return self.unpacked
        if self.unpack in FOLDERS:
            return self.part
        return self.file_name.removesuffix(f".{self.unpack}")

    @property
    def about_bytes(self) -> int | None:
        """Exact size, or the rounded one."""
        return self.bytes if self.bytes is not None else self.size


class Blocks(Frozen):
    """A row of files whose names hold the numbers of their first and last record, from 1."""

    url: str
    """With ``{first}`` and ``{last}``, formatted as Python does: ``{first:08d}``."""
    count: PositiveInt
    """How many there are at most; parts are called 0 to `count` - 1."""
    records: PositiveInt
    """Numbers in each."""
    size: Size | None = None
    """Of one, about."""
    optional: bool = False
    """Whether the source may lack some of them."""

    def block(self, number: int) -> SourceFile:
        """The file of one block."""
        first = number * self.records + 1
        url = self.url.format(first=first, last=first + self.records - 1)
        return SourceFile(part=str(number), url=url, size=self.size, optional=self.optional)


class Entry(Frozen):
    """A data set."""

    name: str
    title: str
    format: str
    """A key of `lamm.data.readers.FORMATS`."""
    header: CardHeader
    """What its card starts from; a card that a person writes goes first."""
    homepage: str
    structures: PositiveInt | None = None
    """As its authors count them."""
    files: tuple[SourceFile, ...] = ()
    blocks: Blocks | None = None
    listing: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Address of figshare's description of a record (JSON), which lists the files."""
    choose: str = ""
    """Given where nobody wants all parts at once: why `--parts` must be written."""
    manual: str = ""
    """Given where a program can't fetch the files: what a person has to do."""
    evidence: Texts = ()
    """Where sizes, checksums and counts are from."""
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [bool(self.files), self.blocks is not None, bool(self.listing), bool(self.manual)]
        if sum(given) != 1:
            raise ValueError("write one of `files`, `blocks`, `listing` and `manual`.")
        if not self.header.licence or not self.header.citation:
            raise ValueError("`header` needs `licence` and `citation`.")
        for kind in ("file_name", "product"):
            names = [getattr(file, kind) for file in self.files]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two files are called '{twice[0]}': write `name` or `unpacked`.")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """Names for `--parts`, in the order of the files."""
        if self.blocks is not None:
            return tuple(str(number) for number in range(self.blocks.count))
        return tuple(dict.fromkeys(file.part for file in self.files))

    @property
    def about_bytes(self) -> int | None:
        """Size of all parts together, about; None where one is unknown."""
        if self.blocks is not None:
            return None if self.blocks.size is None else self.blocks.size * self.blocks.count
        sizes = [file.about_bytes for file in self.files]
        return None if None in sizes or not sizes else sum(size for size in sizes if size)

    def choose_files(self, parts: Sequence[str] = ()) -> tuple[SourceFile, ...]:
        """The files of some parts, or of all; those of a `listing` only the source can tell.

        Args:
            parts: names, patterns such as ``val_*``, or for blocks numbers and ranges, ``0-9``.

        Raises:
            ConfigError: nothing can be fetched by a program, the parts have to be chosen and are
                not, or one is unknown.
        """
        if self.manual:
            raise ConfigError(f"{self.name}: {self.manual}")
        if not parts:
            if self.choose:
                raise ConfigError(
                    f"{self.name}: {self.choose}\n  Say which with --parts. "
                    f"{self._describe_parts()}"
                )
            parts = ("*",) if self.blocks is None else (f"0-{self.blocks.count - 1}",)
        if self.blocks is not None:
            return tuple(map(self.blocks.block, self._block_numbers(self.blocks, parts)))
        wanted: set[str] = set()
        for pattern in parts:
            matching = {part for part in self.parts if fnmatchcase(part, pattern)}
            if not matching:
                raise ConfigError(
                    f"{self.name}: no part '{pattern}'. {nearest_names(pattern, self.parts)}"
                )
            wanted |= matching
        return tuple(file for file in self.files if file.part in wanted)

    def _describe_parts(self) -> str:
        if self.blocks is not None:
            return f"Parts are numbers from 0 to {self.blocks.count - 1}, such as --parts 0-9."
        return f"Known: {', '.join(self.parts)}."

    def _block_numbers(self, blocks: Blocks, parts: Sequence[str]) -> list[int]:
        numbers: set[int] = set()
        for part in parts:
            match = _RANGE.fullmatch(part)
            first = int(match[1]) if match else 0
            last = int(match[2] or match[1]) if match else -1
            if not first <= last < blocks.count:
                raise ConfigError(f"{self.name}: no parts '{part}'. {self._describe_parts()}")
            numbers.update(range(first, last + 1))
        return sorted(numbers)


def _last_piece(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


@cache
def load_catalogue() -> dict[str, Entry]:
    """Every data set by its name, in order of the names.

    Raises:
        ConfigError: a file of the catalogue is wrong.
    """
    folder = files(__package__)
    texts = sorted(item.name for item in folder.iterdir() if item.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): _load(name) for name in texts}


def _load(file_name: str) -> Entry:
    path = str(files(__package__) / file_name)
    return parse(Entry, {"name": file_name.removesuffix(".yaml"), **load_yaml(path)}, file_name)


def find(name: str) -> Entry:
    """The data set of that name.

    Raises:
        ConfigError: there is none; the message offers close names.
    """
    catalogue = load_catalogue()
    if name not in catalogue:
        raise ConfigError(
            f"unknown data set '{name}'. {nearest_names(name, catalogue)}\n"
            "  `lamm data list` shows them all."
        )
    return catalogue[name]
