from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from taufree.data.systems import System, registry


@pytest.fixture(scope="session")
def small() -> Callable[..., System]:
    """A registered system in a small basis."""

    def of(name: str, basis: str = "def2-svp") -> System:
        return replace(registry()[name], basis=basis)

    return of
