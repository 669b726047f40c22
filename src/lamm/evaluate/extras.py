"""Packages of the `map` extra, which a plain installation doesn't have."""

from __future__ import annotations

import importlib.util

from lamm.errors import ConfigError


def require_extra(module: str, package: str, what: str, otherwise: str) -> None:
    """Stop where a package of the extra isn't installed.

    Args:
        module: what is imported.
        package: its name for pip.
        what: what needs it.
        otherwise: what the user may do without it.

    Raises:
        ConfigError: it isn't there.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"{what} needs the package {package}, which isn't installed.\n"
            f"  Install it with `pip install 'lamm[map]'`, or {otherwise}."
        )
