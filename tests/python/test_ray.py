"""`v2l serve --ray`: a real Ray cluster on this machine with two replicas; kills under load, and what routing by stacks saves."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import openai
import pytest
import requests

pytest.importorskip("ray", reason="Ray is not installed; install v2l[ray]")

import v2l
from conftest import IMAGE, MINIATURE, PROMPT, REQUEST, free_port
from test_serve import FORM, LONG, Server
from v2l.serve import Config
from v2l.serve.identity import identified, identity_of
from v2l.serve.store import open_store

#: Strengths of the one adapter: ten stacks, the base model among them.
STACKS = [0.0, *(round(0.1 * tenth, 1) for tenth in range(1, 10))]


@pytest.fixture(scope="module")
def loras(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    with v2l.Predictor(engines) as predictor:
        predictor.predict(MINIATURE / "references/squash", range=v2l.Range.SIGNED).save(folder / "squash.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(engines: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Dict[float, bytes]:
    """The video of each stack, by the module in this process."""
    out = tmp_path_factory.mktemp("expected") / "out.mp4"
    videos = {}
    with v2l.Pipeline(engines) as pipeline:
        adapter = v2l.Adapter(pipeline.engine("transformer"), loras / "squash.safetensors")
        for strength in STACKS:
            pipeline.generate(PROMPT, image=IMAGE, file=out, adapters=[(adapter, strength)] if strength else [], **REQUEST)
            videos[strength] = out.read_bytes()
    assert len(set(videos.values())) == len(STACKS)
    return videos


@pytest.fixture(scope="module")
def cluster(engines: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("served") / "data"
    flags = ["--ray", "--replicas", 2, "--lora-folder", loras, "--max-queued", 40, "--threads", 1, "--max-times", 0]
    running = Server(engines, data, *flags)
    yield running
    assert running.stop() == 0


def processes(name: str, cluster: Server) -> List[int]:
    """Processes of Ray's actors of a name, below the server's."""
    parents: Dict[int, int] = {}
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if name.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))

    def is_below(process: int) -> bool:
        while process > 1 and process != cluster.process.pid:
            process = parents.get(process, 0)
        return process == cluster.process.pid

    return [process for process in found if is_below(process)]


def fields(strength: float) -> Dict[str, str]:
    lora = {"lora": json.dumps({"name": "squash", "scale": strength})} if strength else {}
    return {**FORM, **lora}


def create(cluster: Server, strength: float, by_openai: bool) -> str:
    """Makes a job by either client; while the queue is full or the ingress is away, again."""
    for _ in range(600):
        try:
            if by_openai:
                client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
                extra: Dict[str, Any] = dict(fields(strength))
                prompt = extra.pop("prompt")
                return client.videos.create(prompt=prompt, input_reference=IMAGE, extra_body=extra).id
            with open(IMAGE, "rb") as image:
                answer = requests.post(f"{cluster.url}/v1/videos", data=fields(strength), files={"input_reference": image}, timeout=30)
            if answer.status_code == 200:
                id: str = answer.json()["id"]
                return id
            assert answer.status_code in (429, 500, 503), answer.text
        except (openai.APIError, requests.ConnectionError, requests.Timeout) as error:
            assert getattr(error, "status_code", 503) in (429, 500, 503), error
        time.sleep(0.2)
    raise AssertionError("no job was taken for two minutes")


def finished(cluster: Server, id: str) -> Dict[str, Any]:
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(requests.RequestException):
            answer = requests.get(f"{cluster.url}/v1/videos/{id}", timeout=30)
            if answer.status_code == 200 and answer.json()["status"] in ("completed", "failed"):
                video: Dict[str, Any] = answer.json()
                return video
            assert answer.status_code in (200, 500, 503), answer.text
        assert time.monotonic() < until, id
        time.sleep(0.1)


def counter(cluster: Server, name: str) -> float:
    lines = cluster.client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).split()[1])


def test_hundred_jobs_survive_the_death_of_a_replica_and_of_the_ingress(cluster: Server, expected: Dict[float, bytes]) -> None:
    draw = random.Random(20)
    wanted = [draw.choice(STACKS) for _ in range(100)]
    killed = []

    def kill() -> None:
        for name in ("v2l-engine", "v2l-ingress"):
            time.sleep(6)
            found = processes(f"ServeReplica:v2l:{name}", cluster)
            os.kill(found[0], signal.SIGKILL)
            killed.append(name)

    killer = threading.Thread(target=kill)
    killer.start()
    swaps = counter(cluster, "v2l_swaps_total")
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda at: create(cluster, wanted[at], at % 2 == 0), range(100)))
        videos = list(threads.map(lambda id: finished(cluster, id), ids))
    killer.join()
    assert killed == ["v2l-engine", "v2l-ingress"]
    assert [video["status"] for video in videos] == ["completed"] * 100
    for id, strength in zip(ids, wanted):
        for _ in range(50):
            answer = requests.get(f"{cluster.url}/v1/videos/{id}/content", timeout=30)
            if answer.status_code == 200:
                break
            time.sleep(0.2)
        assert answer.content == expected[strength], (id, strength)
    # First come, first served is 90 swaps for these stacks drawn at random; one in two is what the test asks to be avoided.
    swapped = counter(cluster, "v2l_swaps_total") - swaps
    print(f"\n100 jobs of {len(STACKS)} stacks on two replicas: {swapped:g} swaps")
    assert swapped <= 50


def test_full_queue_refuses_and_keeps_what_it_took(cluster: Server, expected: Dict[float, bytes]) -> None:
    long = [cluster.create(LONG).json()["id"] for _ in range(2)]
    answers = [cluster.create(FORM) for _ in range(45)]
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 429}
    for id in long:
        assert cluster.client.delete(f"/v1/videos/{id}").status_code == 200
    for id in taken:
        assert finished(cluster, id)["status"] == "completed"
    assert cluster.content(taken[-1]) == expected[0.0]


def test_running_video_is_cancelled_on_its_replica(cluster: Server) -> None:
    id = cluster.create({**LONG, "num_frames": "513"}).json()["id"]
    cluster.wait(id, "in_progress")
    assert cluster.client.delete(f"/v1/videos/{id}").status_code == 200
    short = cluster.create().json()["id"]
    began = time.monotonic()
    assert finished(cluster, short)["status"] == "completed"
    assert time.monotonic() - began < 20


#: Two videos on two replicas; then the application is deployed with one. The job of the replica that goes is the other's after that.
SHRUNK = """
import sys, time
from pathlib import Path
import ray
from ray import serve
from v2l.serve import Config, cluster
from v2l.serve.store import open_store

config = Config.from_json(sys.stdin.read())
store = open_store(config)
request = {"prompt": "a boat", "num_frames": 257, "num_inference_steps": 100, "guidance_scale": 1.0, "seed": 1, "lora": []}
ids = [store.create(store.new_id(), request, f"stack {n}", 9).id for n in range(2)]
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(cluster._deployed(config, 2, 2), name="v2l")

def until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, [store.get(id) for id in ids]
        time.sleep(0.02)

until(lambda: store.statuses()["in_progress"] == 2)
serve.run(cluster._deployed(config, 1, 1), name="v2l")
until(lambda: store.statuses()["queued"] == 1)
(back,) = store.queued()
print("attempts of the job that is back:", back.attempts, flush=True)
for id in ids:
    if id != back.id:
        store.delete(id)
until(lambda: store.get(back.id).status == "in_progress")
print("attempts of the job that runs again:", store.get(back.id).attempts)
print("lost:", store.counters().get("workers_lost", {}))
store.delete(back.id)
serve.shutdown()
ray.shutdown()
"""


def test_planned_end_of_a_replica_puts_its_job_back(engines: Path, tmp_path: Path) -> None:
    config = identified(Config(engines=engines, data=tmp_path / "data", model="miniature", in_process=False, drain=0.5, pipeline={"threads": 1}))
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    words = [sys.executable, "-c", SHRUNK, str(free_port())]
    ran = subprocess.run(words, input=config.to_json(), capture_output=True, text=True, timeout=400, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # Ray says things of its own.
    for said in ("attempts of the job that is back: 0", "attempts of the job that runs again: 1", "lost: {}"):
        assert said in ran.stdout.splitlines(), ran.stdout


def test_cluster_that_ends_answers_503_and_puts_its_job_back(cluster: Server, engines: Path) -> None:
    """The last test: it ends the cluster."""
    lost = counter(cluster, "v2l_workers_lost_total")
    long = cluster.create({**LONG, "num_frames": "1001"}).json()["id"]
    cluster.wait(long, "in_progress")
    cluster.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 5
    while cluster.client.get("/health").status_code == 200:
        assert time.monotonic() < until
    refused = cluster.create()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert cluster.client.get(f"/v1/videos/{long}").json()["status"] == "in_progress"
    assert cluster.process.wait(60) == 0
    store = open_store(Config(engines=engines, data=cluster.data, model="miniature", identity=identity_of(engines)))
    job = store.get(long)
    assert job is not None and (job.status, job.attempts) == ("queued", 0)
    assert store.counters().get("workers_lost", {}).get("", 0.0) == lost
    store.delete(long)
