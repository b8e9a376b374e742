"""Jobs in SQLite: they outlive the process that took them and the one that works on them.

Every change is one transaction. A worker owns a job from :meth:`Store.claim` on, as long as it is heard of; whoever finds it silent gives the job
to another, once. What a worker says of a job that is no longer its own is not taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

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
    cancelled INTEGER NOT NULL DEFAULT 0,
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


class QueueFull(Exception):
    """As many jobs wait as may."""


@dataclass(frozen=True)
class Job:
    """A job as it is."""

    number: int
    id: str
    model: str
    request: Dict[str, Any]
    stack: str
    status: str
    progress: int
    attempts: int
    worker: Optional[str]
    cancelled: bool
    created: float
    started: Optional[float]
    completed: Optional[float]
    file: Optional[str]
    error_code: Optional[str]
    error_message: Optional[str]
    durations: Dict[str, float]


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values.pop("heard")
    values["request"] = json.loads(values["request"])
    values["durations"] = json.loads(values["durations"] or "{}")
    values["cancelled"] = bool(values["cancelled"])
    return Job(**values)


def _started(process: int) -> Optional[str]:
    """When a process of this machine began, in ticks; ``None`` if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def worker_name(label: str = "worker") -> str:
    """A name for a worker in this process, from which others on this machine see whether it still lives."""
    process = os.getpid()
    return f"{socket.gethostname()}/{process}/{_started(process)}/{label}"


def _is_gone(worker: str) -> bool:
    """True if the worker's process was on this machine and has ended."""
    host, process, started, _ = worker.split("/", 3)
    return host == socket.gethostname() and os.path.isdir("/proc/self") and _started(int(process)) != started


class Store:
    """The jobs of one model in a file that processes share."""

    def __init__(self, folder: Path, model: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "jobs.sqlite"
        self.model = model
        self._threads = threading.local()
        #: Set when this process has added a job; a worker in it need not look for one.
        self.added = threading.Event()
        with self._transaction() as connection:
            # `executescript` would commit by itself.
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)

    def _connection(self) -> sqlite3.Connection:
        connection: Optional[sqlite3.Connection] = getattr(self._threads, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._file, timeout=30, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            self._threads.connection = connection
        return connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            # A full disk has ended it already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _rows(self, query: str, *values: object) -> List[sqlite3.Row]:
        return self._connection().execute(query, values).fetchall()

    @staticmethod
    def new_id() -> str:
        """An identifier that nobody guesses."""
        return f"video_gen_{secrets.token_hex(16)}"

    def create(self, id: str, request: Dict[str, Any], stack: str, max_queued: int) -> Job:
        """Adds a job to the queue; :class:`QueueFull` if as many wait as may."""
        with self._transaction() as connection:
            (waiting,) = connection.execute(
                "SELECT COUNT(*) FROM jobs WHERE model = ? AND status = 'queued'", (self.model,)
            ).fetchone()
            if waiting >= max_queued:
                self._count(connection, "refused", "queue full", 1)
            else:
                connection.execute(
                    "INSERT INTO jobs (id, model, request, stack, created) VALUES (?, ?, ?, ?, ?)",
                    (id, self.model, json.dumps(request), stack, time.time()),
                )
        job = self.get(id)
        if job is None:
            raise QueueFull(f"{waiting} videos wait; expected fewer than {max_queued}, try again later")
        self.added.set()
        return job

    def get(self, id: str, of_any_model: bool = False) -> Optional[Job]:
        """The job of an identifier, of this server's model or of any."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ? AND (model = ? OR ?)", id, self.model, of_any_model)
        return _job(rows[0]) if rows else None

    def list(self, limit: int, after: Optional[str], ascending: bool) -> List[Job]:
        """Up to ``limit`` jobs behind the job ``after``, by age."""
        order, relation = ("ASC", ">") if ascending else ("DESC", "<")
        start = -1 if ascending else 1 << 62
        if after is not None:
            found = self._rows("SELECT number FROM jobs WHERE id = ? AND model = ?", after, self.model)
            if not found:
                return []
            start = found[0]["number"]
        query = f"SELECT * FROM jobs WHERE model = ? AND number {relation} ? ORDER BY number {order} LIMIT ?"
        return [_job(row) for row in self._rows(query, self.model, start, limit)]

    def queued(self) -> List[Job]:
        """Jobs that wait, oldest first."""
        query = "SELECT * FROM jobs WHERE model = ? AND status = 'queued' ORDER BY number"
        return [_job(row) for row in self._rows(query, self.model)]

    def position(self, job: Job) -> int:
        """How many jobs wait before this one."""
        query = "SELECT COUNT(*) AS n FROM jobs WHERE model = ? AND status = 'queued' AND number < ?"
        return int(self._rows(query, self.model, job.number)[0]["n"])

    def claim(
        self, worker: str, *, id: Optional[str] = None, stack: Optional[str] = None, patience: float = 0.0
    ) -> Optional[Job]:
        """Makes a waiting job the worker's: one with ``stack``, else that of ``id``, else the oldest.

        A job that has waited longer than ``patience`` comes before all others.
        """
        with self._transaction() as connection:
            oldest_first = "SELECT * FROM jobs WHERE model = ? AND status = 'queued' AND {} ORDER BY number LIMIT 1"

            def first(condition: str, *values: object) -> Any:
                return connection.execute(oldest_first.format(condition), (self.model, *values)).fetchone()

            now = time.time()
            row = first("created < ?", now - patience) if id is None or stack is not None else None
            if row is None and stack is not None:
                row = first("stack = ?", stack)
            if row is None and id is not None:
                row = first("id = ?", id)
            row = row or first("TRUE")
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET status = 'in_progress', worker = ?, heard = ?, started = ?, progress = 0,"
                " attempts = attempts + 1 WHERE id = ?",
                (worker, now, now, row["id"]),
            )
            return _job(connection.execute("SELECT * FROM jobs WHERE id = ?", (row["id"],)).fetchone())

    def beat(self, job: Job, progress: int) -> bool:
        """Says that the job's worker lives, and how far it is; false if it should stop: the job is cancelled or another's."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET heard = ?, progress = ? WHERE id = ? AND worker = ? AND attempts = ?"
                " AND status = 'in_progress' AND cancelled = 0",
                (time.time(), progress, job.id, job.worker, job.attempts),
            )
            return changed.rowcount == 1

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
        durations = durations or {}
        outcome = "completed" if code is None else code
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET status = ?, progress = CASE WHEN ? THEN 100 ELSE progress END, completed = ?, file = ?,"
                " error_code = ?, error_message = ?, durations = ?, worker = NULL"
                " WHERE id = ? AND worker = ? AND attempts = ? AND status = 'in_progress'",
                (
                    "completed" if code is None else "failed",
                    code is None,
                    time.time(),
                    file,
                    code,
                    message,
                    json.dumps(durations),
                    job.id,
                    job.worker,
                    job.attempts,
                ),
            )
            if changed.rowcount != 1:
                return False
            self._count(connection, "jobs", outcome, 1)
            for phase, seconds in durations.items():
                self._count(connection, "seconds", phase, seconds)
            return True

    def release(self, job: Job) -> None:
        """Puts a job back that its worker cannot finish, as if it had not been begun."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET status = 'queued', worker = NULL, progress = 0, started = NULL, attempts = attempts - 1"
                " WHERE id = ? AND worker = ? AND attempts = ? AND status = 'in_progress'",
                (job.id, job.worker, job.attempts),
            )

    def recover(self, lease: float) -> List[str]:
        """Puts jobs back whose workers are lost, once; a second time they fail. Gives the jobs that were put back."""
        running = self._rows(
            "SELECT id, worker, attempts, heard FROM jobs WHERE model = ? AND status = 'in_progress'", self.model
        )
        back = []
        for row in running:
            if time.time() - row["heard"] < lease and not _is_gone(row["worker"]):
                continue
            again = row["attempts"] < ATTEMPTS
            with self._transaction() as connection:
                changed = connection.execute(
                    "UPDATE jobs SET status = ?, worker = NULL, progress = 0, completed = ?, error_code = ?, error_message = ?"
                    " WHERE id = ? AND worker = ? AND attempts = ? AND heard = ? AND status = 'in_progress'",
                    (
                        "queued" if again else "failed",
                        None if again else time.time(),
                        None if again else "worker_lost",
                        None if again else f"the worker ended {ATTEMPTS} times while it made this video",
                        row["id"],
                        row["worker"],
                        row["attempts"],
                        row["heard"],
                    ),
                )
                if changed.rowcount == 1:
                    self._count(connection, "workers_lost", "", 1)
                    if again:
                        back.append(row["id"])
                    else:
                        self._count(connection, "jobs", "worker_lost", 1)
        return back

    def cancel(self, id: str) -> None:
        """Ends a job: at once if it waits, at its worker's next step if it runs."""
        with self._transaction() as connection:
            waiting = connection.execute(
                "UPDATE jobs SET status = 'failed', completed = ?, error_code = 'cancelled', error_message = 'cancelled'"
                " WHERE id = ? AND model = ? AND status = 'queued'",
                (time.time(), id, self.model),
            )
            if waiting.rowcount == 1:
                self._count(connection, "jobs", "cancelled", 1)
            connection.execute("UPDATE jobs SET cancelled = 1 WHERE id = ? AND model = ?", (id, self.model))

    def delete(self, id: str) -> None:
        """Forgets a job, which its worker then stops."""
        self.cancel(id)
        with self._transaction() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ? AND model = ?", (id, self.model))

    def expired(self, keep: float) -> List[Job]:
        """Jobs that were finished longer ago than they are kept, and still have a file or a request."""
        query = "SELECT * FROM jobs WHERE model = ? AND completed < ? ORDER BY number LIMIT 100"
        return [_job(row) for row in self._rows(query, self.model, time.time() - keep)]

    def _count(self, connection: sqlite3.Connection, name: str, label: str, by: float) -> None:
        connection.execute(
            "INSERT INTO counters VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            (self.model, name, label, by),
        )

    def count(self, name: str, label: str = "", by: float = 1) -> None:
        """Adds to a counter."""
        with self._transaction() as connection:
            self._count(connection, name, label, by)

    def counters(self) -> Dict[str, Dict[str, float]]:
        """Counters by name and label."""
        found: Dict[str, Dict[str, float]] = {}
        for row in self._rows("SELECT name, label, value FROM counters WHERE model = ?", self.model):
            found.setdefault(row["name"], {})[row["label"]] = row["value"]
        return found

    def statuses(self) -> Dict[str, int]:
        """How many jobs there are of each status."""
        query = "SELECT status, COUNT(*) AS n FROM jobs WHERE model = ? GROUP BY status"
        found = dict.fromkeys(("queued", "in_progress", "completed", "failed"), 0)
        return {**found, **{row["status"]: row["n"] for row in self._rows(query, self.model)}}

    def oldest(self) -> float:
        """Seconds that the oldest waiting job has waited."""
        query = "SELECT MIN(created) AS t FROM jobs WHERE model = ? AND status = 'queued'"
        created = self._rows(query, self.model)[0]["t"]
        return 0.0 if created is None else max(0.0, time.time() - float(created))

    def set_state(self, name: str, value: Any) -> None:
        """Keeps a value under a name."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (self.model, name, json.dumps(value)))

    def clear_state(self, name: str) -> None:
        """Forgets the value under a name."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM state WHERE model = ? AND name = ?", (self.model, name))

    def is_ending(self, generation: str) -> bool:
        """True once the cluster of this name is about to end; see :attr:`Config.generation`."""
        return bool(generation) and self.state(f"ending {generation}") is not None

    def set_ending(self, generation: str, ending: bool) -> None:
        """Says to all processes of a cluster that it is about to end, or forgets that."""
        name = f"ending {generation}"
        self.set_state(name, True) if ending else self.clear_state(name)

    def state(self, name: str) -> Any:
        """The value under a name; ``None`` if there is none."""
        rows = self._rows("SELECT value FROM state WHERE model = ? AND name = ?", self.model, name)
        return json.loads(rows[0]["value"]) if rows else None
