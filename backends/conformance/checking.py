"""Checking: what is wrong with a configuration is said before anything is launched."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.base import BackendError, Unauthorized, Unreachable
from backends.conformance.failing import name_of, refusing
from backends.conformance.harness import Circumstance
from backends.conformance.stand import Case, Stand


class Checking(Case):
    """Every test is a promise of `Backend.check`."""

    def test_a_configuration_that_works_has_nothing_wrong(
        self, stand: Stand, tmp_path: Path
    ) -> None:
        before = sorted(tmp_path.rglob("*"))
        findings = stand.backend.check()
        assert findings
        assert [finding for finding in findings if finding.error] == []
        for finding in findings:
            assert finding.subject
            assert finding.sentence
        assert sorted(tmp_path.rglob("*")) == before
        assert stand.backend.list_jobs() == []

    @pytest.mark.parametrize(
        ("circumstance", "error"),
        [
            (Circumstance.UNAUTHORIZED, Unauthorized),
            (Circumstance.UNREACHABLE, Unreachable),
            (Circumstance.HANGING, Unreachable),
        ],
        ids=name_of,
    )
    def test_a_service_that_refuses_is_found_out_and_there_is_a_remedy(
        self, stand: Stand, circumstance: Circumstance, error: type[BackendError]
    ) -> None:
        with refusing(stand, circumstance):
            findings = stand.backend.check()
        wrong = [finding for finding in findings if isinstance(finding.error, error)]
        assert wrong, findings
        for finding in wrong:
            assert "\n" not in finding.sentence
            assert finding.remedy
