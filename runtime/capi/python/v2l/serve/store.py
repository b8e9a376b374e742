"""The jobs: they outlive the process that took them and the one that works on them.

:class:`Store` says what may become of a job; :mod:`v2l.serve.sqlite_store` keeps jobs in a file, :mod:`v2l.serve.redis_store` in Redis.
Jobs belong to the model's name and to the identity of its engines: a store never gives a job to other engines.

Every change is one transaction. A worker owns a job from :meth:`Store.claim` on, as long as it is heard of; whoever finds it silent gives the job
to another, once. What a worker says of a job that is no longer its own is not taken.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import os
import secrets
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar

from .rows import STATUSES, Job

if TYPE_CHECKING:
    from .config import Config

__all__ = ["ATTEMPTS", "STATUSES", "VERSION", "Change", "Job", "NoSuchJob", "QueueFull", "Store", "Unusable", "open_store", "worker_name"]

LOG = logging.getLogger("v2l.serve")

_T = TypeVar("_T")

#: The version of what stores hold. Others are refused.
VERSION = 2
#: How long the place of a deleted job is known to those who list from there on.
REMEMBERED = 3600.0
#: How often a job is begun: its worker may be lost once.
ATTEMPTS = 2


class QueueFull(Exception):
    """As many jobs wait as may."""


class NoSuchJob(Exception):
    """There is no job of an identifier, and there was none lately."""


class Unusable(Exception):
    """A store that nothing can begin with: why, the way out, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        # Some of it comes out of the store.
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in message))
        self.code = code

    def __reduce__(self) -> Tuple[Type["Unusable"], Tuple[str, int]]:
        # Ray sends it from process to process.
        return type(self), (str(self), self.code)


#: What helps where a store cannot be used.
WAY_OUT = "give another folder with --data DIR"


def of_other_engines(where: str, model: str, found: str, identity: str, way_out: str = WAY_OUT) -> Unusable:
    """Refuses a store with jobs that wait for other engines, or that these make now."""
    return Unusable(
        f"{where} has jobs that wait for other engines under the name {model!r}: they belong to {found[:12]}, and these engines are {identity[:12]}; "
        f"{way_out}, call this model something else with --model, or serve the engines that the jobs are for",
        2,
    )


def say_taken_over(where: str, model: str, found: str, identity: str) -> None:
    """Says that a store in which no job waited for its engines is for others now."""
    LOG.info("%s was for the engines %.12s under the name %r, and no job waited for them; it is for %.12s now", where, found, model, identity)


def of_other_version(where: str, found: str, way_out: str = WAY_OUT) -> Unusable:
    """Refuses a store that another version of v2l made."""
    return Unusable(f"{where} has version {found}; expected {VERSION}; {way_out}, or serve it with the v2l that made it", 6)


def _started(process: int) -> Optional[str]:
    """When a process of this machine began, in ticks; ``None`` if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _here() -> str:
    """The machine and its container, in which numbers of processes mean what they mean here."""
    try:
        boot, space = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
    return f"{boot}-{space}"


def worker_name(label: str = "worker") -> str:
    """A name for a worker in this process, from which others on this machine see whether it still lives."""
    process = os.getpid()
    return f"{_here()}/{process}/{_started(process)}/{label}"


def _is_gone(worker: str) -> bool:
    """True if the worker's process was on this machine and has ended."""
    here, process, started, _ = worker.split("/", 3)
    return here == _here() and os.path.isdir("/proc/self") and _started(int(process)) != started


class Change(abc.ABC):
    """What a transaction reads and writes of one model's jobs."""

    @abc.abstractmethod
    def find(self, id: str) -> Optional[Job]:
        """The job of an identifier."""

    @abc.abstractmethod
    def first(self, stack: Optional[str] = None) -> Optional[Job]:
        """The oldest job that waits, of all or of a stack."""

    @abc.abstractmethod
    def waiting(self) -> int:
        """How many jobs wait."""

    @abc.abstractmethod
    def write(self, old: Optional[Job], new: Optional[Job]) -> None:
        """Puts a job in place of another; nothing is a job that is not there."""

    @abc.abstractmethod
    def count(self, name: str, label: str = "", by: float = 1) -> None:
        """Adds to a counter."""


class Store(abc.ABC):
    """The jobs of one model over one set of engines, which processes share."""

    #: What is raised while jobs cannot be read or written.
    errors: Tuple[Type[Exception], ...]

    def __init__(self, model: str, identity: str) -> None:
        self.model, self.identity = model, identity
        #: Called, on any thread, when this process has added or ended a job: who waits for that in it need not look again and again.
        self.watchers: List[Callable[[], object]] = []
        self._trouble = time.monotonic()
        #: When this process failed to write a job last, by the monotonic clock.
        self.failed: Optional[float] = None

    # What a kind of store does.

    @abc.abstractmethod
    def _transaction(self, change: Callable[[Change], _T], *, told: bool = False) -> _T:
        """Makes a change whole or not at all, as if nobody else made one. It is called again if somebody did.

        ``told`` is a change that a client is told of. The others may be lost with the machine's power: workers make them again.
        """

    @abc.abstractmethod
    def now(self) -> float:
        """The time, by the clock that all who share the store have."""

    @abc.abstractmethod
    def get(self, id: str, of_any_model: bool = False) -> Optional[Job]:
        """The job of an identifier, of this server's model or of any."""

    @abc.abstractmethod
    def list(self, limit: int, after: Optional[str], ascending: bool) -> List[Job]:
        """Up to ``limit`` jobs behind the job ``after``, by age; :class:`NoSuchJob` if there is none and none was deleted lately."""

    @abc.abstractmethod
    def _with(self, status: str) -> List[Job]:
        """The jobs with a status, oldest first."""

    @abc.abstractmethod
    def position(self, job: Job) -> int:
        """How many jobs wait before this one, which waits."""

    @abc.abstractmethod
    def expired(self, keep: float) -> List[Job]:
        """Jobs that ended longer ago than they are kept, a hundred at most."""

    @abc.abstractmethod
    def mend(self) -> int:
        """Lets jobs fail whose rows cannot be read, and forgets those that have no identifier; gives how many there were."""

    @abc.abstractmethod
    def probe(self) -> None:
        """Writes something, and raises one of ``errors`` if that cannot be."""

    @abc.abstractmethod
    def counters(self) -> Dict[str, Dict[str, float]]:
        """Counters by name and label."""

    @abc.abstractmethod
    def statuses(self) -> Dict[str, int]:
        """How many jobs there are of each status."""

    @abc.abstractmethod
    def state(self, name: str) -> Any:
        """The value under a name; ``None`` if there is none."""

    @abc.abstractmethod
    def set_state(self, name: str, value: Any) -> None:
        """Keeps a value under a name; ``None`` forgets it."""

    # What may become of a job.

    @staticmethod
    def new_id() -> str:
        """An identifier that nobody guesses."""
        return f"video_gen_{secrets.token_hex(16)}"

    def create(self, id: str, request: Dict[str, Any], stack: str, max_queued: int) -> Job:
        """Adds a job to the queue; :class:`QueueFull` if as many wait as may."""
        job = Job(id=id, model=self.model, identity=self.identity, request=request, stack=stack, created=self.now())

        def change(jobs: Change) -> Optional[int]:
            if jobs.find(id) is not None:
                # The store did not say that it had made this change.
                return None
            waiting = jobs.waiting()
            if waiting >= max_queued:
                jobs.count("refused", "queue full")
                return waiting
            jobs.write(None, job)
            return None

        waiting = self._transaction(change, told=True)
        if waiting is not None:
            raise QueueFull(f"{waiting} videos wait; expected fewer than {max_queued}, try again later")
        self.changed()
        # Another may have deleted it already.
        return self.get(id) or job

    def changed(self) -> None:
        """Says to those who wait in this process that there is something new."""
        for watcher in self.watchers[:]:
            watcher()

    def queued(self) -> List[Job]:
        """Jobs that wait, oldest first."""
        return self._with("queued")

    def claim(
        self, worker: str, *, id: Optional[str] = None, stack: Optional[str] = None, patience: float = 0.0
    ) -> Optional[Job]:
        """Makes a waiting job the worker's: one with ``stack``, else that of ``id``, else the oldest.

        A job that has waited longer than ``patience`` comes before all others.
        """
        now = self.now()

        def change(jobs: Change) -> Optional[Job]:
            oldest = jobs.first()
            if oldest is None:
                return None
            found: Optional[Job] = None
            if (id is None or stack is not None) and oldest.created < now - patience:
                found = oldest
            if found is None and stack is not None:
                found = jobs.first(stack)
            if found is None and id is not None:
                found = jobs.find(id)
            if found is None or found.status != "queued":
                found = oldest
            claimed = dataclasses.replace(
                found, status="in_progress", worker=worker, heard=now, started=now, progress=0, attempts=found.attempts + 1
            )
            jobs.write(found, claimed)
            return claimed

        return self._transaction(change)

    @staticmethod
    def _own(jobs: Change, job: Job) -> Optional[Job]:
        """The job as it is, if it is still that worker's."""
        found = jobs.find(job.id)
        mine = found is not None and (found.status, found.worker, found.attempts) == ("in_progress", job.worker, job.attempts)
        return found if mine else None

    def beat(self, job: Job, progress: int) -> bool:
        """Says that the job's worker lives, and how far it is; false if it should stop: the job is gone or another's."""
        now = self.now()

        def change(jobs: Change) -> bool:
            found = self._own(jobs, job)
            if found is None:
                return False
            jobs.write(found, dataclasses.replace(found, heard=now, progress=progress))
            return True

        return self._transaction(change)

    def finish(
        self,
        job: Job,
        *,
        file: Optional[str] = None,
        code: Optional[str] = None,
        message: Optional[str] = None,
        durations: Optional[Dict[str, float]] = None,
        made: Optional[Dict[str, float]] = None,
    ) -> bool:
        """Records what became of a job: a file and what is in it, or an error. False if the job is no longer this worker's."""
        now = self.now()

        def change(jobs: Change) -> bool:
            found = self._own(jobs, job)
            if found is None:
                # The store may have made this change and not said so.
                ended = jobs.find(job.id)
                return ended is not None and file is not None and ended.file == file
            self._end(jobs, found, now, code, message, file, durations, made)
            for phase, seconds in (durations or {}).items():
                jobs.count("seconds", phase, seconds)
            return True

        mine = self._transaction(change)
        self.changed()
        return mine

    @staticmethod
    def _end(
        jobs: Change,
        job: Job,
        now: float,
        code: Optional[str],
        message: Optional[str],
        file: Optional[str] = None,
        durations: Optional[Dict[str, float]] = None,
        made: Optional[Dict[str, float]] = None,
    ) -> Job:
        ended = dataclasses.replace(
            job,
            status="completed" if code is None else "failed",
            progress=100 if code is None else job.progress,
            completed=now,
            file=file,
            error_code=code,
            error_message=message,
            durations=durations or {},
            made=made,
            worker=None,
        )
        jobs.write(job, ended)
        jobs.count("jobs", code or "completed")
        return ended

    def release(self, job: Job) -> None:
        """Puts a job back that its worker cannot finish, as if it had not been begun."""

        def change(jobs: Change) -> None:
            found = self._own(jobs, job)
            if found is not None:
                back = dataclasses.replace(found, status="queued", worker=None, progress=0, started=None, attempts=found.attempts - 1)
                jobs.write(found, back)

        self._transaction(change)

    def recover(self, lease: float) -> List[str]:
        """Puts jobs back whose workers are lost, once; a second time they fail. Gives the jobs that were put back.

        Silence counts once this process has reached the store for as long as a lease: while the store was away, nobody was heard.
        """
        try:
            running, now = self._with("in_progress"), self.now()
        except self.errors:
            self._trouble = time.monotonic()
            raise
        reached = time.monotonic() - self._trouble

        def change(jobs: Change) -> bool:
            found = self._own(jobs, job)
            if found is None or found.heard != job.heard:
                return False
            jobs.count("workers_lost")
            if found.attempts >= ATTEMPTS:
                self._end(jobs, found, now, "worker_lost", f"the worker ended {ATTEMPTS} times while it made this video")
                return False
            jobs.write(found, dataclasses.replace(found, status="queued", worker=None, progress=0))
            return True

        back = []
        for job in running:
            assert job.worker is not None and job.heard is not None
            silent = min(now - job.heard, reached) >= lease
            if (silent or _is_gone(job.worker)) and self._transaction(change):
                back.append(job.id)
        return back

    def delete(self, id: str) -> None:
        """Forgets a job; the worker that has it stops."""
        now = self.now()

        def change(jobs: Change) -> None:
            found = jobs.find(id)
            if found is not None and found.status == "queued":
                found = self._end(jobs, found, now, "cancelled", "cancelled")
            jobs.write(found, None)

        self._transaction(change, told=True)

    def count(self, name: str, label: str = "", by: float = 1) -> None:
        """Adds to a counter."""
        self._transaction(lambda jobs: jobs.count(name, label, by))

    def oldest(self) -> float:
        """Seconds that the oldest waiting job has waited."""
        first = self._transaction(lambda jobs: jobs.first())
        return 0.0 if first is None else max(0.0, self.now() - first.created)

    def is_ending(self, generation: str) -> bool:
        """True once the cluster of this name is about to end; see :attr:`Config.generation`."""
        return bool(generation) and self.state(f"ending {generation}") is not None

    def set_ending(self, generation: str, ending: bool) -> None:
        """Says to all processes of a cluster that it is about to end, or forgets that."""
        self.set_state(f"ending {generation}", True if ending else None)


def open_store(config: Config) -> Store:
    """The store that a configuration names; :class:`Unusable` if it cannot be used."""
    if not config.store:
        from .sqlite_store import SqliteStore

        return SqliteStore(config.data, config.model, config.identity)
    from .redis_store import RedisStore

    return RedisStore(config.store, config.model, config.identity)
