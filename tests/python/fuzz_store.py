"""Damages stores of `v2l serve` and asks the server for everything: it must say one of the documented words, at once, and never show a traceback.

    python tests/python/fuzz_store.py [--seconds N] [--seed N] [--engines DIR] [--redis URL]

SQLite: bytes of the file and of its log, rows with hostile values, other tables, another kind of file, before the server begins or under it.
Redis (a database of its own, which is emptied): texts, keys of other types, members of sets that are no jobs.
A finding is printed with the seed that makes it again: `--seed N --seconds 0` is that one case.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import gc
import json
import logging
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from fastapi.testclient import TestClient

from v2l.serve import Config, create_app
from v2l.serve.command import _prepare
from v2l.serve.identity import identified
from v2l.serve.store import Store, Unusable, open_store
from v2l.serve.worker import sweep

#: A case takes a fraction of a second. What takes this long hangs, or is slow on an idle machine; see :func:`slow`.
_HANGS = 600
_SLOW = 15.0
AWAY = "elsewhere/1/1/worker"
MODEL = "model"


class Finding(Exception):
    """What the server must not do."""


def slow() -> float:
    """The most seconds that anything may take: more where other work keeps the processors."""
    return _SLOW * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class _Tracebacks(logging.Handler):
    """Keeps what was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(logging.Formatter().formatException(record.exc_info))


def hostile(draw: random.Random) -> Any:
    """A value that no row expects."""
    deep = draw.choice("[{")
    return draw.choice(
        [
            None, -1, 0, 1 << 62, -(1 << 63), 1e308, 0.5, "", "0", "\0", "x" * 2000, b"\xff\xfe\0", b"", "NaN", "null", "[]", "{}", "true", '"a"', "[1]",
            (deep if deep == "[" else '{"a":') * 50_000, '{"prompt": 1}', '{"prompt": "a", "seed": -1}', '{"prompt": "a", "seed": 1, "fps": 0}',
            '{"prompt": "a", "seed": 1, "fps": 1e999}', '{"prompt": "\\ud800", "seed": 1}', '{"prompt": "a", "seed": 1, "lora": [["/etc/passwd", 1, 0]]}',
            '{"prompt": "a", "seed": 1, "lora": [[1, 2, 3]]}', '{"prompt": "a", "seed": 1, "width": "wide"}', '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
            '{"prompt": "a", "seed": 1, "resolved": {"width": [], "fps": {}}}', '{"active": true, "stack": [{"nickname": 5}]}', '{"active": true}',
            '{"num_frames": 0, "width": 1, "height": 1, "fps": 1}', "../../etc/passwd", "/etc/passwd", "..", "video_gen_*", "queued", "in_progress",
            "completed", "failed", "lost", "a/b/c/d", f"h/{os.getpid()}/1/w", "elsewhere/" + "9" * 40 + "/1/w", "inf", "-inf", "1e999", "\n\x1b[2J", "é" * 100,
        ]
    )


def fill(store: Store, draw: random.Random) -> None:
    """Jobs of every kind."""
    for number in range(draw.randrange(1, 9)):
        asked = {"prompt": f"prompt {number} " * draw.choice([1, 100]), "seed": number, "lora": []}
        store.create(store.new_id(), asked, draw.choice(["", "a", "b"]), 100)
    for _ in range(draw.randrange(5)):
        job = store.claim(AWAY, stack=draw.choice([None, "a"]))
        if job is not None and draw.random() < 0.7:
            made = {"num_frames": 9, "width": 48, "height": 48, "fps": 8.0}
            code = draw.choice([None, None, "memory"])
            store.finish(job, file=f"{job.id}.1.mp4", code=code, message=code, durations={"total": 1.0}, made=made)
    if draw.random() < 0.5:
        store.delete(store.list(1, None, True)[0].id)
    store.set_state("lora", {"active": True, "stack": [{"nickname": "a", "path": "/a.safetensors", "strength": 1.0, "target": 0}]})
    store.count("swaps")


@contextlib.contextmanager
def left(data: Path) -> Iterator[None]:
    """Leaves the files as a server does that is killed, with a log."""
    files = [data / f"jobs.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
    with contextlib.closing(sqlite3.connect(files[0])) as other:
        # Whoever is last would put the log away.
        other.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        yield
        kept = {file: file.read_bytes() for file in files if file.exists()}
    for file, content in kept.items():
        file.write_bytes(content)


# Damages.

Damage = Callable[[random.Random, Path], None]


def _bytes(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes()) if file.is_file() else bytearray()
    at = draw.randrange(len(content) + 1)
    how = draw.randrange(5)
    if how == 0:
        for _ in range(draw.choice([1, 1, 4, 50])):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
    elif how == 1:
        del content[at:]
    elif how == 2:
        content[at : at + 4096] = draw.randbytes(draw.choice([16, 4096]))
    elif how == 3:
        content[at : at + 512] = bytes(512)
    else:
        # One page in place of another.
        pages = max(1, len(content) // 4096)
        one, other = draw.randrange(pages) * 4096, draw.randrange(pages) * 4096
        content[one : one + 4096] = content[other : other + 4096]
    # In place, so that a running server sees it.
    with open(file, "r+b" if file.is_file() else "wb") as out:
        out.write(content)
        out.truncate()


def sqlite_bytes(draw: random.Random, data: Path) -> None:
    """Bytes of the file, mostly; some of its log."""
    _bytes(data / ("jobs.sqlite" + draw.choice(["", "", "", "-wal"])), draw)


def sqlite_index(draw: random.Random, data: Path) -> None:
    """Bytes of the log's index. Processes map it, and whoever cuts it off under them ends them: that is SQLite's own."""
    _bytes(data / "jobs.sqlite-shm", draw)


def sqlite_rows(draw: random.Random, data: Path) -> None:
    """Values of rows that the tables allow."""
    with contextlib.closing(sqlite3.connect(data / "jobs.sqlite")) as file, file:
        for _ in range(draw.randrange(1, 6)):
            table = draw.choice(["jobs", "jobs", "jobs", "jobs", "state", "counters", "gone"])
            columns = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
            # The number is an integer whatever is written.
            column = draw.choice([name for name in columns if name != "number" or table == "gone"])
            with contextlib.suppress(sqlite3.IntegrityError, OverflowError, UnicodeEncodeError):
                value = hostile(draw)
                rows = file.execute(f"SELECT rowid FROM {table}").fetchall()
                for (row,) in draw.sample(rows, draw.randrange(len(rows) + 1)):
                    file.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))


def sqlite_tables(draw: random.Random, data: Path) -> None:
    """Tables that v2l does not make."""
    with contextlib.closing(sqlite3.connect(data / "jobs.sqlite")) as file, contextlib.suppress(sqlite3.OperationalError):
        statements = [
            "ALTER TABLE jobs DROP COLUMN made", "DROP TABLE state", "DROP TABLE counters", "DROP TABLE gone", "DROP TABLE models", "DROP TABLE jobs",
            "DROP INDEX jobs_by_status", "CREATE TRIGGER t AFTER INSERT ON jobs BEGIN DELETE FROM jobs; END", "PRAGMA user_version = 7",
            "PRAGMA application_id = 7", "UPDATE models SET identity = 'another'", "UPDATE models SET identity = X'FF00'", "DELETE FROM models",
            "ALTER TABLE jobs RENAME TO others", "CREATE VIEW v AS SELECT * FROM jobs",
        ]
        for statement in draw.sample(statements, draw.choice([1, 1, 2])):
            file.execute(statement)
        file.commit()


def sqlite_kinds(draw: random.Random, data: Path) -> None:
    """Something else in the file's place."""
    file = data / "jobs.sqlite"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    how = draw.randrange(6)
    if how == 0:
        file.mkdir()
    elif how == 1:
        os.mkfifo(file)
    elif how == 2:
        file.symlink_to(file.name)
    elif how == 3:
        file.write_bytes(draw.randbytes(draw.choice([1, 100, 20000])))
    elif how == 4:
        file.symlink_to(data / "videos")
    else:
        file.write_bytes(b"")


def redis_values(client: Any) -> Damage:
    """Values, types and members of Redis's keys."""

    def damage(draw: random.Random, _data: Path) -> None:
        for _ in range(draw.randrange(1, 5)):
            keys = sorted(client.keys("v2l:*"))
            key = draw.choice([key for key in keys if key.startswith(b"v2l:job:")] or keys) if draw.random() < 0.6 else draw.choice(keys)
            value = hostile(draw)
            value = value if isinstance(value, (str, bytes)) else json.dumps(value)
            kind = client.type(key)
            how = draw.randrange(6)
            if how == 0:
                client.delete(key)
            elif how == 1:
                client.delete(key)
                draw.choice([lambda: client.set(key, value), lambda: client.rpush(key, value), lambda: client.zadd(key, {value: 1}), lambda: client.hset(key, value, value)])()
            elif kind == b"string" and how < 4 and key.startswith(b"v2l:job:"):
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    job = json.loads(client.get(key))
                    job[draw.choice([*job, "another"])] = json.loads(value) if draw.random() < 0.5 else str(value)
                    client.set(key, json.dumps(job))
            elif kind == b"string":
                text = bytearray(client.get(key) + b" ")
                text[draw.randrange(len(text))] = draw.randrange(256)
                client.set(key, draw.choice([bytes(text), value]))
            elif kind == b"zset":
                members = [value, "video_gen_none", *(member for key in keys if key.startswith(b"v2l:job:") for member in [key[8:]])]
                client.zadd(key, {draw.choice(members): draw.choice([0, 1, -1, 1e300, float("inf"), float("-inf")])})
            elif kind == b"hash":
                client.hset(key, draw.choice([value, *client.hkeys(key)]), value)

    return damage


# What is asked of a server, and of a worker.


class Asked:
    """A server that is asked for everything."""

    def __init__(self, config: Config, client: TestClient, allowed: List[int]) -> None:
        self._config, self._client, self._allowed = config, client, allowed

    def ask(self, method: str, path: str, *more: int, **what: Any) -> Any:
        began = time.monotonic()
        answer = self._client.request(method, path, **what)
        if time.monotonic() - began > slow():
            raise Finding(f"{method} {path} took {time.monotonic() - began:.0f} s")
        if answer.status_code not in (200, *more, *self._allowed):
            raise Finding(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        if answer.status_code >= 400 and method != "HEAD":
            error = answer.json()["error"]
            if sorted(error) != ["code", "message", "param", "type"] or str(self._config.data) in answer.text:
                raise Finding(f"{method} {path}: {answer.text[:300]}")
        return answer

    def pages(self, order: str) -> List[str]:
        """All identifiers, page by page."""
        ids: List[str] = []
        for _ in range(40):
            query = {"limit": 3, "order": order, **({"after": ids[-1]} if ids else {})}
            answer = self.ask("GET", "/v1/videos", 404, params=query)
            if answer.status_code != 200:
                return ids
            page = answer.json()
            ids += [video["id"] for video in page["data"]]
            if not page["has_more"] or not page["data"]:
                return ids
        raise Finding(f"paging does not end: {ids[:20]}")

    def everything(self, draw: random.Random) -> None:
        self.ask("GET", "/health", 503)
        ids = self.pages("asc")
        self.pages("desc")
        for path in ("/metrics", "/v1/models", "/v1/list_loras"):
            self.ask("GET", path)
        for id in ids[:12]:
            path = f"/v1/videos/{id}"
            video = self.ask("GET", path, 404)
            if video.status_code == 200 and video.json()["status"] not in ("queued", "in_progress", "completed", "failed"):
                raise Finding(f"a status that is none: {video.text[:300]}")
            self.ask("HEAD", path, 404)
            self.ask("GET", f"{path}/content", 404, 410)
        asked = {"prompt": "a", "num_frames": 1, "num_inference_steps": 1}
        self.ask("POST", "/v1/videos", 400, 429, json=asked)
        for path in ("/v1/unmerge_lora_weights", "/v1/merge_lora_weights"):
            self.ask("POST", path)
        for id in draw.sample(ids, len(ids) // 2):
            self.ask("DELETE", f"/v1/videos/{id}", 404)


def work(store: Store, config: Config, draw: random.Random) -> None:
    """What workers and the sweep do. They live with the store's errors, and know no others."""
    for step in range(8):
        with contextlib.suppress(*store.errors, FileNotFoundError):
            if step % 4 == 0:
                store.recover(draw.choice([0.0, 1e9]))
            job = store.claim(AWAY, stack=draw.choice([None, "a"]), patience=draw.choice([-1.0, 1e9]))
            if job is not None:
                if job.status != "in_progress" or not isinstance(job.request["prompt"], str):
                    raise Finding(f"claimed: {job}")
                store.beat(job, 50)
                draw.choice([lambda: store.release(job), lambda: store.finish(job, code="memory", message="m"), lambda: None])()
    with contextlib.suppress(*store.errors, OSError):
        sweep(store, dataclasses.replace(config, keep=draw.choice([-1.0, 1e9])))


def case(seed: int, config: Config, clean: Callable[[], None], kinds: Dict[str, Damage]) -> str:
    """One store, one damage, one server; gives how it ended."""
    draw = random.Random(seed)
    clean()
    said = _Tracebacks()
    logging.getLogger("v2l.serve").addHandler(said)
    name = draw.choice(sorted(kinds))
    damage, running = kinds[name], name != "sqlite_index" and draw.random() < 0.4
    began = time.monotonic()
    ended = "served"
    try:
        _prepare(config)
        with left(config.data) if draw.random() < 0.5 else contextlib.nullcontext():
            fill(open_store(config), draw)
        # Nobody holds the files any more.
        gc.collect()
        if not running:
            damage(draw, config.data)
        try:
            _prepare(config)
        except Unusable as refused:
            if refused.code not in (2, 6, 9) or "\n" in str(refused) or not any(way in str(refused) for way in ("--data DIR", "--store")):
                raise Finding(f"refused without a way out: {refused.code} {refused}") from None
            # Only rows are damaged: they are no reason.
            if name == "sqlite_rows":
                raise Finding(f"refused because of a row: {refused}") from None
            return f"refused {refused.code}"
        store = open_store(config)
        with TestClient(create_app(config), base_url="http://127.0.0.1") as client:
            if running:
                damage(draw, config.data)
                ended = "served a store that was damaged under it"
            # A damaged row alone is no reason to answer nothing.
            asked = Asked(config, client, [] if name == "sqlite_rows" else [503])
            asked.everything(draw)
            work(store, config, draw)
            asked.everything(draw)
    finally:
        logging.getLogger("v2l.serve").removeHandler(said)
    if said.seen:
        raise Finding(f"a traceback was logged:\n{said.seen[0]}")
    if time.monotonic() - began > slow():
        raise Finding(f"the case took {time.monotonic() - began:.0f} s")
    return ended


def run(engines: Path, seconds: float, seed: int, redis: Optional[str] = None) -> Dict[str, int]:
    """Cases until the time is over; gives how many ended how. Raises :class:`Finding` with the seed."""
    sqlite: Dict[str, Damage] = {damage.__name__: damage for damage in (sqlite_bytes, sqlite_index, sqlite_rows, sqlite_tables, sqlite_kinds)}
    # Modules stay; what a case leaves is looked for in a moment.
    gc.freeze()
    until = time.monotonic() + seconds
    ends: Dict[str, int] = {}
    # In memory where that can be: each change waits for the disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        config = identified(Config(engines=engines, data=Path(work) / "data", model=MODEL, in_process=False))

        def clean() -> None:
            shutil.rmtree(config.data, ignore_errors=True)

        kinds: List[Any] = [(config, clean, sqlite)]
        if redis is not None:
            import redis as package

            client: Any = package.Redis.from_url(redis)

            def emptied() -> None:
                clean()
                client.flushdb()

            kinds.append((dataclasses.replace(config, store=redis), emptied, {"redis": redis_values(client)}))
        for number in range(seed, sys.maxsize):
            faulthandler.dump_traceback_later(_HANGS, exit=True)
            for config_of, clean_of, damages in kinds:
                try:
                    ended = case(number, config_of, clean_of, damages)
                except BaseException as error:
                    error.add_note(f"--seed {number} --seconds 0") if hasattr(error, "add_note") else print(f"--seed {number} --seconds 0", file=sys.stderr)
                    raise
                finally:
                    faulthandler.cancel_dump_traceback_later()
                what = f"{'redis' if config_of.store else 'sqlite'} {ended}"
                ends[what] = ends.get(what, 0) + 1
            if time.monotonic() >= until:
                return ends
    raise AssertionError


def main() -> int:
    parser = argparse.ArgumentParser(description="Damages stores of v2l serve.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", type=Path, help="engine directory (default: the miniature's, compiled)")
    parser.add_argument("--redis", metavar="URL", help="a database of Redis, which is emptied")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    engines = options.engines
    if engines is None:
        import v2l

        miniature = Path(__file__).parent.parent / "fixtures/miniature"
        with v2l.Pipeline.from_pretrained(miniature) as pipeline:
            engines = pipeline.directory
    ends = run(engines, options.seconds, options.seed, options.redis)
    print(f"{sum(ends.values())} cases, no finding: " + ", ".join(f"{count} {what}" for what, count in sorted(ends.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
