"""What the pages tell a user to type is understood, and what they name is there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from lamm.cli.main import app
from lamm.config import read_run_config
from lamm.demo.config import read_demo_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]


def commands(page: Path) -> list[list[str]]:
    """The ``lamm`` commands in a page's indented blocks, as words."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        text = line.split("  #")[0]
        match = re.match(r"\s{4,}(?:torchrun .* -m )?(lamm .*)", text)
        if match:
            found.append(shlex.split(match[1])[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_page_parses(page: Path):
    for words in commands(page):
        command, name = get_command(app), "lamm"
        while hasattr(command, "commands"):
            name, *words = words
            assert name in command.commands, f"{page.name}: lamm {name}"
            command = command.commands[name]
        command.make_context(name, list(words))


def test_the_readme_has_commands_at_all():
    assert len(commands(ROOT / "README.md")) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_in_configs_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORES", "stores")
    mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "downstream" in mapping:
        read_demo_config(path)
    elif "base" in mapping:
        from lamm.config import read_finetune_config

        read_finetune_config(path)
    else:
        read_run_config(path)


def test_the_shipped_demonstration_is_valid():
    config = read_demo_config()
    assert set(config.data.subsets) >= {"molecules_unlabelled", "slabs_chgnet"}
