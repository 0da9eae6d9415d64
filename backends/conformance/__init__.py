"""The promises of backends.base as tests: one suite that every backend passes, plugins included.

    from backends.conformance import Conformance, Harness

    class MyHarness(Harness): ...

    class TestMyBackend(Conformance):
        @pytest.fixture
        def harness(self) -> Iterator[MyHarness]: ...

Needs pytest, and of this project nothing but backends.base. Not for what one service alone does:
that is in the tests of its own backend.
"""

from __future__ import annotations

import pytest

for _part in (
    *("checking", "ending", "failing", "launching", "ownership"),
    *("scale", "secrecy", "stand", "stand_in", "states"),
):
    pytest.register_assert_rewrite(f"backends.conformance.{_part}")

# ruff: noqa: E402 - what is imported before it is registered does not explain its failures
from backends.conformance.checking import Checking
from backends.conformance.ending import Ending
from backends.conformance.failing import Failing
from backends.conformance.harness import Circumstance, Harness
from backends.conformance.launching import Launching
from backends.conformance.ownership import Ownership
from backends.conformance.scale import Scale
from backends.conformance.secrecy import Secrecy
from backends.conformance.stand_in import leave_word, stand_in
from backends.conformance.states import States

__all__ = ["Circumstance", "Conformance", "Harness", "leave_word", "stand_in"]


class Conformance(Launching, States, Ending, Ownership, Failing, Checking, Secrecy, Scale):
    """Every promise. A subclass named `Test…` gives it a ``harness`` by a fixture of that name."""
