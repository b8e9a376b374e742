"""The server's log: a message is one line, whatever strangers wrote into it."""

from __future__ import annotations

import logging
from typing import Optional


#: The logger of the server and its workers.
NAME = "v2l.serve"


def _escaped(text: str) -> str:
    """The text with everything escaped that moves a terminal, or that could pass for the end of a line."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class Formatter(logging.Formatter):
    """Writes each message on one line, and each line of a traceback behind a mark that no message begins with."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a message."""
        record.message = _escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """The lines of a traceback."""
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]
        return "\n".join(f"  | {_escaped(line)}" for line in lines)

    def formatStack(self, stack_info: str) -> str:
        """The lines of a stack."""
        return "\n".join(f"  | {_escaped(line)}" for line in super().formatStack(stack_info).split("\n"))


class OneLine(logging.Filter):
    """Makes a message one line, whoever writes it: Ray and other programs have formatters of their own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes every record."""
        record.msg, record.args = _escaped(record.getMessage()), None
        return True


logging.getLogger(NAME).addFilter(OneLine())


def configure(level: int, datefmt: Optional[str] = None) -> None:
    """Sends the process's log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(message)s", datefmt))
    logging.basicConfig(level=level, handlers=[handler])
    # What is wrong with a stranger's form is told to the stranger.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
