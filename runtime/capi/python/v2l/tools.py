"""The tools from Python: ``v2l-export``, ``v2l-compile``, ``v2l-inspect`` and ``v2l-run``, each in a process of its own.

A flag is a keyword: ``precision="bf16"`` is ``--precision bf16``, ``light_lora=file`` is ``--light-lora file``, ``verify=True`` is ``--verify``. A list gives a
flag several times; ``None`` and ``False`` leave it out. ``v2l-… --help`` lists them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from typing import Any, Callable, Dict, List, Optional, Union

import v2l_tools

from . import Cancel, Path
from ._library import error as _error

__all__ = ["Event", "Progress", "compile", "export", "inspect", "run"]

#: An event of a tool's ``--json``: its name under ``event``, and what belongs to it.
Event = Dict[str, Any]
#: Given each event as it comes. What it raises stops the tool and comes out of the call.
Progress = Callable[[Event], None]
Argument = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


def _flags(flags: Dict[str, Any]) -> List[Argument]:
    arguments: List[Argument] = []
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is True:
                arguments.append(flag)
            elif isinstance(one, (str, bytes, os.PathLike)):
                arguments += [flag, one]
            elif one is not None and one is not False:
                arguments += [flag, str(one)]
    return arguments


def _call(
    tool: str, arguments: List[Argument], progress: Optional[Progress], cancel: Optional[Cancel]
) -> List[Event]:
    """Runs a tool and gives its events; raises :class:`v2l.Error` with the class of what failed."""
    command: List[Argument] = [tool, *arguments, "--json"]
    process = subprocess.Popen(
        command,
        executable=v2l_tools.find(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=v2l_tools.environment(),
        # Ctrl-C reaches this process, which ends the tool.
        start_new_session=True,
    )
    assert process.stdout is not None
    ended = threading.Event()

    def watch(asked: Cancel) -> None:
        while not ended.wait(0.05):
            if asked.requested:
                process.send_signal(signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, args=(cancel,), daemon=True) if cancel is not None else None
    if watcher is not None:
        watcher.start()
    events: List[Event] = []
    try:
        for line in process.stdout:
            event: Event = json.loads(line)
            events.append(event)
            if progress is not None:
                progress(event)
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        ended.set()
        process.stdout.close()
        if watcher is not None:
            watcher.join()
    if code == 0:
        return events
    failures = [event for event in events if event.get("event") == "error"]
    message = failures[-1]["message"] if failures else f"{tool} ended with {code}"
    raise _error(code, message)


def export(
    *model: Path,
    output: Path,
    progress: Optional[Progress] = None,
    cancel: Optional[Cancel] = None,
    **flags: Any,
) -> List[Event]:
    """``v2l-export MODEL -o OUTPUT``: a checkpoint becomes a bundle of ONNX graphs."""
    return _call("v2l-export", [*_flags(flags), *model, "-o", output], progress, cancel)


def compile(
    model: Path,
    *,
    output: Path,
    progress: Optional[Progress] = None,
    cancel: Optional[Cancel] = None,
    **flags: Any,
) -> List[Event]:
    """``v2l-compile MODEL -o OUTPUT``: a bundle becomes an engine directory, an ONNX file an engine."""
    return _call("v2l-compile", [*_flags(flags), model, "-o", output], progress, cancel)


def inspect(*files: Path, **flags: Any) -> List[Event]:
    """``v2l-inspect FILE…``: what a model, engine, adapter, bundle or engine directory holds."""
    return _call("v2l-inspect", [*_flags(flags), *files], None, None)


def run(*, progress: Optional[Progress] = None, cancel: Optional[Cancel] = None, **flags: Any) -> List[Event]:
    """``v2l-run`` with the flags that are given: all that the runtime does, recipes and contact sheets among it."""
    return _call("v2l-run", _flags(flags), progress, cancel)
