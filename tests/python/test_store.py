"""The jobs in SQLite and in Redis: the same tests for both. Then servers over one Redis that lose a worker, a server, and the Redis."""

import contextlib
import json
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

import fuzz_store
from conftest import Redis, command
from test_serve import LONG, Server, workers
from v2l.serve import Config
from v2l.serve.sqlite_store import SqliteStore
from v2l.serve.store import Change, Job, NoSuchJob, QueueFull, Store, Unusable, open_store

Opened = Callable[..., Store]
#: A worker on another machine: whether its process lives cannot be seen.
AWAY = "elsewhere/1/1/worker"
ASKED = {"prompt": "a", "seed": 1}
MADE = {"num_frames": 5, "width": 48, "height": 32, "fps": 8.0}
FOREVER = 1e9


def opened_in(folder: Path, address: str) -> Opened:
    """Opens stores over one place; they have it to themselves, under any model."""
    mark = uuid.uuid4().hex

    def opened(model: str = "model", identity: str = "engines") -> Store:
        return open_store(Config(engines=folder, data=folder, model=f"{mark}:{model}", store=address, identity=identity))

    return opened


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    address = request.getfixturevalue("redis").address if request.param == "redis" else ""
    return opened_in(tmp_path, address)


def filled(store: Store, count: int, stack: str = "") -> List[str]:
    return [store.create(store.new_id(), ASKED, stack, 1000).id for _ in range(count)]


def test_jobs_are_listed_by_age_in_pages(opened: Opened) -> None:
    store = opened()
    ids = filled(store, 7)
    assert [job.id for job in store.list(3, None, True)] == ids[:3]
    assert [job.id for job in store.list(3, ids[2], True)] == ids[3:6]
    assert [job.id for job in store.list(3, None, False)] == ids[:3:-1]
    assert [job.id for job in store.list(30, ids[4], False)] == ids[3::-1]
    with pytest.raises(NoSuchJob):
        store.list(3, "none", True)
    jobs = store.queued()
    assert [(job.id, job.request, job.status, job.attempts) for job in jobs] == [(id, ASKED, "queued", 0) for id in ids]
    assert [store.position(job) for job in jobs] == list(range(7))
    assert store.statuses() == {"queued": 7, "in_progress": 0, "completed": 0, "failed": 0}
    assert store.oldest() >= 0 and opened("another").oldest() == 0


def test_claim_takes_what_is_overdue_then_the_stack_then_the_job_then_the_oldest(opened: Opened) -> None:
    store = opened()
    a, b, c, d, e = (filled(store, 1, stack)[0] for stack in "abcab")

    def claimed(**how: Any) -> str:
        job = store.claim(AWAY, **how)
        assert job is not None and (job.status, job.attempts, job.worker) == ("in_progress", 1, AWAY)
        return job.id

    assert claimed(id=c, stack="b", patience=FOREVER) == b
    assert claimed(id=c, stack="none", patience=FOREVER) == c
    # Nothing of this stack waits, and neither does that job.
    assert claimed(id=c, stack="c", patience=FOREVER) == a
    assert claimed(stack="b", patience=-1.0) == d
    assert claimed() == e
    assert store.claim(AWAY) is None


def test_only_the_jobs_worker_says_what_becomes_of_it(opened: Opened) -> None:
    store, other = opened(), opened()
    (id,) = filled(store, 1)
    job = store.claim(AWAY)
    assert job is not None and other.beat(job, 30)
    running = other.get(id)
    assert running is not None and (running.progress, running.status) == (30, "in_progress")
    assert store.recover(FOREVER) == [] and store.recover(0) == [id]
    # It is another's now.
    assert not store.beat(job, 40) and not store.finish(job, file="x")
    again = other.claim(AWAY)
    assert again is not None and again.attempts == 2 and again.request == job.request
    store.release(again)
    back = store.claim(AWAY)
    assert back is not None and back.attempts == 2
    assert store.finish(back, file="f", durations={"total": 1.5}, made=MADE)
    # The same again is the same: an answer may have been lost.
    assert store.finish(back, file="f", durations={"total": 1.5}) and not store.finish(back, file="g")
    done = other.get(id)
    assert done is not None and (done.status, done.progress, done.file, done.worker) == ("completed", 100, "f", None)
    assert done.durations == {"total": 1.5} and done.made == MADE and done.completed is not None and done.started is not None
    assert store.counters() == {"workers_lost": {"": 1}, "jobs": {"completed": 1}, "seconds": {"total": 1.5}}


def test_worker_lost_twice_fails_the_job(opened: Opened) -> None:
    store = opened()
    (id,) = filled(store, 1)
    for back in ([id], []):
        assert store.claim(AWAY) is not None
        assert store.recover(0) == back
    lost = store.get(id)
    assert lost is not None and (lost.status, lost.error_code) == ("failed", "worker_lost")
    assert store.counters() == {"workers_lost": {"": 2}, "jobs": {"worker_lost": 1}}


def test_silence_counts_only_once_the_store_was_there_for_as_long(opened: Opened) -> None:
    store = opened()
    (id,) = filled(store, 1)
    assert store.claim(AWAY) is not None
    time.sleep(0.3)
    late = opened()
    assert late.recover(0.25) == []
    time.sleep(0.3)
    assert late.recover(0.25) == [id]


CLAIMS = """
import os, sys
from v2l.serve import Config
from v2l.serve.store import open_store, worker_name

assert open_store(Config.from_json(sys.stdin.read())).claim(worker_name()) is not None
print("claimed", flush=True)
os.kill(os.getpid(), 9)
"""


def test_worker_that_is_killed_on_this_machine_is_missed_at_once(opened: Opened, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = opened()
    (id,) = filled(store, 1)
    address = request.getfixturevalue("redis").address if "redis" in request.node.name else ""
    config = Config(engines=tmp_path, data=tmp_path, model=store.model, store=address, identity=store.identity)
    ended = subprocess.run([sys.executable, "-c", CLAIMS], input=config.to_json(), capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL and "claimed" in ended.stdout, ended.stderr
    assert store.recover(FOREVER) == [id]


def test_models_share_a_place_and_nothing_else(opened: Opened) -> None:
    one, other = opened("one"), opened("other")
    (id,) = filled(one, 1)
    assert other.get(id) is None and other.get(id, of_any_model=True) is not None
    assert other.claim(AWAY, id=id) is None and other.list(9, None, True) == [] and other.queued() == []
    other.delete(id)
    one.set_state("told", {"a": [1, None]})
    one.count("swaps", by=2)
    assert one.state("told") == {"a": [1, None]} and other.state("told") is None and other.counters() == {}
    one.set_state("told", None)
    assert one.state("told") is None and one.counters() == {"swaps": {"": 2}}
    one.set_ending("g", True)
    assert one.is_ending("g") and not one.is_ending("h") and not one.is_ending("")
    one.set_ending("g", False)
    assert not one.is_ending("g") and one.get(id) is not None


def test_store_of_other_engines_is_refused_by_name(opened: Opened) -> None:
    store = opened("model", "first engines")
    (id,) = filled(store, 1)
    way_out = "--data DIR" if isinstance(store, SqliteStore) else "--store another number"
    with pytest.raises(Unusable, match=f"first engine.*second engin.*{way_out}.*--model") as refused:
        opened("model", "second engines")
    assert refused.value.code == 2 and store.model in str(refused.value)
    # Ray sends it to whoever asked.
    again = pickle.loads(pickle.dumps(refused.value))
    assert (again.code, str(again)) == (2, str(refused.value))
    # Under another name they have a queue of their own, and the first is as it was.
    other = opened("another", "second engines")
    assert other.claim(AWAY) is None and other.get(id) is None
    job = opened("model", "first engines").claim(AWAY)
    assert job is not None and (job.id, job.identity) == (id, "first engines")
    # A job at work wants its engines as one that waits does.
    with pytest.raises(Unusable, match=way_out):
        opened("model", "second engines")


def test_store_in_which_no_job_waits_is_for_the_engines_that_open_it(opened: Opened) -> None:
    old = opened("model", "first engines")
    ids = filled(old, 2)
    for _ in ids:
        job = old.claim(AWAY)
        assert job is not None and old.finish(job, file=f"{job.id}.mp4", made=MADE)
    old.set_state("lora", {"stack": [], "active": True})
    new = opened("model", "second engines")
    # What was made stays with its name, to be fetched and to expire.
    assert [job.id for job in new.list(9, None, True)] == ids
    assert [(job.identity, job.file) for job in new.expired(-60.0)] == [("second engines", f"{id}.mp4") for id in ids]
    assert new.statuses()["completed"] == 2 and new.counters()["jobs"] == {"completed": 2}
    assert new.state("lora") == {"stack": [], "active": True}
    assert old.list(9, None, True) == [] and old.get(ids[0]) is None
    filled(new, 1)
    with pytest.raises(Unusable):
        opened("model", "first engines")


def test_paths_that_are_no_text_are_kept_and_answers_hold_text(opened: Opened) -> None:
    store = opened()
    asked = {**ASKED, "lora": [["/loras/\udcff.safetensors", 1.0, 0]], "image": "/data/\udcff"}
    job = store.create(store.new_id(), asked, "", 9)
    assert not job.is_damaged and job.request == asked
    for wrong in ({"prompt": "\udcff"}, {"resolved": {"warnings": ["\udcff"]}}, {"resolved": {"width": ["a"]}}, {"resolved": {"warnings": 1}}):
        assert store.create(store.new_id(), {**ASKED, **wrong}, "", 9).is_damaged, wrong


def test_listing_goes_on_where_a_deleted_job_was(opened: Opened) -> None:
    store = opened()
    ids = filled(store, 9)
    seen: List[str] = []
    while page := store.list(2, seen[-1] if seen else None, True):
        seen += [job.id for job in page]
        for job in page:
            store.delete(job.id)
    assert seen == ids
    with pytest.raises(NoSuchJob):
        opened("another").list(2, ids[0], True)


def broken(store: Store, which: str, **changes: Any) -> None:
    """Writes into a job's row what no job holds."""
    if isinstance(store, SqliteStore):
        with contextlib.closing(sqlite3.connect(store._file)) as file, file:
            names = ", ".join(f"{name} = ?" for name in changes)
            file.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*changes.values(), which))
    else:
        key = f"v2l:job:{which}"
        client: Any = getattr(store, "_client")
        client.set(key, json.dumps({**json.loads(client.get(key)), **changes}))


def test_rows_that_cannot_be_read_fail_alone_and_keep_nobody_waiting(opened: Opened) -> None:
    store = opened()
    hostile: List[Dict[str, Any]] = [
        {"request": "[" * 100_000}, {"request": "{}"}, {"request": '{"prompt": 5, "seed": 1}'}, {"request": '{"prompt": "a", "seed": 1, "fps": NaN}'},
        {"request": '{"prompt": "\\ud800", "seed": 1}'}, {"progress": "much"}, {"created": "never"}, {"durations": "[1]"}, {"made": "{}"},
        {"attempts": -1}, {"file": "../../secret.mp4"}, {"error_code": "memory"}, {"completed": 1.0},
    ]
    ids = filled(store, len(hostile))
    (good,) = filled(store, 1)
    for id, changes in zip(ids, hostile):
        broken(store, id, **changes)
    listed = store.list(99, None, True)
    assert [(job.id, job.status, job.error_code) for job in listed] == [*((id, "failed", "damaged") for id in ids), (good, "queued", None)]
    claimed = store.claim(AWAY)
    assert claimed is not None and claimed.id == good
    assert store.statuses() == {"queued": 0, "in_progress": 1, "completed": 0, "failed": len(hostile)}
    assert store.counters()["jobs"] == {"damaged": len(hostile)}
    # What runs, too: when another server begins.
    broken(store, good, worker=None)
    assert store.recover(0) == [] and opened().mend() == 1 and opened().mend() == 0
    assert store.statuses()["failed"] == len(hostile) + 1 and len(store.expired(-1)) == len(hostile) + 1
    # Without an identifier it is no job, and does not end a page.
    (other,) = filled(store, 1)
    if isinstance(store, SqliteStore):
        broken(store, ids[1], id="../..")
    else:
        getattr(store, "_client").delete(f"v2l:job:{ids[1]}")
    assert [job.id for job in store.list(3, None, True)] == [ids[0], *ids[2:4]]
    for id in [*ids, good, other]:
        store.delete(id)
    opened().mend()
    assert store.list(99, None, True) == [] and sum(store.statuses().values()) == 0


def test_states_and_counters_that_cannot_be_are_as_if_there_were_none(opened: Opened) -> None:
    store = opened()
    for value in (5, {"active": True}, {"active": True, "stack": [{}]}, {"active": 1, "stack": []}):
        store.set_state("lora", value)
        assert store.state("lora") is None
    kept = {"active": True, "stack": [{"nickname": "a", "path": "/a", "strength": 1.0, "target": 0}]}
    store.set_state("lora", kept)
    assert store.state("lora") == kept
    store.count("swaps")
    if isinstance(store, SqliteStore):
        with contextlib.closing(sqlite3.connect(store._file)) as file, file:
            file.execute("INSERT INTO counters VALUES (?, ?, ?, 'a', 'much')", (store.identity, store.model, b"\xff"))
    else:
        getattr(store, "_client").hset(f"v2l:counters:{store.identity}:{store.model}", "[", "much")
    assert store.counters() == {"swaps": {"": 1}}


def test_deleted_jobs_are_gone_and_their_workers_stop(opened: Opened) -> None:
    store = opened()
    waiting, running, done = filled(store, 3)
    job, finished = store.claim(AWAY, id=running), store.claim(AWAY, id=done)
    assert job is not None and finished is not None and store.finish(finished, file="f")
    assert [old.id for old in store.expired(-1)] == [done] and store.expired(60) == []
    for id in (waiting, running, done, "none"):
        store.delete(id)
        assert store.get(id) is None
    assert not store.beat(job, 1) and not store.finish(job, file="x")
    assert store.list(9, None, True) == [] and store.expired(-1) == [] and store.claim(AWAY) is None
    assert sum(store.statuses().values()) == 0
    assert store.counters()["jobs"] == {"completed": 1, "cancelled": 1}


def test_many_at_once_take_each_job_once_and_keep_the_bound(opened: Opened) -> None:
    def create(number: int) -> bool:
        try:
            store = opened()
            return bool(store.create(store.new_id(), ASKED, "ab"[number % 2], 30))
        except QueueFull:
            return False

    def claim(number: int) -> List[Job]:
        store, taken = opened(), []
        while (job := store.claim(AWAY, stack="ab"[number % 2], patience=FOREVER)) is not None:
            taken.append(job)
            assert store.beat(job, 50) and store.finish(job, file=job.id)
        return taken

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(60))) == 30
        taken = [job.id for jobs in threads.map(claim, range(8)) for job in jobs]
    assert len(taken) == len(set(taken)) == 30
    store = opened()
    assert store.statuses() == {"queued": 0, "in_progress": 0, "completed": 30, "failed": 0}
    assert store.counters() == {"refused": {"queue full": 30}, "jobs": {"completed": 30}}


def history(store: Store, seed: int) -> List[Any]:
    """What a store says in a random course of events."""
    draw, ids, mine, said = random.Random(seed), [], [], []  # type: random.Random, List[str], List[Job], List[Any]
    for number in range(200):
        what = draw.choice(["create", "create", "claim", "claim", "beat", "finish", "fail", "release", "recover", "delete"])
        job = draw.choice(mine) if mine else None
        if what == "create":
            with contextlib.suppress(QueueFull):
                ids.append(store.create(f"{store.model} {number}", {"prompt": "a", "seed": number}, draw.choice("abc"), 6).id)
        elif what == "claim":
            named = draw.choice(ids) if ids and draw.random() < 0.5 else None
            claimed = store.claim(AWAY, id=named, stack=draw.choice([None, "a", "b", "c"]), patience=draw.choice([-1.0, FOREVER]))
            mine += [claimed] if claimed is not None else []
        elif what == "recover" and draw.random() < 0.3:
            said.append(len(store.recover(0)))
        elif what == "delete" and ids:
            store.delete(draw.choice(ids))
        elif job is not None and what == "beat":
            said.append(store.beat(job, number % 100))
        elif job is not None and what in ("finish", "fail"):
            said.append(store.finish(job, file=f"{number}", code=None if what == "finish" else "memory", durations={"total": 0.5}))
        elif job is not None and what == "release":
            store.release(job)
        at = [(ids.index(one.id), one.request, one.status, one.attempts, one.progress, one.error_code) for one in store.list(900, None, True)]
        said.append((what, at, store.statuses(), [store.position(one) for one in store.queued()], store.counters(), len(store.expired(-1))))
    return said


def test_redis_says_what_sqlite_says(redis: Redis, tmp_path: Path) -> None:
    for seed in range(2):
        assert history(opened_in(tmp_path, "")(), seed) == history(opened_in(tmp_path, redis.address)(), seed)


def test_redis_makes_a_change_again_if_another_came_between(redis: Redis, tmp_path: Path) -> None:
    opened = opened_in(tmp_path, redis.address)
    store, other = opened(), opened()
    (id,) = filled(store, 1)
    read: List[Any] = []

    def bounded(jobs: Change) -> None:
        read.append(jobs.waiting())
        if len(read) == 1:
            filled(other, 1)
        jobs.count("changes")

    def found(jobs: Change) -> None:
        read.append(jobs.find(id) is None)
        if len(read) == 3:
            other.delete(id)
        jobs.count("changes")

    store._transaction(bounded)
    store._transaction(found)
    assert read == [1, 2, False, True] and store.counters()["changes"] == {"": 2}


def test_redis_without_memory_takes_no_jobs_and_forgets_those_it_has(redis: Redis, tmp_path: Path) -> None:
    store = opened_in(tmp_path, redis.address)()
    client: Any = getattr(store, "_client")
    kept, other = filled(store, 2)
    client.config_set("maxmemory", "1")
    try:
        for fails in (lambda: filled(store, 1), store.probe, lambda: store.claim(AWAY)):
            with pytest.raises(store.errors):
                fails()
        store.delete(kept)
        assert store.get(kept) is None
    finally:
        client.config_set("maxmemory", "0")
    store.probe()
    assert [job.id for job in store.list(9, None, True)] == [other]


def test_damaged_stores_are_answered_in_documented_words(engines: Path, redis: Redis) -> None:
    """A short run of `fuzz_store.py`; the seeds are the same every time."""
    ends = fuzz_store.run(engines, 10, 20_000, f"{redis.address}/9")
    assert {end.split()[0] for end in ends} == {"sqlite", "redis"}, ends
    # A row that an index takes for this model's, though its model's name is no text.
    assert fuzz_store.run(engines, 0, 239, None)


def test_redis_that_is_not_there_is_said_without_its_password(engines: Path, tmp_path: Path) -> None:
    pytest.importorskip("redis", reason="v2l[redis] is not installed")
    for address, code, said in (
        ("redis://someone:secret@127.0.0.1:1/3", 6, "the store redis://127.0.0.1:1/3 does not answer"),
        ("http://someone:secret@127.0.0.1:1", 2, "--store http://127.0.0.1:1: "),
    ):
        refused = command("v2l", "serve", engines, "--data", tmp_path / "data", "--no-ray", "--store", address)
        assert (refused.returncode, "secret" in refused.stderr) == (code, False), refused.stderr
        assert said in refused.stderr and "Traceback" not in refused.stderr


def test_servers_over_one_redis_lose_no_job(engines: Path, video: bytes, redis: Redis, tmp_path: Path) -> None:
    """A worker is killed, then a server with its other one, then Redis; the other server makes all videos."""
    flags = ["--workers", 1, "--store", f"{redis.address}/1", "--threads", 1]
    first, second = (Server(engines, tmp_path / "data", *flags) for _ in range(2))
    try:
        # One for each worker: whichever is killed is at work.
        long = [server.create(LONG).json()["id"] for server in (first, second)]
        for id in long:
            second.wait(id, "in_progress")
        ids = [server.create().json()["id"] for _ in range(6) for server in (first, second)]
        (worker,) = workers(first)
        os.kill(worker, signal.SIGKILL)
        ids += [server.create().json()["id"] for _ in range(3) for server in (first, second)]
        first.stop(signal.SIGKILL)
        assert [second.wait(id)["status"] for id in ids] == ["completed"] * len(ids)
        assert [second.content(id) for id in ids] == [video] * len(ids)
        assert [second.wait(id)["status"] for id in long] == ["completed"] * 2
        assert second.content(long[0]) == second.content(long[1])
        assert "v2l_workers_lost_total 1.0" in second.client.get("/metrics").text
        listed = second.client.get("/v1/videos", params={"order": "asc", "limit": 100}).json()["data"]
        assert [one["id"] for one in listed] == [*long, *ids]

        again = second.create(LONG).json()["id"]
        second.wait(again, "in_progress")
        short = second.create().json()["id"]
        redis.kill()
        for answer in (second.create(), second.client.get("/health"), second.client.get(f"/v1/videos/{again}"), second.client.get("/metrics")):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
            assert answer.json()["error"]["code"] == "unavailable"
        until = time.monotonic() + 60
        # The video is done while its worker can tell nobody.
        while not (tmp_path / "data/videos" / f"{again}.1.mp4").exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(1)
        redis.start()
        assert [second.wait(id)["status"] for id in (again, short)] == ["completed"] * 2
        # Nobody's silence was held against it.
        assert second.wait(again)["attempts"] == 1 and second.content(short) == video
        assert second.stop() == 0
    finally:
        for server in (first, second):
            if server.process.poll() is None:
                server.stop(signal.SIGKILL)
