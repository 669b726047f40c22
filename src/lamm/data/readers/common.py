"""What the readers share: skipped records, the names of labels, text files compressed or not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, cast

from lamm.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

IGNORED = "none"
"""Written for a key in the card: ignore what the source has."""


class SkippedRecord(NamedTuple):
    """A record that didn't become a structure."""

    record: str
    reason: str


class KeysFound:
    """What a source calls each label, and that it does so throughout."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def note(self, label: str, key: str) -> None:
        """Remember a label's key.

        Raises:
            DataError: an earlier record calls the label otherwise.
        """
        known = self.names.setdefault(label, key)
        if known != key:
            raise DataError(
                f"its {label} label is called '{key}', and '{known}' in records before it.\n"
                f"  Say which it is with `keys: {{{label}: {known}}}` in the card."
            )


def choose_key(
    quantity: str, named: str | None, usual: Iterable[str], present: Iterable[str], promised: bool
) -> str | None:
    """The key of a quantity in a record, or None where the record doesn't have it.

    Args:
        quantity: ``energy``, ``forces`` and so on: the entry of `keys` in the card.
        named: the key that the card names.
        usual: names to look for where the card names none.
        present: keys of the record.
        promised: whether the card says that every record has it.

    Raises:
        DataError: several candidates, or none where one is promised.
    """
    has = set(present)
    candidates = [key for key in ([named] if named is not None else usual) if key in has]
    if len(candidates) > 1:
        listed = "', '".join(candidates)
        raise DataError(
            f"'{listed}' could all be the {quantity}.\n"
            f"  Say which it is with `keys: {{{quantity}: {candidates[0]}}}` in the card."
        )
    if not candidates and promised:
        wanted = f"'{named}'" if named is not None else f"'{quantity}'"
        raise DataError(
            f"no {wanted}, which the card promises; the record has: "
            f"{', '.join(sorted(has)) or 'nothing'}.\n  Name the right key under "
            f"`keys.{quantity}` in the card, or leave '{quantity}' out of `labels`."
        )
    return candidates[0] if candidates else None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file itself into a `DataError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path.") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the compressed file is damaged or cut short ({error}). Fetch it again."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error}).") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error}).") from error


def open_text(path: Path) -> TextIO:
    """Open a text file, decompressing ``.xz``, ``.gz`` and ``.bz2``."""
    openers: dict[str, Callable[..., object]] = {
        ".xz": lzma.open,
        ".gz": gzip.open,
        ".bz2": bz2.open,
    }
    opener = openers.get(path.suffix.lower(), open)
    return cast(TextIO, opener(path, "rt", encoding="utf-8"))
