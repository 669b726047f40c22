"""A look at the instructions of a pickle before any of them is carried out.

Python's unpickler takes some instructions at their word: one of 5 bytes makes it reserve and fill
64 GB. Here a pickle is walked through without carrying it out, so that one that was cut short, asks
for what no file of structures needs, or isn't a pickle, is refused first.
"""

from __future__ import annotations

import pickle
import sys
from typing import Final

from lamm.errors import DataError

MAX_TUPLES: Final = 10_000
"""Tuples in one record. Python looks into a tuple within a tuple, and so on, to use the outer one
as a key, and a hundred thousand of them end the process."""

_LINE, _TWO_LINES, _WATCHED = -100, -200, -300
"""Arguments that end with a line; the others are bytes, counted by as many bytes as a negative.
Watched instructions have no argument either."""

_WIDTHS: Final[dict[bytes, int]] = {
    **dict.fromkeys(
        (
            *(pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE),
            *(pickle.REDUCE, pickle.BUILD, pickle.NEWOBJ, pickle.STACK_GLOBAL, pickle.BINPERSID),
            *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
            *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
            *(pickle.EMPTY_TUPLE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.MEMOIZE),
        ),
        0,
    ),
    **dict.fromkeys((pickle.PROTO, pickle.BININT1, pickle.BINGET, pickle.BINPUT), 1),
    pickle.BININT2: 2,
    **dict.fromkeys((pickle.BININT, pickle.LONG_BINGET, pickle.LONG_BINPUT), 4),
    **dict.fromkeys((pickle.BINFLOAT, pickle.FRAME), 8),
    **dict.fromkeys(
        (pickle.SHORT_BINUNICODE, pickle.SHORT_BINBYTES, pickle.SHORT_BINSTRING, pickle.LONG1), -1
    ),
    **dict.fromkeys((pickle.BINUNICODE, pickle.BINBYTES, pickle.BINSTRING), -4),
    **dict.fromkeys((pickle.BINUNICODE8, pickle.BINBYTES8, pickle.BYTEARRAY8), -8),
    pickle.GLOBAL: _TWO_LINES,
    **dict.fromkeys((pickle.INT, pickle.FLOAT), _LINE),
    **dict.fromkeys(
        (pickle.STOP, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), _WATCHED
    ),
}
"""Length of each instruction's argument; what isn't here is refused."""
_TABLE: Final = tuple(_WIDTHS.get(bytes((code,))) for code in range(256))
_STOP, _LONG_BINPUT, _FRAME = pickle.STOP[0], pickle.LONG_BINPUT[0], pickle.FRAME[0]


def end_of_pickle(data: bytes, start: int = 0, max_tuples: int = MAX_TUPLES) -> int:
    """Where a pickle ends, if its instructions are ones that files of structures need.

    Args:
        data: one pickle, or several one after the other, and what follows them.
        start: where the pickle begins.
        max_tuples: most tuples that it may have.

    Returns:
        The place behind its last instruction.

    Raises:
        DataError: it isn't a pickle, it was cut short, or has an instruction that is not needed.
    """
    position, length, table = start, len(data), _TABLE
    frame_end = no_frame = sys.maxsize
    tuples = 0
    while position < length:
        if position >= frame_end:
            if position > frame_end:
                break  # Python's unpickler would drop what is left of the frame and read on
            frame_end = no_frame
        code = data[position]
        width = table[code]
        position += 1
        if width == 0:
            continue
        if width == _WATCHED:
            if code == _STOP:
                return position
            tuples += 1
            if tuples > max_tuples:
                raise DataError(f"a hostile pickle: more than {max_tuples} tuples in one record.")
        elif width is None:
            raise DataError(
                f"not a pickle that can be read here: byte {position - 1} is "
                f"{bytes((code,))!r}, expected an instruction of a pickle of protocol 2 or later."
            )
        elif width > 0:
            if code == _LONG_BINPUT and _little(data, position, 4) > length:
                raise DataError(
                    f"a damaged or hostile pickle: byte {position - 1} asks for room for "
                    f"{_little(data, position, 4)} objects in {length} bytes."
                )
            elif code == _FRAME:
                if frame_end != no_frame:
                    break
                frame_end = position + 8 + _little(data, position, 8)
            position += width
        elif width > _LINE:
            position += _little(data, position, -width) - width
        else:
            for _ in range(width // _LINE):
                position = data.find(b"\n", position) + 1 or length + 1
    raise DataError(
        f"a pickle that was cut short or damaged: its {length} bytes don't hold a whole one."
    )


def _little(data: bytes, position: int, width: int) -> int:
    return int.from_bytes(data[position : position + width], "little")
