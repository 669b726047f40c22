"""A rank that ends: ``ends.py HOW FOLDER``; what it does at its end, it writes to FOLDER/RANK."""

import atexit
import sys
from pathlib import Path
from threading import Thread
from time import sleep

from lamm.train.distributed import join, leave
from lamm.train.ending import run_to_the_end


class Last:
    """Tells of the interpreter's end."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __del__(self) -> None:
        with self.file.open("a") as notes:
            notes.write("taken down\n")


def main(how: str, folder: Path) -> None:
    world = join("cpu")
    file = folder / str(world.rank)
    main.last = Last(file)  # type: ignore[attr-defined]

    def note(words: str) -> None:
        with file.open("a") as notes:
            notes.write(f"{words}\n")

    def writer() -> None:
        sleep(0.2)
        note("written")

    atexit.register(note, "atexit")
    leave(world)
    Thread(target=writer).start()
    print("said", end="")  # not flushed
    if how == "fault":
        raise KeyError("lost")
    if how == "status":
        sys.exit(3)
    if how == "words":
        sys.exit("no such thing")


if __name__ == "__main__":
    how, folder = sys.argv[1], Path(sys.argv[2])
    if how == "plain":
        main(how, folder)
    else:
        run_to_the_end(lambda: main(how, folder))
