"""What a source format is: a reader, the files that it reads, and what it knows of them itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from lamm.data.cards import CardHeader
from lamm.data.readers.common import KeysFound, NoOptions, SkippedRecord
from lamm.schema import Frozen
from lamm.structure import Structure

OnError: TypeAlias = Literal["stop", "skip"]


_COMPRESSED = (".xz", ".gz", ".bz2")


class Reader(Protocol):
    """What a format has to provide: a file to structures in eV and Å, one by one."""

    def __call__(
        self,
        path: str | Path,
        header: CardHeader,
        *,
        on_error: OnError = "stop",
        name: str | None = None,
        found: KeysFound | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Structure | SkippedRecord]:
        """Read a file, or the records of it from number `start` to before number `stop`.

        A record has the same number, id and origin wherever reading begins. Where records can't be
        reached without those before, these are passed over as cheaply as the format allows.

        Args:
            path: the file (a folder for formats whose sources are folders).
            header: labels that are promised, keys, units, options of the format.
            on_error: whether a bad record stops reading, or is given as `SkippedRecord`.
            name: what ids and origins call the file; its own name where left out.
            found: is told what the file calls the labels, and what else it has.
            start: number of the first record, from 0.
            stop: number of the first record that is not read; to the end where left out.

        Raises:
            DataError: a record can't become a structure (with `on_error="stop"`), or the file can't
                be read on.
        """
        ...


class Counter(Protocol):
    """Tells how many records a file has, without reading them."""

    def __call__(self, path: str | Path, header: CardHeader) -> int | None:
        """Count the records, skipped ones included; None for a file that has to be read whole.

        Raises:
            DataError: the file can't be read.
        """
        ...


@dataclass(frozen=True)
class Format:
    """One source format."""

    read: Reader
    suffixes: tuple[str, ...]
    """How the sources end, lower case: what is looked for in a folder."""
    describe: str
    """One line for the command line's help."""
    options: type[Frozen] = NoOptions
    """What the card may say to the reader under `reader`."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """Card entries that the format itself settles, such as units; a written card goes first."""
    count: Counter | None = None
    """Given where any record can be reached at once: such files are read in parts, side by side."""
    folders: bool = False
    """Whether a source is a folder as a whole."""

    @property
    def endings(self) -> str:
        """The suffixes in short: the kinds of compression once for all."""
        plain = [one for one in self.suffixes if not one.endswith(_COMPRESSED)]
        packed = [one for one in _COMPRESSED if any(name + one in self.suffixes for name in plain)]
        return " ".join(plain) + (f" (and {', '.join(packed)})" if packed else "")

    def as_dict(self) -> dict[str, Any]:
        """What there is to know of the format, as JSON has it."""
        return {
            "describe": self.describe,
            "suffixes": list(self.suffixes),
            "settles": dict(self.header),
            "options": [
                {
                    "name": name,
                    "default": _plain(field.get_default(call_default_factory=True)),
                    "description": field.description or "",
                }
                for name, field in self.options.model_fields.items()
            ],
        }


def _plain(value: Any) -> Any:
    """A default as JSON has it; of options within options only what isn't their own default."""
    if isinstance(value, Frozen):
        return value.model_dump(mode="json", exclude_defaults=True)
    return list(value) if isinstance(value, tuple) else value
