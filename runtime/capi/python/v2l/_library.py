"""The C library, found and loaded, and the errors of its calls."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from ctypes import c_char_p, c_int32, c_uint32
from pathlib import Path

ABI_MAJOR = 1

# Classes of errors that this package finds by itself, as v2l.h numbers them.
INVALID_ARGUMENT = 2
UNSUPPORTED = 4
NULL = 20
REENTRANT = 24
CANCELLED = 130


class Error(Exception):
    """A call that failed; ``status`` is its class, ``name`` the class's name in ``v2l.h``.

    ``field`` is the keyword of :meth:`v2l.Pipeline.generate` that it is about, "" if it is about none.
    """

    def __init__(self, status: int, name: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.field = field


def _find() -> str:
    named = os.environ.get("V2L_LIBRARY")
    if named:
        return named
    beside = Path(__file__).with_name("libv2l.so")
    if beside.is_file():
        return str(beside)
    found = ctypes.util.find_library("v2l")
    if found is None:
        raise ImportError(
            "libv2l.so was not found; install v2l's wheel or package, or name the library with V2L_LIBRARY "
            "(a checkout installs it with bin/dev/install-capi)"
        )
    return found


def _load() -> ctypes.CDLL:
    # ONNX Runtime reads it when it is loaded: it neither reports to its makers nor keeps an identifier.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    library = ctypes.CDLL(_find())
    library.v2l_version.restype = c_char_p
    library.v2l_abi_version.restype = c_uint32
    library.v2l_last_error.restype = c_char_p
    library.v2l_last_error_field.restype = c_char_p
    library.v2l_status_name.restype = c_char_p
    library.v2l_status_name.argtypes = [c_int32]
    major = library.v2l_abi_version() >> 16
    if major != ABI_MAJOR:
        raise ImportError(f"libv2l.so has ABI {major}; expected {ABI_MAJOR}: install the v2l package of the same version")
    return library


LIBRARY = _load()


def error(status: int, message: str, field: str = "") -> Error:
    """An error of a class of ``v2l.h``."""
    return Error(status, LIBRARY.v2l_status_name(status).decode(), message, field)


def refused(message: str) -> Error:
    """What to say of a value that C would take for another."""
    return error(INVALID_ARGUMENT, message)


def check(status: int) -> None:
    """Raises what a call failed with."""
    if status != 0:
        raise error(status, LIBRARY.v2l_last_error().decode(), LIBRARY.v2l_last_error_field().decode())
