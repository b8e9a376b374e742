"""The command-line tools of the v2l wheel, and where the libraries lie that v2l loads: in the wheels of other packages.

Nothing here imports NumPy, the runtime or the packages that it looks for, so that a tool starts as fast as it does by itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Dict, List, NoReturn, Optional

__all__ = ["environment", "ffmpeg", "find", "libraries", "onnxruntime", "openvino"]

#: The first OpenVINO that v2l runs on, as its library's name has it: 2026.4.0.
_OPENVINO_SINCE = 2640


def _folder(package: str) -> Optional[Path]:
    """The folder of an installed package, which is not imported."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _in(package: str, pattern: str) -> Optional[Path]:
    """The last file by name that ``pattern`` finds in an installed package."""
    folder = _folder(package)
    files = sorted(folder.glob(pattern)) if folder is not None else []
    return files[-1] if files else None


def onnxruntime() -> Optional[Path]:
    """ONNX Runtime's library in the package ``onnxruntime``."""
    return _in("onnxruntime", "capi/libonnxruntime.so*")


def openvino() -> Optional[Path]:
    """OpenVINO's C library in the package ``openvino``, if it is new enough."""
    found = _in("openvino", "libs/libopenvino_c.so.*")
    version = re.search(r"\.so\.(\d+)", found.name) if found is not None else None
    return found if version is not None and int(version.group(1)) >= _OPENVINO_SINCE else None


def ffmpeg() -> Optional[Path]:
    """The ffmpeg program in the package ``imageio_ffmpeg``."""
    return _in("imageio_ffmpeg", "binaries/ffmpeg-*")


#: Variables that say where a library is, the first that is set, and who else may know.
_VARIABLES = (
    (("V2L_ORT_LIB", "ORT_DYLIB_PATH"), onnxruntime),
    (("V2L_OPENVINO_LIB",), openvino),
    (("V2L_FFMPEG",), ffmpeg),
)


def libraries() -> Dict[str, str]:
    """Variables that name what other wheels bring; without those whose place the environment says already."""
    found = {}
    for variables, look_up in _VARIABLES:
        if not any(os.environ.get(variable) for variable in variables):
            place = look_up()
            if place is not None:
                found[variables[0]] = str(place)
    return found


def environment() -> Dict[str, str]:
    """The environment for a tool: this one, and :func:`libraries`."""
    return {**os.environ, **libraries()}


def find() -> str:
    """The program ``v2l``: in the folder ``V2L_TOOLS``, in this package's wheel, or on ``PATH``. It is the tool that it is called as.

    Raises :class:`FileNotFoundError` if it is in none of them.
    """
    named = os.environ.get("V2L_TOOLS")
    places: List[Path] = [Path(named)] if named else []
    places.append(Path(__file__).parent / "bin")
    if not places[-1].is_dir():
        places.extend(Path(folder) for folder in os.get_exec_path() if os.path.isabs(folder))
    for place in places:
        program = place / "v2l"
        if program.is_file() and os.access(program, os.X_OK) and not _is_script(program):
            return str(program)
    raise FileNotFoundError(
        "the program v2l was not found; install v2l's wheel (bin/dev/wheel makes one), or name the folder of the program with V2L_TOOLS"
    )


def _is_script(program: Path) -> bool:
    """The wrapper that pip puts on the PATH must not find itself."""
    with open(program, "rb") as file:
        return file.read(2) == b"#!"


def _start(tool: str) -> NoReturn:
    """Becomes the tool, so that exit codes and signals are its own."""
    try:
        program = find()
    except FileNotFoundError as missing:
        sys.exit(str(missing))
    os.execve(program, [tool, *sys.argv[1:]], environment())


def export() -> NoReturn:
    """The command ``v2l-export``."""
    _start("v2l-export")


def compile() -> NoReturn:
    """The command ``v2l-compile``."""
    _start("v2l-compile")


def run() -> NoReturn:
    """The command ``v2l-run``."""
    _start("v2l-run")


def inspect() -> NoReturn:
    """The command ``v2l-inspect``."""
    _start("v2l-inspect")


def main() -> int:
    """The command ``v2l``: ``v2l serve`` serves videos in this Python, all else is the program's."""
    if sys.argv[1:2] == ["serve"]:
        from v2l.serve.command import main as serve

        return serve(sys.argv[2:])
    _start("v2l")
