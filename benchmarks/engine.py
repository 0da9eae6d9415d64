"""The container engine of the engine tests, for a measurement: started for it, gone after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENGINES = Path(__file__).resolve().parents[1] / "tests" / "engines"


@contextmanager
def container_engine() -> Iterator[Any]:
    """A `docker_engine.DockerEngine` that runs; its ``image`` has a shell."""
    sys.path.append(str(ENGINES))
    try:
        from docker_engine import IMAGE, DockerEngine  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(ENGINES))
    engine = DockerEngine()
    try:
        engine.start()
        engine.import_base()
        engine.image = IMAGE
        yield engine
    finally:
        engine.stop()
