"""Handles of the library: who owns them, how long they live, and when they can no longer be used: after a fork, and as Python ends."""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import os
import sys
import threading
import time
import weakref
from typing import Callable, Deque, Dict, Generic, Iterator, List, NoReturn, Optional, Protocol, Tuple, Type, TypeVar

from ._library import CANCELLED, LIBRARY, NULL, REENTRANT, UNSUPPORTED, error

_Self = TypeVar("_Self")
_AnyHandle = TypeVar("_AnyHandle", bound="Handle")
_Member = TypeVar("_Member")


class _Process:
    """What became of this process."""

    #: Handles were asked for.
    used = False
    #: It is a fork of one that asked for handles.
    forked = False
    #: Python ends: no call begins any more.
    ending = False
    #: Nothing of the library is left.
    ended = False


class Waiting(Protocol):
    """A call that another thread makes."""

    #: The thread that asked for it waits no more.
    left: bool


class _Thread(threading.local):
    """What a thread does."""

    #: The call that it waits for. Meanwhile it runs nothing but progress functions and what signals ask for.
    waits_for: Optional[Waiting] = None


THREAD = _Thread()
#: Calls that have begun and not returned, with their threads. Each thread touches its own only.
_RUNNING: Dict[object, int] = {}
#: What to do as Python ends, so that calls return soon.
STOPS: List[Callable[[], None]] = []


def enter(anywhere: bool = False) -> object:
    """A call begins; raises if it must not. ``anywhere``: callbacks may make it. Give what it returns to :func:`leave`."""
    token = object()
    # In this order, so that who ends Python sees the call, or the call that Python ends.
    _RUNNING[token] = threading.get_ident()
    try:
        _check(anywhere)
    except BaseException:
        leave(token)
        raise
    return token


def leave(token: object) -> None:
    """A call has returned."""
    _RUNNING.pop(token, None)


def _waits() -> bool:
    """True if this thread waits for a call."""
    call = THREAD.waits_for
    # A signal may have come before it was forgotten.
    return call is not None and not call.left


def check_fork() -> None:
    """Raises in the child of a fork that cannot use the library."""
    if _Process.forked:
        raise error(
            UNSUPPORTED,
            "this process is a fork of one that used v2l, and has none of its threads; start it with multiprocessing's method "
            "'spawn' or 'forkserver', or make the first handle after the fork",
        )


def _check(anywhere: bool) -> None:
    check_fork()
    if _Process.ending:
        raise error(CANCELLED, "Python is ending; no call begins any more")
    if _waits() and not anywhere:
        raise error(REENTRANT, "called from a callback, or as a signal came during a call; expected a call after that has returned")


#: Handles that were given up inside a callback, where the library frees nothing: kinds and handles.
_GIVEN_UP: Deque[Tuple[str, ctypes.c_void_p]] = collections.deque()
#: A v2l_control: five words.
_PROBE = (ctypes.c_size_t * 5)()
_init = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t)(("v2l_control_init", LIBRARY))


def _in_callback() -> bool:
    """True if this thread is inside a callback of the library, also before the callback's first line."""
    return _waits() or _init(ctypes.byref(_PROBE), ctypes.sizeof(_PROBE)) != 0


def free_given_up() -> None:
    """Frees what was given up; inside a callback it waits until that has returned."""
    # The collector may come here in the midst of itself: each handle is taken by one.
    while _GIVEN_UP and not _in_callback():
        try:
            kind, pointer = _GIVEN_UP.popleft()
        except IndexError:
            return
        token = object()
        _RUNNING[token] = threading.get_ident()
        try:
            # The message of what failed is the thread's last; freeing leaves it alone.
            getattr(LIBRARY, f"v2l_{kind}_free")(pointer)
        finally:
            leave(token)


class Living(Generic[_Member]):
    """Objects for as long as they live. Any thread may add one while another lists them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._members: "weakref.WeakSet[_Member]" = weakref.WeakSet()

    def add(self, member: _Member) -> None:
        with self._lock:
            self._members.add(member)

    def listed(self) -> List[_Member]:
        with self._lock:
            while True:
                try:
                    return list(self._members)
                except RuntimeError:
                    pass  # a signal came, and what this thread ran for it has added one


class Owner:
    """The one owner of a handle, which is freed with it. Calls hold it: a handle that is in use is never freed."""

    __slots__ = ("__weakref__", "kind", "pointer")

    def __init__(self, kind: str, pointer: ctypes.c_void_p) -> None:
        self.kind = kind
        self.pointer: Optional[ctypes.c_void_p] = pointer
        _OWNERS.add(self)

    def free(self) -> None:
        """Frees the handle: as its last user is done with it, or as Python ends."""
        pointer, self.pointer = getattr(self, "pointer", None), None
        # In a fork's child the library waits for threads that are not there.
        if pointer and not _Process.forked and not _Process.ended:
            _GIVEN_UP.append((self.kind, pointer))
            free_given_up()

    def __del__(self) -> None:
        self.free()


_OWNERS: Living[Owner] = Living()


class Unshared:
    """What cannot be copied or pickled."""

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled; give on the object itself, or make another")


class Handle(Unshared):
    """Has a handle of the library, until it is closed."""

    _kind: str

    def __init__(self, owner: Owner) -> None:
        self._owner: Optional[Owner] = owner

    @classmethod
    def _of(cls: Type[_AnyHandle], owner: Owner) -> _AnyHandle:
        made = cls.__new__(cls)
        Handle.__init__(made, owner)
        return made

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """What the library gave out of this handle stays for as long as this lasts."""
        token = enter()
        try:
            owner = owner_of(self._kind, self, "the handle")
            yield
            del owner
        finally:
            leave(token)

    def close(self) -> None:
        """Ends the use of the handle. It is freed once no call uses it any more: at once, or as the last one returns."""
        self._owner = None

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def owner_of(kind: str, value: object, name: str) -> Owner:
    """The owner of a handle of a kind, to be held while the handle is used."""
    if not isinstance(value, Handle) or value._kind != kind:
        found = value if value is None else f"a {type(value).__name__}"
        raise TypeError(f"{name} is {found}; expected {'an' if kind[0] in 'aeiou' else 'a'} {kind.capitalize()}")
    owner: Optional[Owner] = getattr(value, "_owner", None)
    if owner is None or owner.pointer is None:
        raise error(NULL, f"this {type(value).__name__} is closed; make another")
    return owner


def use() -> None:
    """Handles are about to be made: a fork's child cannot use the library from now on."""
    _Process.used = True


def _after_fork() -> None:
    _RUNNING.clear()
    _Process.forked = _Process.forked or _Process.used


def _wait() -> None:
    """Until no other thread is inside a call."""
    here = threading.get_ident()
    while any(thread != here for thread in list(_RUNNING.values())):
        time.sleep(0.005)


def _end() -> None:
    """Ends all that could call into Python, and all that Python could end in its midst."""
    _Process.ending = True
    if _Process.forked:
        return
    try:
        for stop in STOPS:
            stop()
        _wait()
    except KeyboardInterrupt:
        # Threads of the library cannot be ended, and Python cannot end under them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
    for owner in _OWNERS.listed():
        # Requests to stop may still be made, and hold next to nothing.
        if owner.kind != "cancel":
            owner.free()
    _Process.ended = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_end)
