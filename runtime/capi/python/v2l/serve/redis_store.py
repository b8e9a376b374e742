"""Jobs in Redis, for servers and workers of several machines. Needs the extra ``v2l[redis]``.

A job is one text. Sorted sets say in which order there are jobs, of each status and each stack. A transaction watches what it has read and is
made again if another changed that meanwhile. Times are Redis's, so that clocks of machines may differ.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import math
import time
from typing import Any, Callable, Dict, List, Optional, Tuple, TypeVar
from urllib.parse import urlsplit

from . import rows
from .rows import STATUSES, Job
from .store import REMEMBERED, VERSION, Change, NoSuchJob, Store, Unusable, of_other_engines, of_other_version, say_taken_over

LOG = logging.getLogger("v2l.serve")

_T = TypeVar("_T")

#: What helps where a store cannot be used.
_WAY_OUT = "give --store another number, as in redis://HOST:PORT/NUMBER"
#: How long Redis may take to answer.
_PATIENCE = 5.0
#: How often a change is made anew because others change the same. More is no accident.
_MOST_TRIES = 1000
#: Jobs that are read at once.
_PAGE = 100


def _key(kind: str, *names: str) -> str:
    return ":".join(("v2l", kind, *names))


def _owner(identity: str, model: str) -> str:
    """Whose jobs they are, as part of a key."""
    return f"{identity}:{model}"


def _job(id: str, text: Optional[str]) -> Optional[Job]:
    """The job of a text; ``None`` if there is none, or if its identifier is none."""
    if text is None or not rows.is_name(id):
        return None
    try:
        values = rows.parsed(text)
    except ValueError:
        values = {}
    values = values if isinstance(values, dict) else {}
    model, identity = values.get("model"), values.get("identity")
    whose = model if isinstance(model, str) else "", identity if isinstance(identity, str) else ""
    return rows.job_of(id, *whose, values)


def _ours(job: Optional[Job], identity: str, model: str) -> Optional[Job]:
    """The job if it is of these. So is one that is too damaged to say whose it is: nobody guesses its identifier."""
    if job is not None and job.is_damaged and not job.identity:
        return dataclasses.replace(job, identity=identity, model=model)
    return job if job is not None and (job.identity, job.model) == (identity, model) else None


def _places(job: Optional[Job]) -> Dict[str, float]:
    """The sorted sets that a job is in, and its place there."""
    if job is None:
        return {}
    owner = _owner(job.identity, job.model)
    places: Dict[str, float] = {_key("jobs", owner): job.number, _key(job.status, owner): job.number}
    if job.status == "queued":
        places[_key("stack", job.stack, owner)] = job.number
    if job.completed is not None:
        places[_key("ended", owner)] = job.completed
    return places


class _Stale(Exception):
    """What was read is not so any more."""


class _RedisChange(Change):
    def __init__(self, client: Any, pipe: Any, identity: str, model: str, is_full: bool) -> None:
        self._client, self._pipe, self._whose = client, pipe, (identity, model)
        self._owner = _owner(identity, model)
        #: What is to be done at once, after all was read.
        self.commands: List[Tuple[Any, ...]] = []
        #: Nothing can be added, and what was counted and remembered is not.
        self.is_full = is_full

    def find(self, id: str) -> Optional[Job]:
        return self.of(id, self._whose[0])

    def of(self, id: str, identity: str) -> Optional[Job]:
        """The job of an identifier, of these engines or of others."""
        self._pipe.watch(_key("job", id))
        return _ours(_job(id, self._pipe.get(_key("job", id))), identity, self._whose[1])

    def text(self, id: str) -> Optional[str]:
        """The text of a job, whoever's it is."""
        found: Optional[str] = self._pipe.get(_key("job", id))
        return found

    def first(self, stack: Optional[str] = None) -> Optional[Job]:
        queue = _key("queued", self._owner) if stack is None else _key("stack", stack, self._owner)
        ids = self._client.zrange(queue, 0, 0)
        job = self.find(ids[0]) if ids else None
        if ids and (job is None or job.status != "queued"):
            # It was taken or deleted just now, or its text is lost or damaged.
            self.commands = [("ZREM", queue, ids[0])]
            if job is not None and job.is_damaged:
                self.mend(ids[0], job)
            self.run()
            raise _Stale
        return job

    def run(self) -> None:
        """Does what was put down, unless what was read has changed meanwhile."""
        if not self.commands:
            return
        if self.is_full:
            # Redis refuses all of a transaction now. Without the text, first of all, others take the rest for lost.
            for kind in ("DEL", "ZREM"):
                for command in self.commands:
                    if command[0] == kind:
                        self._client.execute_command(*command)
            return
        self._pipe.multi()
        for command in self.commands:
            self._pipe.execute_command(*command)
        self._pipe.execute()

    def mend(self, id: str, job: Optional[Job]) -> None:
        """Lets a job fail whose text cannot be read, or forgets it."""
        if job is not None:
            self.write(job, job)
            self.count("jobs", rows.DAMAGED)
        else:
            self.commands += [("ZREM", place, id) for place in self._everywhere()]
            self.commands.append(("DEL", _key("job", id)))

    def _everywhere(self) -> Dict[str, float]:
        """All that a damaged job may be in, but for the queue of its stack."""
        return dict.fromkeys((_key(kind, self._owner) for kind in ("jobs", "ended", *STATUSES)), -math.inf)

    def waiting(self) -> int:
        self._pipe.watch(_key("queued", self._owner))
        return int(self._pipe.zcard(_key("queued", self._owner)))

    def write(self, old: Optional[Job], new: Optional[Job]) -> None:
        if new is not None and not new.number:
            new = dataclasses.replace(new, number=self._client.incr(_key("number")))
        before = self._everywhere() if old is not None and old.is_damaged else _places(old)
        after = _places(new)
        if old is not None:
            self.commands += [("ZREM", key, old.id) for key in before.keys() - after.keys()]
            if new is None:
                self.commands.append(("DEL", _key("job", old.id)))
                self.commands.append(("SET", _key("gone", old.id, self._owner), old.number, "EX", int(REMEMBERED)))
        if new is not None:
            self.commands += [("ZADD", key, place, new.id) for key, place in after.items() - before.items()]
            self.commands.append(("SET", _key("job", new.id), json.dumps(vars(new))))

    def count(self, name: str, label: str = "", by: float = 1) -> None:
        self.commands.append(("HINCRBYFLOAT", _key("counters", self._owner), json.dumps([name, label]), by))


class RedisStore(Store):
    """Jobs in Redis, or in what speaks its protocol."""

    def __init__(self, address: str, model: str, identity: str) -> None:
        super().__init__(model, identity)
        self._owner = _owner(identity, model)
        redis: Any = importlib.import_module("redis")
        retry = importlib.import_module("redis.retry").Retry(importlib.import_module("redis.backoff").NoBackoff(), 1)
        self.errors = (redis.RedisError,)
        self._watch_error = redis.WatchError
        self._out_of_memory = importlib.import_module("redis.exceptions").OutOfMemoryError
        settings = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE, "encoding_errors": "surrogateescape"}
        # Without the user and password that the address may have.
        url = urlsplit(address)
        where = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        self._where = f"the store {where}"
        try:
            self._client: Any = redis.Redis.from_url(address, decode_responses=True, retry=retry, **settings)
        except ValueError as error:
            raise Unusable(f"--store {where}: {error}", 2) from None
        try:
            told = {**self._client.info("persistence"), **self._client.info("memory")}
            self._begin()
        except redis.ResponseError as error:
            raise self._damaged(error) from None
        except redis.RedisError as error:
            way_out = f"{error}; expected Redis 6.2 or newer, or Valkey; start it, or give --store another address"
            raise Unusable(f"{self._where} does not answer: {way_out}", 6) from None
        if not told.get("aof_enabled"):
            LOG.warning("Redis does not write down each job at once, and forgets some if it ends; set appendonly yes")
        if told.get("maxmemory_policy", "noeviction") != "noeviction":
            LOG.warning("Redis forgets jobs if its memory is full; set maxmemory-policy noeviction")

    def _begin(self) -> None:
        """Says whose the store is, or refuses one of others."""
        version = self._client.get(_key("version"))
        if version is None:
            # Between the two another may have begun.
            if self._client.exists(_key("number")) and self._client.get(_key("version")) is None:
                raise of_other_version(self._where, "1", _WAY_OUT)
            self._client.set(_key("version"), VERSION, nx=True)
            version = self._client.get(_key("version"))
        if version != str(VERSION):
            raise of_other_version(self._where, f"{version!a:.20}", _WAY_OUT)
        self._client.hsetnx(_key("models"), self.model, self.identity)
        bound = self._client.hget(_key("models"), self.model)
        if bound != self.identity:
            self._take_over(str(bound))

    def _take_over(self, bound: str) -> None:
        """Makes what is under this name these engines', unless a job still wants those that it was for."""
        theirs = _owner(bound, self.model)
        if any(self._client.zcard(_key(status, theirs)) for status in ("queued", "in_progress")):
            raise of_other_engines(self._where, self.model, bound, self.identity, _WAY_OUT)
        for id in self._client.zrange(_key("jobs", theirs), 0, -1):
            self._transaction(lambda jobs: self._take(jobs, id, bound))
        for kind in ("state", "counters"):
            if self._client.exists(_key(kind, theirs)):
                self._client.rename(_key(kind, theirs), _key(kind, self._owner))
        self._client.hset(_key("models"), self.model, self.identity)
        say_taken_over(self._where, self.model, bound, self.identity)

    def _take(self, jobs: Change, id: str, bound: str) -> None:
        """Makes a job of other engines, which has ended, one of these."""
        assert isinstance(jobs, _RedisChange)
        job = jobs.of(id, bound)
        if job is not None and not job.is_damaged:
            jobs.write(job, dataclasses.replace(job, identity=self.identity))

    def _damaged(self, error: Exception) -> Unusable:
        return Unusable(f"{self._where} refuses or is damaged: {error}; give --store another address or number", 9)

    def _transaction(self, change: Callable[[Change], _T], *, told: bool = False, is_full: bool = False) -> _T:
        try:
            for _ in range(_MOST_TRIES):
                with self._client.pipeline() as pipe:
                    made = _RedisChange(self._client, pipe, self.identity, self.model, is_full)
                    try:
                        result = change(made)
                        made.run()
                    except (_Stale, self._watch_error):
                        continue
                    return result
            raise self.errors[0](f"a change was not made in {_MOST_TRIES} tries")
        except self.errors:
            self.failed = time.monotonic()
            raise

    def delete(self, id: str) -> None:
        try:
            super().delete(id)
        except self._out_of_memory:
            # Without a place to list from, and uncounted.
            self._transaction(lambda jobs: jobs.write(jobs.find(id), None), is_full=True)

    def now(self) -> float:
        seconds, microseconds = self._client.time()
        return float(seconds) + float(microseconds) / 1e6

    def _jobs(self, place: str, ids: List[str]) -> List[Job]:
        """The jobs of identifiers that a sorted set has; what is none of these jobs leaves it."""
        texts = self._client.mget([_key("job", id) for id in ids]) if ids else []
        found = [(id, _ours(_job(id, text), self.identity, self.model)) for id, text in zip(ids, texts)]
        lost = [id for id, job in found if job is None]
        if lost:
            self._client.zrem(place, *lost)
        return [job for _, job in found if job is not None]

    def get(self, id: str, of_any_model: bool = False) -> Optional[Job]:
        job = _job(id, self._client.get(_key("job", id)))
        return job if of_any_model else _ours(job, self.identity, self.model)

    def list(self, limit: int, after: Optional[str], ascending: bool) -> List[Job]:
        jobs, start = _key("jobs", self._owner), "-inf" if ascending else "+inf"
        if after is not None:
            number = self._client.zscore(jobs, after)
            if number is None:
                number = self._client.get(_key("gone", after, self._owner))
            if number is None:
                raise NoSuchJob(after)
            start = f"({number}"
        end = "+inf" if ascending else "-inf"
        while True:
            ids = self._client.zrange(jobs, start, end, byscore=True, desc=not ascending, offset=0, num=limit)
            found = self._jobs(jobs, ids)
            # What was no job has left the order, and the page is full all the same.
            if len(found) == len(ids):
                return found

    def _with(self, status: str) -> List[Job]:
        # A job may have been changed after the order was read.
        place = _key(status, self._owner)
        return [job for job in self._jobs(place, self._client.zrange(place, 0, -1)) if job.status == status]

    def position(self, job: Job) -> int:
        return int(self._client.zrank(_key("queued", self._owner), job.id) or 0)

    def expired(self, keep: float) -> List[Job]:
        ended = _key("ended", self._owner)
        return self._jobs(ended, self._client.zrange(ended, "-inf", f"({self.now() - keep}", byscore=True, offset=0, num=_PAGE))

    def mend(self) -> int:
        try:
            self.statuses()
            self.counters()
            self.expired(0.0)
            places = [_key(kind, self._owner) for kind in ("jobs", *STATUSES)]
            ids = {id for place in places for id in self._client.zrange(place, 0, -1)}
            return sum(self._transaction(lambda jobs: self._mend(jobs, id), told=True) for id in ids)
        except self.errors as error:
            raise self._damaged(error) from None

    @staticmethod
    def _mend(jobs: Change, id: str) -> bool:
        assert isinstance(jobs, _RedisChange)
        job, text = jobs.find(id), jobs.text(id)
        if job is not None and (not job.is_damaged or text == json.dumps(vars(job))):
            return False
        jobs.mend(id, job)
        return True

    def probe(self) -> None:
        self._client.set(_key("probe"), self.now(), ex=60)

    def counters(self) -> Dict[str, Dict[str, float]]:
        found: Dict[str, Dict[str, float]] = {}
        for key, text in self._client.hgetall(_key("counters", self._owner)).items():
            try:
                name, label = rows.parsed(key)
                value = rows.counted(name, label, float(text))
            except (ValueError, TypeError):
                continue
            if value is not None:
                found.setdefault(name, {})[label] = value
        return found

    def statuses(self) -> Dict[str, int]:
        return {status: self._client.zcard(_key(status, self._owner)) for status in STATUSES}

    def state(self, name: str) -> Any:
        text = self._client.hget(_key("state", self._owner), name)
        return None if text is None else rows.state_of(name, text)

    def set_state(self, name: str, value: Any) -> None:
        if value is None:
            self._client.hdel(_key("state", self._owner), name)
        else:
            self._client.hset(_key("state", self._owner), name, json.dumps(value))
