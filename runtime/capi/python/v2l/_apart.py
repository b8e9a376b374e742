"""Calls that another thread makes for Python's main thread.

Python runs what signals ask for, Ctrl-C among them, on its main thread and between two of its own steps: never inside a call of C, and
what it raises at the first step of a callback is lost. So the main thread has another one make long calls, and waits for it in Python.
"""

from __future__ import annotations

import queue
import threading
from typing import Any, Callable, Optional, TypeVar

from . import _handles

_Result = TypeVar("_Result")


class Outcome:
    """What a call returned or raised, once it has."""

    def __init__(self) -> None:
        self.known = False
        self.result: Any = None
        self.raised: Optional[BaseException] = None

    def of(self, call: Callable[[], Any]) -> None:
        try:
            self.result = call()
        except BaseException as raised:  # raised again by `take`
            self.raised = raised
        finally:
            self.known = True

    def take(self) -> Any:
        raised, self.raised = self.raised, None
        result, self.result = self.result, None
        try:
            if raised is not None:
                raise raised
            return result
        finally:
            # The error keeps this frame, which must keep neither the error nor what is of no use any more.
            del raised, result


def pause(woken: "queue.SimpleQueue[None]") -> None:
    """Waits to be woken. Not for ever: a signal may come between a word of it and its being read."""
    try:
        woken.get(timeout=0.05)
    except queue.Empty:
        pass


class Apart:
    """One call, made by another thread if this is the main thread."""

    def __init__(self) -> None:
        #: What a signal or a callback raised, which comes out of the call.
        self.raised: Optional[BaseException] = None
        #: Another thread makes the call.
        self.apart = False
        #: The thread that asked for the call waits no more.
        self.left = False
        self.to_caller: "queue.SimpleQueue[None]" = queue.SimpleQueue()
        self.to_worker: "queue.SimpleQueue[None]" = queue.SimpleQueue()

    def stop(self) -> None:
        """Asks the call to stop, if it can."""

    def serve(self) -> bool:
        """Does what the other thread wants done; false if that is nothing."""
        return False

    def interrupt(self, raised: BaseException) -> None:
        """Stops the call; the first that was raised comes out of it."""
        if self.raised is None:
            self.raised = raised
        self.stop()

    def run(self, call: Callable[[], _Result]) -> _Result:
        """Makes the call, and returns what it returns."""
        outcome = Outcome()
        try:
            if threading.current_thread() is threading.main_thread():
                self._run_apart(call, outcome)
            else:
                outcome.of(call)
        finally:
            self.left = True
            _handles.free_given_up()
        if self.raised is not None:
            outcome.raised, self.raised = self.raised, None
        result: _Result = outcome.take()
        return result

    def _work(self, call: Callable[[], Any], outcome: Outcome) -> None:
        outcome.of(call)
        self.to_caller.put(None)

    def _run_apart(self, call: Callable[[], Any], outcome: Outcome) -> None:
        # The other thread is in no callback; this one may be.
        _handles.leave(_handles.enter())
        _handles.THREAD.waits_for = self
        thread = threading.Thread(target=self._work, args=(call, outcome), name="v2l-call", daemon=True)
        self.apart = True
        try:
            try:
                thread.start()
            except RuntimeError:  # there are no more threads, or Python is ending
                # This thread makes the call itself, and so waits for none.
                self.apart = False
                _handles.THREAD.waits_for = None
                outcome.of(call)
            self._wait(outcome)
        finally:
            self.left = True
            _handles.THREAD.waits_for = None
            if not outcome.known:
                self.stop()
            self.to_worker.put(None)

    def _wait(self, outcome: Outcome) -> None:
        """Until the call has returned; meanwhile serves it, and has Python see to signals."""
        while not outcome.known:
            # A callback may have forked, and the child has no other thread.
            _handles.check_fork()
            try:
                if not self.serve():
                    pause(self.to_caller)
            except BaseException as raised:  # raised again by `run`
                if self.raised is not None and isinstance(raised, KeyboardInterrupt):
                    # Whoever presses Ctrl-C again does not want to wait. The other thread goes on until its call returns.
                    raise
                self.interrupt(raised)
