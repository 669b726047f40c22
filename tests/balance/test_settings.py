"""Batch sizes and budgets in a configuration."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lamm.balance.settings import BalanceConfig, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("14GiB", 14 * 2**30), ("14 GB", 14 * 10**9), ("1.5MiB", 3 * 2**19), ("80gib", 80 * 2**30)],
)
def test_memory_in_a_persons_units(text, size):
    assert parse_bytes(text) == size
    assert BalanceConfig(memory=text).has_budget


@pytest.mark.parametrize("text", ["14", "GiB", "0GiB", "-1GiB", "a lot", "14 GiBs"])
def test_what_is_no_amount_of_memory_is_one_error(text):
    with pytest.raises(ValidationError, match="is no amount of memory; expected one as 14GiB"):
        BalanceConfig(memory=text)


def test_one_of_batch_size_and_budgets():
    with pytest.raises(ValidationError, match="batch_size and memory are given"):
        BalanceConfig(batch_size=4, memory="1GiB")
    with pytest.raises(ValidationError, match="memory and max_cost are given"):
        BalanceConfig(max_cost=4, memory="auto")


def test_without_any_of_them_a_rank_has_eight_structures():
    assert BalanceConfig().structures_per_rank == 8
    assert BalanceConfig(batch_size=3).structures_per_rank == 3
