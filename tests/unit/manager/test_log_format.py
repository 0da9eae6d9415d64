from __future__ import annotations

import json
import logging
import sys

import pytest

from manager.log_format import JsonLine, complain


def record(message: str, *words: object, error: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("inner")
    except ValueError:
        info = sys.exc_info() if error else None
    made = logging.LogRecord("manager", logging.WARNING, "x.py", 1, message, words, info)
    made.created = 1_700_000_000.25
    return made


def test_a_line_is_one_object_whatever_is_in_it() -> None:
    line = JsonLine().format(record('%s said\n"%s" ü', "who", "what"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "warning",
        "message": 'who said\n"what" ü',
    }


def test_where_an_error_came_from_is_in_the_same_line() -> None:
    line = JsonLine().format(record("no", error=True))
    assert "\n" not in line
    assert "ValueError: inner" in json.loads(line)["error"]


def test_a_complaint_is_a_line_of_its_own_or_of_the_log(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complain("it is broken")
    assert capsys.readouterr().err == "worker-manager: it is broken\n"
    assert caplog.records == []
    monkeypatch.setattr(caplog.handler, "formatter", JsonLine())
    complain("100 % broken")
    assert capsys.readouterr().err == ""
    assert [r.getMessage() for r in caplog.records] == ["100 % broken"]
