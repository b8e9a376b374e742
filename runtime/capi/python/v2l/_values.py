"""Values on their way into C, checked: ctypes wraps integers, cuts text at NUL, and takes a NaN for what C takes it for, all without a word."""

from __future__ import annotations

import ctypes
import functools
import math
import operator
from ctypes import Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Dict, Iterable, Mapping, Tuple, Type

from ._handles import owner_of
from ._library import refused


class Pointer(c_void_p):
    """A handle of one kind."""

    kind: str


@functools.lru_cache(maxsize=None)
def pointer_to(kind: str) -> Type[Pointer]:
    """The type of handles of a kind."""
    return type(f"v2l_{kind}", (Pointer,), {"kind": kind})


def _bounds(kind: Any) -> Tuple[int, int]:
    bits = 8 * ctypes.sizeof(kind)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind(-1).value < 0 else (0, (1 << bits) - 1)


#: Types of whole numbers, with the least and the largest.
INTEGERS: Dict[Any, Tuple[int, int]] = {kind: _bounds(kind) for kind in (c_int32, c_int64, c_uint32, c_uint64, c_size_t)}
#: Types of real numbers. None of them is ever infinite or NaN.
NUMBERS = (c_float, c_double)


def _integer(kind: Any, value: Any, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a whole number") from None
    low, high = INTEGERS[kind]
    if not low <= number <= high:
        # Python refuses to write numbers of thousands of digits.
        shown = number if number.bit_length() <= 1024 else f"a number of {number.bit_length()} bits"
        raise refused(f"{name} is {shown}; expected {low} to {high}")
    return number


def _number(kind: Any, value: Any, name: str) -> float:
    if isinstance(value, (str, bytes, bytearray)):
        raise TypeError(f"{name} is {value!r}; expected a number")
    try:
        number = float(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a number") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or math.isinf(kind(number).value):
        raise refused(f"{name} is {number}; expected a finite number")
    return number


def _text(value: Any, name: str) -> bytes:
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError as error:
            raise refused(f"{name} holds half a character at {error.start}; expected text in UTF-8") from None
    if not isinstance(value, bytes):
        raise TypeError(f"{name} is a {type(value).__name__}; expected text")
    if b"\0" in value:
        raise refused(f"{name} holds NUL at byte {value.index(0)}, where C would end it; expected text without NUL")
    return value


def json_of(value: Any, name: str) -> Any:
    """A value of a request as JSON has it; what a field holds is the library's to say."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)):
        try:
            return _text(value, name).decode()
        except UnicodeDecodeError as error:
            raise refused(f"{name} is no UTF-8 from byte {error.start} on; expected text in UTF-8") from None
    if isinstance(value, Mapping):
        return {json_of(key, f"{name}, a name of it,"): json_of(one, f"{name}[{key!r}]") for key, one in value.items()}
    try:
        number = operator.index(value)
    except TypeError:
        return _number(c_double, value, name)
    if number.bit_length() > 1024:
        raise refused(f"{name} is a number of {number.bit_length()} bits; expected less")
    return number


def checked(kind: Any, value: Any, name: str) -> Any:
    """A value for a structure's member or a function's parameter of the type ``kind``.

    Raises :class:`TypeError` for what is of another kind, and :class:`v2l.Error` for what the type does not hold.
    """
    if kind in INTEGERS:
        return _integer(kind, value, name)
    if kind in NUMBERS:
        return _number(kind, value, name)
    if kind is c_char_p:
        return None if value is None else _text(value, name)
    if kind is c_void_p:
        # An address of this package's own, never a caller's number.
        return None if value is None else _integer(c_size_t, value, name)
    return value


def converted(kind: Any, value: Any, name: str) -> Tuple[Any, object]:
    """As :func:`checked`, for handles too: what C gets, and what must live for as long as C has it."""
    if isinstance(kind, type) and issubclass(kind, Pointer):
        if value is None:
            return None, None
        owner = owner_of(kind.kind, value, name)
        return owner.pointer and owner.pointer.value, owner
    given = checked(kind, value, name)
    return given, given


@functools.lru_cache(maxsize=None)
def _kinds(structure: Type[Structure]) -> Dict[str, Any]:
    return {field[0]: field[1] for field in structure._fields_}


class Checked(Structure):
    """A structure whose members are checked as they are set, and keep alive what they point to."""

    def __setattr__(self, name: str, value: Any) -> None:
        kind = _kinds(type(self)).get(name)
        if kind is None:
            raise AttributeError(f"{type(self).__name__} has no member {name}")
        given, kept = converted(kind, value, name)
        super().__setattr__(name, given)
        self.keep(name, kept)

    def keep(self, name: str, value: object) -> None:
        """Holds what a member points to for as long as the structure lives."""
        self.__dict__.setdefault("kept", {})[name] = value


def array(kind: Any, values: Iterable[Any], name: str) -> Any:
    """A C array of checked values; of structures, which it keeps alive."""
    given = [checked(kind, value, f"{name}[{at}]") for at, value in enumerate(values)]
    # One place at least, so that an array of none has an address, too.
    made = (kind * max(len(given), 1))(*given)
    made.kept = given
    return made
