"""The ``lamm`` command of a rank, which leaves its process id in a file of a folder."""

import os
import sys
from pathlib import Path

from lamm.cli.main import run

if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    note = folder / f"pid-{restart}-{os.environ.get('RANK', '0')}"
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    run()
