"""Jobs in Redis, for servers and workers of several machines. Needs the extra ``v2l[redis]``.

A job is one text. Sorted sets say in which order there are jobs, of each status and each stack. A transaction watches what it has read and is
made again if another changed that meanwhile. Times are Redis's, so that clocks of machines may differ.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
from typing import Any, Callable, Dict, List, Optional, Tuple, TypeVar
from urllib.parse import urlsplit

from .store import STATUSES, Change, Job, Store

LOG = logging.getLogger("v2l.serve")

_T = TypeVar("_T")

#: How long Redis may take to answer.
_PATIENCE = 5.0


def _key(kind: str, *names: str) -> str:
    return ":".join(("v2l", kind, *names))


def _job(text: Optional[str]) -> Optional[Job]:
    return None if text is None else Job(**json.loads(text))


def _places(job: Optional[Job]) -> Dict[str, float]:
    """The sorted sets that a job is in, and its place there."""
    if job is None:
        return {}
    places: Dict[str, float] = {_key("jobs", job.model): job.number, _key(job.status, job.model): job.number}
    if job.status == "queued":
        places[_key("stack", job.stack, job.model)] = job.number
    if job.completed is not None:
        places[_key("ended", job.model)] = job.completed
    return places


class _Stale(Exception):
    """What was read is not so any more."""


class _RedisChange(Change):
    def __init__(self, client: Any, pipe: Any, model: str) -> None:
        self._client, self._pipe, self._model = client, pipe, model
        #: What is to be done at once, after all was read.
        self.commands: List[Tuple[Any, ...]] = []

    def find(self, id: str) -> Optional[Job]:
        self._pipe.watch(_key("job", id))
        job = _job(self._pipe.get(_key("job", id)))
        return job if job is not None and job.model == self._model else None

    def first(self, stack: Optional[str] = None) -> Optional[Job]:
        queue = _key("queued", self._model) if stack is None else _key("stack", stack, self._model)
        ids = self._client.zrange(queue, 0, 0)
        job = self.find(ids[0]) if ids else None
        if ids and (job is None or job.status != "queued"):
            if job is None:
                # It was deleted just now, or its text is lost.
                self._client.zrem(queue, *ids)
            raise _Stale
        return job

    def waiting(self) -> int:
        self._pipe.watch(_key("queued", self._model))
        return int(self._pipe.zcard(_key("queued", self._model)))

    def write(self, old: Optional[Job], new: Optional[Job]) -> None:
        if new is not None and not new.number:
            new = dataclasses.replace(new, number=self._client.incr(_key("number")))
        before, after = _places(old), _places(new)
        if old is not None:
            self.commands += [("ZREM", key, old.id) for key in before.keys() - after.keys()]
            if new is None:
                self.commands.append(("DEL", _key("job", old.id)))
        if new is not None:
            self.commands += [("ZADD", key, place, new.id) for key, place in after.items() - before.items()]
            self.commands.append(("SET", _key("job", new.id), json.dumps(vars(new))))

    def count(self, name: str, label: str = "", by: float = 1) -> None:
        self.commands.append(("HINCRBYFLOAT", _key("counters", self._model), json.dumps([name, label]), by))


class RedisStore(Store):
    """Jobs in Redis, or in what speaks its protocol."""

    def __init__(self, address: str, model: str) -> None:
        super().__init__(model)
        redis: Any = importlib.import_module("redis")
        retry = importlib.import_module("redis.retry").Retry(importlib.import_module("redis.backoff").NoBackoff(), 1)
        self.errors = (redis.RedisError,)
        self._watch_error = redis.WatchError
        timeouts = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
        # Without the user and password that the address may have.
        url = urlsplit(address)
        where = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        try:
            self._client: Any = redis.Redis.from_url(address, decode_responses=True, retry=retry, **timeouts)
        except ValueError as error:
            raise ValueError(f"--store {where}: {error}") from None
        try:
            told = {**self._client.info("persistence"), **self._client.info("memory")}
        except redis.RedisError as error:
            way_out = f"{error}; expected Redis 6.2 or newer, or Valkey; start it, or give --store another address"
            raise ConnectionError(f"the store {where} does not answer: {way_out}") from None
        if not told.get("aof_enabled"):
            LOG.warning("Redis does not write down each job at once, and forgets some if it ends; set appendonly yes")
        if told.get("maxmemory_policy", "noeviction") != "noeviction":
            LOG.warning("Redis forgets jobs if its memory is full; set maxmemory-policy noeviction")

    def _transaction(self, change: Callable[[Change], _T], *, told: bool = False) -> _T:
        while True:
            with self._client.pipeline() as pipe:
                made = _RedisChange(self._client, pipe, self.model)
                try:
                    result = change(made)
                    if made.commands:
                        pipe.multi()
                        for command in made.commands:
                            pipe.execute_command(*command)
                        pipe.execute()
                except (_Stale, self._watch_error):
                    continue
                return result

    def now(self) -> float:
        seconds, microseconds = self._client.time()
        return float(seconds) + float(microseconds) / 1e6

    def _jobs(self, ids: List[str]) -> List[Job]:
        texts = self._client.mget([_key("job", id) for id in ids]) if ids else []
        return [job for job in map(_job, texts) if job is not None]

    def get(self, id: str, of_any_model: bool = False) -> Optional[Job]:
        job = _job(self._client.get(_key("job", id)))
        return job if job is not None and (of_any_model or job.model == self.model) else None

    def list(self, limit: int, after: Optional[str], ascending: bool) -> List[Job]:
        jobs, start = _key("jobs", self.model), "-inf" if ascending else "+inf"
        if after is not None:
            number = self._client.zscore(jobs, after)
            if number is None:
                return []
            start = f"({number}"
        end = "+inf" if ascending else "-inf"
        return self._jobs(self._client.zrange(jobs, start, end, byscore=True, desc=not ascending, offset=0, num=limit))

    def _with(self, status: str) -> List[Job]:
        # A job may have been changed after the order was read.
        return [job for job in self._jobs(self._client.zrange(_key(status, self.model), 0, -1)) if job.status == status]

    def position(self, job: Job) -> int:
        return int(self._client.zrank(_key("queued", self.model), job.id) or 0)

    def expired(self, keep: float) -> List[Job]:
        ended = _key("ended", self.model)
        return self._jobs(self._client.zrange(ended, "-inf", f"({self.now() - keep}", byscore=True, offset=0, num=100))

    def counters(self) -> Dict[str, Dict[str, float]]:
        found: Dict[str, Dict[str, float]] = {}
        for key, value in self._client.hgetall(_key("counters", self.model)).items():
            name, label = json.loads(key)
            found.setdefault(name, {})[label] = float(value)
        return found

    def statuses(self) -> Dict[str, int]:
        return {status: self._client.zcard(_key(status, self.model)) for status in STATUSES}

    def state(self, name: str) -> Any:
        text = self._client.hget(_key("state", self.model), name)
        return None if text is None else json.loads(text)

    def set_state(self, name: str, value: Any) -> None:
        if value is None:
            self._client.hdel(_key("state", self.model), name)
        else:
            self._client.hset(_key("state", self.model), name, json.dumps(value))
