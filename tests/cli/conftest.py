"""The command of the package."""

import sys

import pytest

from commands import Answer, Lamm
from lamm.cli.main import run


@pytest.fixture
def lamm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lamm:
    """``lamm`` with the words that are given."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["lamm", *map(str, words)])
        status = 0
        try:
            run()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Answer(status, *capsys.readouterr())

    return call
