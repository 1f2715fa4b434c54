"""A fleet that outlives the tests of a module, and must be as good as new after each of them."""

from collections.abc import AsyncGenerator

import pytest

from tests.harness.steady import Steady, steady


@pytest.fixture(scope="module")
async def module_fleet(module_url: str) -> AsyncGenerator[Steady]:
    """One worker for all tests of a module."""
    async with steady(module_url) as fleet:
        yield fleet


@pytest.fixture
async def steady_fleet(module_fleet: Steady) -> AsyncGenerator[Steady]:
    """The module's fleet. After the test it must speak for others, with all slots free."""
    module_fleet.logs.clear()
    yield module_fleet
    print(*module_fleet.logs, sep="\n")
    await module_fleet.goes_on()
