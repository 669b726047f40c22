"""The split that a source's path tells: ``.../val_id/data.0003.lmdb``, ``hme21_test.xyz``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

from lamm.data.splits import SPELLINGS
from lamm.errors import DataError

SplitOption: TypeAlias = Literal["train", "val", "test", "from_path"]
"""What a card may say under `split`: one split for all sources, or see `split_of_path`."""

FOLDERS_LOOKED_AT: Final = 2
_WORD = re.compile(r"[a-z]+")


def split_of_path(path: str | Path) -> str | None:
    """The split that the path of a source names, or None.

    The file's own name is looked at first, then the folder that it is in, then the folder of that
    one, and no further: folders above are the user's own. The first of these three that has one of
    the words of `SPELLINGS` (train, val, validation, test, ...) tells the split, whatever stands
    around the word: ``s2ef_val_ood_ads`` is 'val'. A name with words of several splits, such as
    ``is2res_train_val_test_lmdbs``, tells none, and the next one is looked at.

    Args:
        path: the source, as it was named; it need not exist.

    Returns:
        'train', 'val', 'test' or None.
    """
    parts = Path(path).absolute().parts[1:]
    for part in reversed(parts[-1 - FOLDERS_LOOKED_AT :]):
        words = _WORD.findall(part.lower())
        named = {SPELLINGS[word] for word in words if word in SPELLINGS}
        if len(named) == 1:
            return named.pop()
    return None


def source_split(path: str | Path, option: SplitOption | None) -> str | None:
    """The split of all records of a source, by what the card says under `split`.

    Args:
        path: the source.
        option: a split; ``from_path`` for `split_of_path`; None for no split.

    Raises:
        DataError: the path is to tell the split and doesn't.
    """
    if option != "from_path":
        return option
    split = split_of_path(path)
    if split is None:
        raise DataError(
            f"{path}: its name and the two folders that it is in don't tell a split, expected one "
            "word of train, val, test (`split: from_path` in the card).\n"
            "  Rename the folder, write the split into the card, such as `split: train`, or "
            "`split: null` for a split by the hash of each id."
        )
    return split
