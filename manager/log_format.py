"""How a manager's log is written: lines for people, or objects of JSON for machines. Not what."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

FORMATS = ("text", "json")


class JsonLine(logging.Formatter):
    """`{"time", "level", "message"}` and, where there is one, `"error"`, its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def write_json() -> None:
    """From now on whatever is logged is JSON."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLine())


def complain(sentence: str) -> None:
    """What a person has to know, on stderr: a line of its own, or of the log when that is JSON."""
    handlers = logging.getLogger().handlers
    if any(isinstance(handler.formatter, JsonLine) for handler in handlers):
        logging.getLogger("manager").error("%s", sentence)
    else:
        print(f"worker-manager: {sentence}", file=sys.stderr)
