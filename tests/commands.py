"""Commands as a user types them, run in the process of the test."""

import json
from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """What a command gave."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """What it wrote with ``--json``."""
        return json.loads(self.out)


Lamm = Callable[..., Answer]
