"""Jobs in a file of SQLite, for the processes of one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, TypeVar

from . import rows
from .rows import STATUSES, Job
from .store import REMEMBERED, VERSION, WAY_OUT, Change, NoSuchJob, Store, Unusable, of_other_engines, of_other_version, say_taken_over

_T = TypeVar("_T")

#: SQLite's mark for files of one program: "v2lj".
_APPLICATION = 0x76326C6A
_SCHEMA = (
    """CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    identity TEXT NOT NULL,
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
    durations TEXT,
    made TEXT
)""",
    "CREATE INDEX jobs_by_status ON jobs (identity, model, status, number)",
    "CREATE TABLE models (model TEXT PRIMARY KEY, identity TEXT NOT NULL)",
    "CREATE TABLE gone (id TEXT PRIMARY KEY, identity TEXT NOT NULL, model TEXT NOT NULL, number INTEGER NOT NULL, deleted REAL NOT NULL)",
    "CREATE TABLE state (identity TEXT, model TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (identity, model, name))",
    """CREATE TABLE counters (
    identity TEXT, model TEXT, name TEXT, label TEXT, value REAL NOT NULL, PRIMARY KEY (identity, model, name, label)
)""",
)
_COLUMNS = [field.name for field in dataclasses.fields(Job)]
_ALL = ", ".join(_COLUMNS)
_JSON = ("request", "durations", "made")
#: Jobs of this model over these engines.
_OURS = "identity = ? AND model = ?"
#: How long others may hold the file.
_PATIENCE = 30.0
#: How long they may while a write is tried.
_PROBE = 1.0
#: SQLITE_BUSY and SQLITE_LOCKED; SQLITE_IOERR and SQLITE_FULL. Python 3.10 does not name them.
_BUSY, _FULL = (5, 6), (10, 13)
#: What is kept free for changes that make room, in a file of its own.
_RESERVE = 1 << 20
#: Rows in turn that cannot be read at the head of the queue; more are the index's fault.
_MOST_BROKEN = 1000


def _is(error: sqlite3.Error, codes: Tuple[int, ...], *words: str) -> bool:
    """True for an error of these codes. Python 3.10 has the message alone."""
    code = getattr(error, "sqlite_errorcode", None)
    return any(word in str(error) for word in words) if code is None else code & 0xFF in codes


def _is_busy(error: sqlite3.Error) -> bool:
    """True if another process holds what is wanted, so that trying again helps."""
    return _is(error, _BUSY, "locked", "busy")


class _Cursor(sqlite3.Cursor):
    """A cursor whose errors are SQLite's, though Python cannot decode what a damaged file makes SQLite say."""

    def execute(self, *given: Any) -> "_Cursor":
        with _decoded():
            super().execute(*given)
        return self

    def fetchall(self) -> List[Any]:
        with _decoded():
            return super().fetchall()

    def fetchone(self) -> Any:
        with _decoded():
            return super().fetchone()


class _Connection(sqlite3.Connection):
    """A connection with such cursors."""

    def execute(self, *given: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*given)


@contextlib.contextmanager
def _decoded() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"malformed: {error.object[:100]!r}") from None


def _job(row: sqlite3.Row) -> Optional[Job]:
    """The job of a row; ``None`` for one whose identifier is none."""
    values = {name: row[name] for name in _COLUMNS}
    if not rows.is_name(values["id"]):
        return None
    whose = values["id"], str(values["model"]), str(values["identity"])
    try:
        for name in _JSON:
            values[name] = rows.parsed(values[name]) if name == "request" or values[name] is not None else None
        return rows.job_of(*whose, {**values, "durations": {} if values["durations"] is None else values["durations"]})
    except ValueError:
        return rows.damaged(*whose, values)


def _jobs(found: List[sqlite3.Row]) -> List[Job]:
    return [job for job in map(_job, found) if job is not None]


class _SqliteChange(Change):
    def __init__(self, connection: sqlite3.Connection, ours: Tuple[str, str]) -> None:
        self._connection, self._ours = connection, ours

    def _rows(self, query: str, *values: object) -> List[sqlite3.Row]:
        return self._connection.execute(f"SELECT {query}", (*self._ours, *values)).fetchall()

    def find(self, id: str) -> Optional[Job]:
        found = self._rows(f"{_ALL} FROM jobs WHERE {_OURS} AND id = ? LIMIT 1", id)
        return _job(found[0]) if found else None

    def first(self, stack: Optional[str] = None) -> Optional[Job]:
        query = f"{_ALL} FROM jobs WHERE {_OURS} AND status = 'queued' AND (? IS NULL OR stack = ?) ORDER BY number LIMIT 1"
        for _ in range(_MOST_BROKEN):
            found = self._rows(query, stack, stack)
            job = _job(found[0]) if found else None
            if not found or job is not None and job.status == "queued":
                return job
            if job is not None and not job.is_damaged:
                break
            self.mend(found[0]["number"], job)
        raise sqlite3.DatabaseError("the index of the jobs is damaged")

    def mend(self, number: int, job: Optional[Job]) -> None:
        """Lets a job fail whose row cannot be read, or forgets it: one without a name, and one that an index took for this model's."""
        if job is None or (job.identity, job.model) != self._ours:
            self._connection.execute("DELETE FROM jobs WHERE number = ?", (number,))
        else:
            self.write(job, dataclasses.replace(job, number=number))
            self.count("jobs", rows.DAMAGED)

    def waiting(self) -> int:
        return int(self._rows(f"COUNT(*) FROM jobs WHERE {_OURS} AND status = 'queued'")[0][0])

    def write(self, old: Optional[Job], new: Optional[Job]) -> None:
        if new is None:
            if old is not None:
                now = time.time()
                self._connection.execute("DELETE FROM gone WHERE NOT deleted > ?", (now - REMEMBERED,))
                self._connection.execute("INSERT OR REPLACE INTO gone VALUES (?, ?, ?, ?, ?)", (old.id, *self._ours, old.number, now))
                self._connection.execute("DELETE FROM jobs WHERE id = ?", (old.id,))
            return
        values = {**vars(new), **{name: None if vars(new)[name] is None else json.dumps(vars(new)[name]) for name in _JSON}}
        # A new job gets the next number.
        values["number"] = new.number or None
        self._connection.execute(f"INSERT OR REPLACE INTO jobs ({_ALL}) VALUES (:{', :'.join(_COLUMNS)})", values)

    def count(self, name: str, label: str = "", by: float = 1) -> None:
        self._connection.execute(
            "INSERT INTO counters VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            (*self._ours, name, label, by),
        )


class SqliteStore(Store):
    """Jobs in a file; for the processes of one machine."""

    errors = (sqlite3.Error,)

    def __init__(self, folder: Path, model: str, identity: str) -> None:
        super().__init__(model, identity)
        self._ours = (identity, model)
        self._file = folder / "jobs.sqlite"
        self._reserve = folder / "jobs.reserve"
        self._threads = threading.local()
        self._inode: Optional[Tuple[int, int]] = None
        self._where = f"the store {self._file}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._file.exists() and not stat.S_ISREG(self._file.stat().st_mode):
                raise Unusable(f"{self._where} is no file; {WAY_OUT}", 9)
            # One process at a time makes the tables.
            with self._locked(True) as connection:
                self._begin(connection)
            self._inode = self._found()
            self._keep_room()
        except OSError as error:
            why = f"{self._where} cannot be made: {error.strerror or error}"
            raise Unusable(f"{why}; expected a folder that can be written; {WAY_OUT}", 9) from None
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: sqlite3.Error) -> Unusable:
        """What a server says that cannot begin because of this."""
        if _is_busy(error):
            return Unusable(f"{self._where} is held by another program: {error}; end that", 9)
        if isinstance(error, sqlite3.OperationalError):
            return Unusable(f"{self._where} cannot be read or written: {error}; expected a folder with room that can be written; {WAY_OUT}", 9)
        return Unusable(f"{self._where} is damaged: {error}; move it away, and its jobs are lost; or {WAY_OUT}", 9)

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Makes the tables, or refuses those that are there."""
        (version,), (application,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("user_version", "application_id"))
        if not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        elif application != _APPLICATION and version == 0:
            raise of_other_version(self._where, "1, or is none of v2l's")
        elif application != _APPLICATION or version != VERSION:
            raise of_other_version(self._where, str(version))
        # Columns may be missing, and triggers would run with every change.
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'").fetchall()
        if sorted(str(row["sql"]) for row in found) != sorted(_SCHEMA):
            raise Unusable(f"{self._where} has other tables than v2l makes; {WAY_OUT}", 9)
        connection.execute("INSERT OR IGNORE INTO models VALUES (?, ?)", (self.model, self.identity))
        (bound,) = connection.execute("SELECT identity FROM models WHERE model = ?", (self.model,)).fetchone()
        if bound != self.identity:
            self._take_over(connection, str(bound))

    def _take_over(self, connection: sqlite3.Connection, bound: str) -> None:
        """Makes what is under this name these engines', unless a job still wants those that it was for."""
        theirs = "model = ? AND identity = (SELECT identity FROM models WHERE models.model = ?)"
        ours = self.model, self.model
        (wait,) = connection.execute(f"SELECT COUNT(*) FROM jobs WHERE {theirs} AND status IN ('queued', 'in_progress')", ours).fetchone()
        if wait:
            raise of_other_engines(self._where, self.model, bound, self.identity)
        for table in ("jobs", "gone", "state", "counters"):
            connection.execute(f"UPDATE OR REPLACE {table} SET identity = ? WHERE {theirs}", (self.identity, *ours))
        connection.execute("UPDATE models SET identity = ? WHERE model = ?", self._ours)
        say_taken_over(self._where, self.model, bound, self.identity)

    def _found(self) -> Tuple[int, int]:
        found = self._file.stat()
        return found.st_dev, found.st_ino

    def _connection(self) -> sqlite3.Connection:
        if self._inode is not None:
            # Threads with the old file and threads with a new one would know different jobs.
            try:
                same = self._found() == self._inode
            except OSError:
                same = False
            if not same:
                raise sqlite3.OperationalError("the file of the jobs was removed or replaced; start the server anew")
        connection: Optional[sqlite3.Connection] = getattr(self._threads, "connection", None)
        if connection is None:
            connection = self._threads.connection = self._connected()
        return connection

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, timeout=_PATIENCE, isolation_level=None, factory=_Connection)
        connection.row_factory = sqlite3.Row
        # What is no UTF-8 makes a row unreadable, and not all rows.
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        until = time.monotonic() + _PATIENCE
        try:
            while True:
                # SQLite does not wait for others here.
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    return connection
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() > until:
                        raise
                    time.sleep(0.03)
        except BaseException:
            connection.close()
            raise

    @contextlib.contextmanager
    def _locked(self, told: bool) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        try:
            connection.execute(f"PRAGMA synchronous={'FULL' if told else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, sqlite3.Error):
                self.failed = time.monotonic()
            # A full disk may have ended it already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _transaction(self, change: Callable[[Change], _T], *, told: bool = False) -> _T:
        with self._locked(told) as connection:
            return change(_SqliteChange(connection, self._ours))

    def delete(self, id: str) -> None:
        try:
            super().delete(id)
        except sqlite3.OperationalError as error:
            if not _is(error, _FULL, "full", "I/O"):
                raise
            # The log of changes begins anew where it can, and grows into the reserve where it must.
            with contextlib.suppress(sqlite3.Error):
                self._connection().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._reserve.unlink(missing_ok=True)
            try:
                super().delete(id)
            finally:
                self._keep_room()

    def _keep_room(self) -> None:
        """Writes the reserve, or as much of it as there is room for."""
        try:
            with open(self._reserve, "ab", buffering=0) as file:
                while file.tell() < _RESERVE and file.write(b"\0" * min(1 << 16, _RESERVE - file.tell())):
                    pass
        except OSError:
            pass  # the next delete tries again

    def now(self) -> float:
        return time.time()

    def _rows(self, query: str, *values: object) -> List[sqlite3.Row]:
        return self._connection().execute(query, values).fetchall()

    def get(self, id: str, of_any_model: bool = False) -> Optional[Job]:
        jobs = _jobs(self._rows(f"SELECT {_ALL} FROM jobs WHERE id = ? AND (? OR {_OURS})", id, of_any_model, *self._ours))
        return jobs[0] if jobs else None

    def list(self, limit: int, after: Optional[str], ascending: bool) -> List[Job]:
        order, relation = ("ASC", ">") if ascending else ("DESC", "<")
        start = -1 << 63 if ascending else (1 << 63) - 1
        if after is not None:
            where = f"WHERE id = ? AND {_OURS}"
            found = self._rows(
                f"SELECT number FROM jobs {where} UNION ALL SELECT number FROM gone {where}", after, *self._ours, after, *self._ours
            )
            if not found:
                raise NoSuchJob(after)
            start = found[0]["number"]
        query = f"SELECT {_ALL} FROM jobs WHERE {_OURS} AND number {relation} ? ORDER BY number {order} LIMIT ?"
        jobs: List[Job] = []
        while len(jobs) < limit:
            found = self._rows(query, *self._ours, start, limit - len(jobs))
            if not found:
                break
            # Rows without an identifier are left out, and the page is full all the same.
            jobs += _jobs(found)
            start = found[-1]["number"]
        return jobs

    def _with(self, status: str) -> List[Job]:
        found = _jobs(self._rows(f"SELECT {_ALL} FROM jobs WHERE {_OURS} AND status = ? ORDER BY number", *self._ours, status))
        return [job for job in found if job.status == status]

    def position(self, job: Job) -> int:
        query = f"SELECT COUNT(*) AS n FROM jobs WHERE {_OURS} AND status = 'queued' AND number < ?"
        return int(self._rows(query, *self._ours, job.number)[0]["n"])

    def expired(self, keep: float) -> List[Job]:
        query = f"SELECT {_ALL} FROM jobs WHERE {_OURS} AND completed < ? ORDER BY number LIMIT 100"
        return _jobs(self._rows(query, *self._ours, self.now() - keep))

    def mend(self) -> int:
        try:
            told = [str(row[0]) for row in self._rows("PRAGMA integrity_check(1)")]
            if told != ["ok"]:
                raise sqlite3.DatabaseError(told[0] if told else "the check says nothing")
            with self._locked(True) as connection:
                jobs = _SqliteChange(connection, self._ours)
                read = [(row["number"], _job(row)) for row in jobs._rows(f"{_ALL} FROM jobs WHERE {_OURS}")]
                broken = [(number, job) for number, job in read if job is None or job.is_damaged and not self._is_mended(number)]
                for number, job in broken:
                    jobs.mend(number, job)
                return len(broken)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _is_mended(self, number: int) -> bool:
        return bool(self._rows("SELECT 1 FROM jobs WHERE number = ? AND status = 'failed' AND error_code = ?", number, rows.DAMAGED))

    def probe(self) -> None:
        # Whoever asks does not wait as long as a job may.
        self._connection().execute(f"PRAGMA busy_timeout = {round(_PROBE * 1000)}")
        try:
            self.set_state("probe", self.now())
        finally:
            self._connection().execute(f"PRAGMA busy_timeout = {round(_PATIENCE * 1000)}")

    def counters(self) -> Dict[str, Dict[str, float]]:
        found: Dict[str, Dict[str, float]] = {}
        for row in self._rows(f"SELECT name, label, value FROM counters WHERE {_OURS}", *self._ours):
            value = rows.counted(row["name"], row["label"], row["value"])
            if value is not None:
                found.setdefault(row["name"], {})[row["label"]] = value
        return found

    def statuses(self) -> Dict[str, int]:
        query = f"SELECT status, COUNT(*) AS n FROM jobs WHERE {_OURS} GROUP BY status"
        found = {row["status"]: row["n"] for row in self._rows(query, *self._ours)}
        return {status: found.get(status, 0) for status in STATUSES}

    def set_state(self, name: str, value: Any) -> None:
        with self._locked(True) as connection:
            if value is None:
                connection.execute(f"DELETE FROM state WHERE {_OURS} AND name = ?", (*self._ours, name))
            else:
                connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", (*self._ours, name, json.dumps(value)))

    def state(self, name: str) -> Any:
        found = self._rows(f"SELECT value FROM state WHERE {_OURS} AND name = ?", *self._ours, name)
        return rows.state_of(name, found[0]["value"]) if found else None
