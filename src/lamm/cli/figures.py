"""``lamm figures``: the paper's figures and table of its data, for any joint data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamm.cli import common
from lamm.cli.common import ForceFlag, JsonFlag
from lamm.cli.structures import check_folder
from lamm.errors import ConfigError

if TYPE_CHECKING:
    from lamm.data.joint import DataConfig


def figures(
    config: Annotated[Path, typer.Argument(help="YAML file with a `data` section.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the files.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, such as data.sampling.temperature=1.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also show IS2RE subsets, which the paper leaves out.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the structures that Fig. 4 samples.")] = 0,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Draw Fig. 2 (elements) and Fig. 4 (sizes) of a joint data set, and write its Table 2."""
    from lamm.data.joint import JointDataset
    from lamm.data.overview import joint_overview, subset_sizes, table_json
    from lamm.evaluate.dataset_figures import (
        FILES,
        shown_subsets,
        write_dataset_figures,
    )

    common.start_logging(quiet=as_json)
    data = read_data_config(config, overrides or ())
    check_folder(to, FILES, force)
    joint = JointDataset(data)
    overview = joint_overview(joint)
    sizes = {subset.name: subset_sizes(subset) for subset in joint.subsets}
    title = f"Joint data set of {config.name}"
    paths = write_dataset_figures(overview, sizes, to, title, everything=everything, seed=seed)
    shown = shown_subsets(overview, everything=everything)
    if as_json:
        left_out = [name for name in joint.names if name not in shown]
        files = {path.name: str(path) for path in paths}
        common.emit_json(
            {"to": to, "files": files, "left_out": left_out, "table2": table_json(overview)}
        )
        return
    common.say(
        f"{len(shown)} of {len(joint.names)} subsets drawn, all in the table -> {to / 'index.html'}"
    )


def read_data_config(path: Path, overrides: Sequence[str] = ()) -> DataConfig:
    """The joint data set of any configuration, or of a file that holds nothing else.

    Raises:
        ConfigError: the file is missing or has no data set, or a key or value of it is wrong.
    """
    from lamm.config import override
    from lamm.data.joint import DataConfig
    from lamm.schema import load_yaml, parse

    values = load_yaml(path)
    if overrides:
        values = override(values, overrides)
    if "data" in values:
        return parse(DataConfig, values["data"], f"{path}, 'data'")
    if "subsets" in values:
        return parse(DataConfig, values, str(path))
    raise ConfigError(
        f"{path}: found {', '.join(map(str, values)) or 'no key'}, expected 'data' with 'subsets' "
        "below it.\n  Name a configuration of `lamm pretrain`, or the data section of one."
    )
