"""What takes jobs from the store and makes their videos: a thread of the server, a process of its own, or a replica."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Optional, Tuple

import v2l

from . import logs
from .config import Config
from .engine import Generator
from .identity import EnginesReplaced, identified
from .made import made_of
from .rows import is_name
from .store import Job, Store, Unusable, open_store, worker_name
from .trouble import Trouble

LOG = logging.getLogger("v2l.serve")

#: How often a worker says that it lives, and asks whether its job is still wanted.
_BEAT = 0.25
#: How often a worker that has nothing to do looks for work.
_IDLE = 0.1

_NAMES = {130: "cancelled"}
_QUEUE, _REPORT = "the queue cannot be read or written", "what becomes of a job cannot be written"


class Worker:
    """Makes the videos of one engine directory, one after the other."""

    def __init__(self, config: Config, store: Optional[Store] = None, label: str = "worker") -> None:
        self._config = identified(config)
        self._store = store or open_store(self._config)
        self._trouble = Trouble(LOG)
        self._name = worker_name(label)
        self._generator: Optional[Generator] = None
        self._ending = threading.Event()
        self._woken = threading.Event()
        self._store.watchers.append(self._woken.set)
        self._wanted: Callable[[], bool] = lambda: True
        self._cut_off: Optional[float] = None
        (config.data / "videos").mkdir(parents=True, exist_ok=True)

    def open(self) -> Generator:
        """The engines, which are opened with the first job that needs them."""
        if self._generator is None:
            self._generator = Generator(self._config)
        return self._generator

    def check(self) -> None:
        """Raises if the store cannot be read."""
        self._store.statuses()

    def stop(self) -> None:
        """Takes no more jobs; the one at work has the time of ``Config.drain``, and goes back to the queue after that."""
        if not self._ending.is_set():
            self._cut_off = time.monotonic() + self._config.drain
            self._ending.set()

    def run(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Works until :meth:`stop` is called or it is not wanted any more."""
        self._wanted = wanted
        while wanted() and not self._ending.is_set():
            self._woken.clear()
            try:
                self._store.recover(self._config.lease)
                job = self._claim()
                self._trouble.went(_QUEUE)
            except self._store.errors as error:
                self._trouble.failed(_QUEUE, error)
                job = None
            except Exception:
                LOG.exception(_QUEUE)
                job = None
            if job is None:
                self._woken.wait(_IDLE)
            else:
                try:
                    self.work(job)
                except self._store.errors as error:
                    # Without a sign of life the job goes back to the queue.
                    LOG.error("%s: what became of it cannot be recorded: %s", job.id, error)
                    self._ending.wait(_IDLE)
                except Exception:
                    LOG.exception("%s: what became of it cannot be recorded", job.id)
                    self._ending.wait(_IDLE)
        if self._generator is not None:
            self._generator.close()
            self._generator = None

    def _claim(self, id: Optional[str] = None) -> Optional[Job]:
        stack = self._generator.stack if self._generator is not None and self._config.affinity else None
        return self._store.claim(self._name, id=id, stack=stack, patience=self._config.patience)

    def take(self, id: str) -> bool:
        """Makes the video of a job that waits: of one that needs no change of adapters, else the one that is named; false if none waits."""
        job = self._claim(id) if not self._ending.is_set() else None
        if job is not None:
            self.work(job)
        return job is not None

    def work(self, job: Job) -> None:
        """Makes the video of a job that is this worker's, and records what became of it."""
        file = self._config.data / "videos" / f"{job.id}.{job.attempts}.mp4"
        done = threading.Event()
        with v2l.Cancel() as cancel:
            at = [0]
            overdue = threading.Event()
            lost = threading.Event()

            def watch() -> None:
                began = time.monotonic()
                while not done.wait(_BEAT):
                    try:
                        wanted = self._store.beat(job, at[0])
                        self._trouble.went(_REPORT)
                    except self._store.errors as error:
                        # Silence for the length of a lease costs the job; a moment of it nothing.
                        self._trouble.failed(_REPORT, error)
                        wanted = True
                    except Exception:
                        LOG.exception("%s: the store cannot be written", job.id)
                        continue
                    limit = self._config.max_seconds
                    if limit and time.monotonic() - began > limit:
                        overdue.set()
                    if self._cut_off is not None and time.monotonic() > self._cut_off:
                        lost.set()
                    if not wanted or overdue.is_set() or lost.is_set():
                        cancel.request()

            def progress(phase: v2l.Phase, step: int, steps: int) -> None:
                if phase == v2l.Phase.DENOISE and steps:
                    at[0] = min(99, round(100 * step / steps))
                    LOG.info("%s: step %s of %s", job.id, step, steps)

            watcher = threading.Thread(target=watch, name="v2l-beat", daemon=True)
            watcher.start()
            LOG.info("%s: begun, try %s", job.id, job.attempts)
            code: Optional[str] = None
            message, durations, swapped, made = None, {}, False, None
            try:
                generator = self.open()
                durations = generator.run(job.request, file, progress, cancel)
                generator.stack = job.stack
                swapped = generator.swapped
                made = made_of(file)
            except Exception as error:
                code, message = self._failure(job, error)
            finally:
                done.set()
                watcher.join()
        if code == "cancelled" and lost.is_set():
            self._store.release(job)
            LOG.info("%s: put back", job.id)
            return
        if code == "cancelled" and overdue.is_set():
            code, message = "timeout", f"the video took longer than {self._config.max_seconds:g} s"
        name, message = file.name if code is None else None, self._shown(message)
        mine = self._finish(job, file=name, code=code, message=message, durations=durations, made=made)
        if not mine:
            file.unlink(missing_ok=True)
        LOG.info("%s: %s", job.id, "done" if code is None else f"{code}: {message}")
        if swapped:
            self._store.count("swaps")

    @staticmethod
    def _failure(job: Job, error: Exception) -> Tuple[str, str]:
        """The code and the words for what went wrong."""
        if isinstance(error, EnginesReplaced):
            return "engines_replaced", str(error)
        if isinstance(error, v2l.Error) and error.status in _NAMES:
            return _NAMES[error.status], str(error)
        # They were there when the job was made.
        gone = [Path(file).stem for file, _, _ in job.request.get("lora") or [] if not os.path.exists(file)]
        if gone and isinstance(error, (OSError, v2l.Error)):
            return "bad_adapter", f"the adapter {gone[0]} is no longer there; send the request again without it"
        if isinstance(error, v2l.Error):
            return error.name.lower().removeprefix("v2l_error_"), str(error)
        LOG.error("%s: failed", job.id, exc_info=error)
        return "internal", f"{type(error).__name__}: {error}"

    def _finish(self, job: Job, **outcome: Any) -> bool:
        """Records what became of a job, once the store can be written: others leave it alone while it cannot."""
        while True:
            try:
                return self._store.finish(job, **outcome)
            except self._store.errors as error:
                if self._ending.is_set() or not self._wanted():
                    raise
                self._trouble.failed(_REPORT, error)
                self._ending.wait(_BEAT)

    def _shown(self, message: Optional[str]) -> Optional[str]:
        """A message without the places of this machine's files."""
        if message is None:
            return None
        for folder in (self._config.data / "uploads", self._config.data, self._config.engines, *self._config.lora_folders):
            message = message.replace(f"{folder}{os.sep}", "")
        return message


def main() -> int:
    """A worker in a process of its own: its configuration comes on standard input. Ends when its parent has."""
    logs.configure(logging.INFO)
    config = Config.from_json(sys.stdin.read())
    try:
        worker = Worker(config)
    except Unusable as error:
        LOG.error("%s", error)
        return error.code

    def stop(_signal: int, _frame: Optional[FrameType]) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    parent = os.getppid()
    # Jobs fail with the word for it, and do not wait for what will not come.
    with contextlib.suppress(EnginesReplaced):
        worker.open()
    worker.run(lambda: os.getppid() == parent)
    return 0


def sweep(store: Store, config: Config) -> None:
    """Removes what is older than it is kept, gives up what lost its worker, and removes files that belong to no job."""
    old = store.expired(config.keep)
    # A full disk has no room for any change before that.
    for job in old:
        remove_files(config, job.id)
    for job in old:
        store.delete(job.id)
    store.recover(config.lease)
    for folder in ("videos", "uploads"):
        for path in (config.data / folder).iterdir():
            # Others remove files, too.
            with contextlib.suppress(FileNotFoundError):
                _sweep_file(store, path, folder)


def _sweep_file(store: Store, path: Path, folder: str) -> None:
    """Removes what belongs to no job, or is not the job's last try."""
    fresh = time.time() - path.stat().st_mtime < 3600
    id = path.name.split(".")[0]
    owner = store.get(id, of_any_model=True) if is_name(id) else None
    if owner is None:
        stray = not fresh
    else:
        # What a damaged row said of its file is not known.
        stray = folder == "videos" and owner.completed is not None and path.name != owner.file and not owner.is_damaged
    if stray:
        remove(path)


def remove_files(config: Config, id: str) -> None:
    """Removes the uploads and videos of a job."""
    remove(config.data / "uploads" / id)
    for file in (config.data / "videos").glob(f"{id}.*"):
        remove(file)


def remove(path: Path) -> None:
    """Removes a file, or a folder of uploads, as far as that can be: the sweep tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
