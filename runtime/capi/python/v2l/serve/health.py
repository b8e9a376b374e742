"""Whether jobs and videos can be written: what balancers ask, and what must not change its mind with every request."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from typing import Optional, Tuple, Type

from .config import Config
from .store import Store
from .trouble import Trouble

#: How long no write may have failed before the server is well again, and how often that is tried.
_STEADY = 10.0
_EVERY = 1.0
#: What is written on trial: as much as a job with a long prompt.
_TRIAL = b"\0" * (64 << 10)


class Health:
    """Tries to write into the store and into the folder of videos, at most once a second whoever asks."""

    def __init__(self, config: Config, store: Store, log: logging.Logger) -> None:
        self._config, self._store = config, store
        self._errors: Tuple[Type[Exception], ...] = (OSError, *store.errors)
        self._trouble = Trouble(log)
        self._lock = threading.Lock()
        self._tried: Optional[float] = None
        self._failed: Optional[float] = None

    def is_well(self) -> bool:
        """False from a write that failed until none has failed for ten seconds."""
        now = time.monotonic()
        if not self._lock.acquire(blocking=False):
            # One who asks waits for a disk that hangs, and not all who ask.
            return not self._is_recent(now)
        try:
            if self._is_recent(now):
                return False
            if self._tried is None or now - self._tried >= _EVERY:
                self._tried = now
                self._try()
            return not self._is_recent(now)
        finally:
            self._lock.release()

    def _is_recent(self, now: float) -> bool:
        last = max((failed for failed in (self._failed, self._store.failed) if failed is not None), default=None)
        return last is not None and now - last < _STEADY

    def _try(self) -> None:
        what = "jobs and videos cannot be written"
        try:
            self._store.probe()
            with tempfile.TemporaryFile(dir=self._config.data, buffering=0) as file:
                if file.write(_TRIAL) != len(_TRIAL):
                    raise OSError("the disk is full")
            self._trouble.went(what)
        except self._errors as error:
            self._failed = time.monotonic()
            self._trouble.failed(what, error)
