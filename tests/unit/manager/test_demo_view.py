from __future__ import annotations

import io

import pytest
from rich.console import Console

from manager.demo.pipeline import EXPECTED, Pipeline
from manager.demo.view import Moment, picture


def moment() -> Moment:
    pipeline = Pipeline()
    states = ["created", "staged", "running", "ready", "failed"]
    pipeline.states = {name: states[number % 5] for number, name in enumerate(EXPECTED)}
    made = Moment(pipeline, server="http://127.0.0.1:33151", seconds=12.3, max_workers=3)
    made.jobs = [
        {"worker": f"local-process-{n}-0a1b2c3d", "state": state, "exit_code": 0}
        for n, state in enumerate(["ended", "active", "active", "pending", "ended"] * 3)
    ]
    made.last = {
        "snapshot": {"staged": 16, "pending": 0, "active": 3},
        "decision": {
            "launch": 3,
            "reasons": [{"code": "staged", "held": True, "sentence": "16 bundles staged " * 9}],
        },
    }
    for number in range(80):
        made.tell(f"{number:6.2f} s  something happened " + "and went on " * 20)
    return made


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_the_picture_fits_its_terminal_and_fills_it(width: int, height: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=height)
    lines = console.render_lines(picture(moment(), width, height), pad=False)
    texts = ["".join(segment.text for segment in line) for line in lines]
    assert height - 3 <= len(texts) < height
    assert max(map(len, texts)) <= width
    assert texts[0].startswith("worker-manager demo")
    assert sum("╭" in text for text in texts) == 3


def test_a_picture_of_the_very_beginning_can_be_made() -> None:
    console = Console(file=io.StringIO(), width=80, height=24)
    console.print(picture(Moment(Pipeline()), 80, 24))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "none yet" in shown
