from __future__ import annotations

import pytest
from cli_desk import Desk, Outcome, Run

from bundles.cli import main
from bundles.cli.options import Connection


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk()
    monkeypatch.setattr(Connection, "client", lambda self: desk.client())
    return desk


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `bundles ARGUMENTS…` in this process."""
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        written = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, written.out, written.err)

    return run
