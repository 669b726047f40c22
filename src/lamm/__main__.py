"""``python -m lamm``: the same as the ``lamm`` command, for launchers such as torchrun."""

from lamm.cli.main import run

run()
