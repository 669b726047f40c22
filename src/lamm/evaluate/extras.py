"""Packages of the `map` extra, which a plain installation doesn't have."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

from lamm.errors import ConfigError


class Extra(NamedTuple):
    """A package of the extra, and how to do without it."""

    module: str
    """What is imported."""
    package: str
    """Its name for pip."""
    what: str
    """What needs it."""
    otherwise: str
    """Options of the command line that leave this out."""


UMAP = Extra("umap", "umap-learn", "a map by UMAP", "--projection pca")
CHEMISCOPE = Extra("chemiscope", "chemiscope", "the interactive page", "--no-page")


def require_extras(*extras: Extra) -> None:
    """Stop where packages of the extra aren't installed, and name all of them.

    Raises:
        ConfigError: one isn't there.
    """
    missing = [one for one in extras if importlib.util.find_spec(one.module) is None]
    if missing:
        what = " and ".join(one.what for one in missing)
        packages = " and ".join(one.package for one in missing)
        options = " ".join(one.otherwise for one in missing)
        raise ConfigError(
            f"not installed: {packages}, for {what}.\n"
            f"  Install with `pip install 'lamm[map]'`, or go without: add `{options}`."
        )
