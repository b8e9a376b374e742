"""The jobs: they outlive the process that took them and the one that works on them.

:class:`Store` says what may become of a job, and :class:`SqliteStore` keeps jobs in a file; :mod:`v2l.serve.redis_store` keeps them in Redis.

Every change is one transaction. A worker owns a job from :meth:`Store.claim` on, as long as it is heard of; whoever finds it silent gives the job
to another, once. What a worker says of a job that is no longer its own is not taken.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple, Type, TypeVar

if TYPE_CHECKING:
    from .config import Config

_T = TypeVar("_T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    request TEXT NOT NULL,
    stack TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued',
    progress INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    heard REAL,
    created REAL NOT NULL,
    started REAL,
    completed REAL,
    file TEXT,
    error_code TEXT,
    error_message TEXT,
    durations TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (model, status, number);
CREATE TABLE IF NOT EXISTS state (model TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (model, name));
CREATE TABLE IF NOT EXISTS counters (model TEXT, name TEXT, label TEXT, value REAL NOT NULL, PRIMARY KEY (model, name, label));
"""

#: How often a job is begun: its worker may be lost once.
ATTEMPTS = 2
STATUSES = ("queued", "in_progress", "completed", "failed")


class QueueFull(Exception):
    """As many jobs wait as may."""


@dataclass(frozen=True)
class Job:
    """A job as it is."""

    id: str
    model: str
    request: Dict[str, Any]
    stack: str
    created: float
    #: Its place in the order of all jobs; 0 until the store has it.
    number: int = 0
    status: str = "queued"
    progress: int = 0
    attempts: int = 0
    worker: Optional[str] = None
    heard: Optional[float] = None
    started: Optional[float] = None
    completed: Optional[float] = None
    file: Optional[str] = None
    error_code: Optional[str] = None
    error_message: Optional[str] = None
    durations: Dict[str, float] = field(default_factory=dict)


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
    """The jobs of one model, which processes share."""

    #: What is raised while jobs cannot be read or written.
    errors: Tuple[Type[Exception], ...]

    def __init__(self, model: str) -> None:
        self.model = model
        #: Called, on any thread, when this process has added or ended a job: who waits for that in it need not look again and again.
        self.watchers: List[Callable[[], object]] = []
        self._trouble = time.monotonic()

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
        """Up to ``limit`` jobs behind the job ``after``, by age."""

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
        job = Job(id=id, model=self.model, request=request, stack=stack, created=self.now())

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
    ) -> bool:
        """Records what became of a job: a file, or an error. False if the job is no longer this worker's."""
        now = self.now()

        def change(jobs: Change) -> bool:
            found = self._own(jobs, job)
            if found is None:
                # The store may have made this change and not said so.
                made = jobs.find(job.id)
                return made is not None and file is not None and made.file == file
            self._end(jobs, found, now, code, message, file, durations or {})
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


_COLUMNS = [field.name for field in dataclasses.fields(Job)]


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in _COLUMNS}
    values["request"] = json.loads(values["request"])
    values["durations"] = json.loads(values["durations"] or "{}")
    return Job(**values)


class _SqliteChange(Change):
    def __init__(self, connection: sqlite3.Connection, model: str) -> None:
        self._connection, self._model = connection, model

    def _one(self, query: str, *values: object) -> Any:
        return self._connection.execute(f"SELECT {query} LIMIT 1", (self._model, *values)).fetchone()

    def find(self, id: str) -> Optional[Job]:
        row = self._one("* FROM jobs WHERE model = ? AND id = ?", id)
        return None if row is None else _job(row)

    def first(self, stack: Optional[str] = None) -> Optional[Job]:
        row = self._one("* FROM jobs WHERE model = ? AND status = 'queued' AND (? IS NULL OR stack = ?) ORDER BY number", stack, stack)
        return None if row is None else _job(row)

    def waiting(self) -> int:
        return int(self._one("COUNT(*) FROM jobs WHERE model = ? AND status = 'queued'")[0])

    def write(self, old: Optional[Job], new: Optional[Job]) -> None:
        if new is None:
            self._connection.execute("DELETE FROM jobs WHERE id = ?", (old and old.id,))
            return
        values = dict(vars(new), request=json.dumps(new.request), durations=json.dumps(new.durations))
        # A new job gets the next number.
        values["number"] = new.number or None
        names = ", ".join(_COLUMNS)
        self._connection.execute(f"INSERT OR REPLACE INTO jobs ({names}) VALUES (:{', :'.join(_COLUMNS)})", values)

    def count(self, name: str, label: str = "", by: float = 1) -> None:
        self._connection.execute(
            "INSERT INTO counters VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            (self._model, name, label, by),
        )


class SqliteStore(Store):
    """Jobs in a file; for the processes of one machine."""

    errors = (sqlite3.OperationalError,)

    def __init__(self, folder: Path, model: str) -> None:
        super().__init__(model)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "jobs.sqlite"
        self._threads = threading.local()
        with self._locked(True) as connection:
            # `executescript` would commit by itself.
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)

    def _connection(self) -> sqlite3.Connection:
        connection: Optional[sqlite3.Connection] = getattr(self._threads, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._file, timeout=30, isolation_level=None)
            connection.row_factory = sqlite3.Row
            tries = 1000
            while True:
                # SQLite does not wait for others here.
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    break
                except sqlite3.OperationalError:
                    tries -= 1
                    if not tries:
                        raise
                    time.sleep(0.03)
            self._threads.connection = connection
        return connection

    @contextlib.contextmanager
    def _locked(self, told: bool) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute(f"PRAGMA synchronous={'FULL' if told else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            # A full disk has ended it already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _transaction(self, change: Callable[[Change], _T], *, told: bool = False) -> _T:
        with self._locked(told) as connection:
            return change(_SqliteChange(connection, self.model))

    def now(self) -> float:
        return time.time()

    def _rows(self, query: str, *values: object) -> List[sqlite3.Row]:
        return self._connection().execute(query, values).fetchall()

    def get(self, id: str, of_any_model: bool = False) -> Optional[Job]:
        rows = self._rows("SELECT * FROM jobs WHERE id = ? AND (model = ? OR ?)", id, self.model, of_any_model)
        return _job(rows[0]) if rows else None

    def list(self, limit: int, after: Optional[str], ascending: bool) -> List[Job]:
        order, relation = ("ASC", ">") if ascending else ("DESC", "<")
        start = -1 if ascending else 1 << 62
        if after is not None:
            found = self._rows("SELECT number FROM jobs WHERE id = ? AND model = ?", after, self.model)
            if not found:
                return []
            start = found[0]["number"]
        query = f"SELECT * FROM jobs WHERE model = ? AND number {relation} ? ORDER BY number {order} LIMIT ?"
        return [_job(row) for row in self._rows(query, self.model, start, limit)]

    def _with(self, status: str) -> List[Job]:
        query = "SELECT * FROM jobs WHERE model = ? AND status = ? ORDER BY number"
        return [_job(row) for row in self._rows(query, self.model, status)]

    def position(self, job: Job) -> int:
        query = "SELECT COUNT(*) AS n FROM jobs WHERE model = ? AND status = 'queued' AND number < ?"
        return int(self._rows(query, self.model, job.number)[0]["n"])

    def expired(self, keep: float) -> List[Job]:
        query = "SELECT * FROM jobs WHERE model = ? AND completed < ? ORDER BY number LIMIT 100"
        return [_job(row) for row in self._rows(query, self.model, self.now() - keep)]

    def counters(self) -> Dict[str, Dict[str, float]]:
        found: Dict[str, Dict[str, float]] = {}
        for row in self._rows("SELECT name, label, value FROM counters WHERE model = ?", self.model):
            found.setdefault(row["name"], {})[row["label"]] = row["value"]
        return found

    def statuses(self) -> Dict[str, int]:
        query = "SELECT status, COUNT(*) AS n FROM jobs WHERE model = ? GROUP BY status"
        return {**dict.fromkeys(STATUSES, 0), **{row["status"]: row["n"] for row in self._rows(query, self.model)}}

    def set_state(self, name: str, value: Any) -> None:
        with self._locked(True) as connection:
            connection.execute("DELETE FROM state WHERE model = ? AND name = ?", (self.model, name))
            if value is not None:
                connection.execute("INSERT INTO state VALUES (?, ?, ?)", (self.model, name, json.dumps(value)))

    def state(self, name: str) -> Any:
        rows = self._rows("SELECT value FROM state WHERE model = ? AND name = ?", self.model, name)
        return json.loads(rows[0]["value"]) if rows else None


def open_store(config: Config) -> Store:
    """The store that a configuration names; ``ConnectionError`` if nobody answers there."""
    if not config.store:
        return SqliteStore(config.data, config.model)
    from .redis_store import RedisStore

    return RedisStore(config.store, config.model)
