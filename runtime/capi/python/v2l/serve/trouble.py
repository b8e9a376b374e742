"""What goes on failing, said now and then."""

from __future__ import annotations

import logging
import time
from typing import Dict, Optional

#: How often it is said again.
_AGAIN = 60.0


class Trouble:
    """Says that something fails when it begins to and once a minute after that, and when it is over."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: Dict[str, float] = {}

    def failed(self, what: str, error: Optional[BaseException]) -> None:
        """Something failed, maybe again."""
        now = time.monotonic()
        if now - self._said.get(what, -_AGAIN) >= _AGAIN:
            self._said[what] = now
            self._log.error("%s: %s", what, error)

    def went(self, what: str) -> None:
        """It did not fail."""
        if self._said.pop(what, None) is not None:
            self._log.info("no longer: %s", what)
