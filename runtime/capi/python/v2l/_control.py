"""Calls that take long: their progress, and what stops them."""

from __future__ import annotations

import ctypes
import enum
import threading
from typing import Any, Callable, Optional, Tuple, TypeVar

from . import _handles, _native
from ._apart import Apart, pause
from ._handles import Handle, Living, Unshared
from ._library import LIBRARY

_Result = TypeVar("_Result")


class Phase(enum.IntEnum):
    """A phase of the work."""

    ENCODE_TEXT = 1
    ENCODE_REFERENCE = 2
    ENCODE_CONDITION = 3
    DENOISE = 4
    DECODE = 5
    ENCODE_VIDEO = 6
    PREDICT = 7


#: Called with the phase, the steps done and all steps of the phase.
Progress = Callable[[Phase, int, int], None]


class Cancel(Unshared):
    """A request to stop; any thread may make it, and progress functions."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._calls: Living[Control] = Living()

    @property
    def requested(self) -> bool:
        """True from :meth:`request` to :meth:`reset`."""
        return self._requested.is_set()

    def request(self) -> None:
        """Asks every call that was given this to stop, until :meth:`reset`."""
        self._requested.set()
        for call in self._calls.listed():
            call.stop()

    def reset(self) -> None:
        """Takes the request back, for the next call."""
        self._requested.clear()

    def close(self) -> None:
        """Does nothing: a request holds nothing."""

    def __enter__(self) -> "Cancel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Request(Handle):
    """What stops one call."""

    _kind = "cancel"


class Control(Apart):
    """One call's progress and end. What the progress function raises stops the call and comes out of it.

    Progress functions run on the thread that asked for the call, whichever makes it.
    """

    def __init__(self, progress: Optional[Progress], cancel: Optional[Cancel]) -> None:
        super().__init__()
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is a {type(progress).__name__}; expected a function")
        if cancel is not None and not isinstance(cancel, Cancel):
            raise TypeError(f"cancel is a {type(cancel).__name__}; expected a Cancel")
        self._progress = progress
        #: Progress that the other thread wants to be told.
        self._asked: Optional[Tuple[int, int, int]] = None
        self._request = _native.made("cancel", "v2l_cancel_new")
        self._structure = _native.initial(_native.Control)
        self._structure.cancel = _Request(self._request)
        if progress is not None:
            self._structure.progress = _native.PROGRESS_CALLBACK(self._on_progress)
        _CALLS.add(self)
        if cancel is not None:
            cancel._calls.add(self)
            if cancel.requested:
                self.stop()

    def stop(self) -> None:
        """Asks the call to stop. Any thread may, also inside callbacks and as Python ends."""
        LIBRARY.v2l_cancel_request(self._request.pointer)

    def give_to(self, call: Callable[[Any], _Result]) -> _Result:
        """Gives ``call`` the control, by reference; returns what it returns."""

        def controlled() -> _Result:
            try:
                return call(ctypes.byref(self._structure))
            finally:
                # It holds this, which holds it.
                self._structure.progress = _native.PROGRESS_CALLBACK()

        return self.run(controlled)

    def serve(self) -> bool:
        if self._asked is None:
            return False
        if self.raised is None:
            self._tell(*self._asked)
        self._asked = None
        self.to_worker.put(None)
        return True

    def _on_progress(self, _user: object, phase: int, done: int, total: int) -> None:
        asked = phase, done, total
        if self.apart:
            self._asked = asked
            self.to_caller.put(None)
            while self._asked is asked and not self.left:
                pause(self.to_worker)
            return
        try:
            self._tell(*asked)
        except BaseException as raised:  # raised again by `run`
            self.interrupt(raised)

    def _tell(self, phase: int, done: int, total: int) -> None:
        assert self._progress is not None
        self._progress(Phase(phase), done, total)


#: The calls of this process.
_CALLS: Living[Control] = Living()


def _stop_all() -> None:
    for call in _CALLS.listed():
        call.stop()


_handles.STOPS.append(_stop_all)
