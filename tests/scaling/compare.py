"""Sets the model beside real runs: `v2l serve` on the miniature with one worker and with two, on the same jobs at the same times.

    python compare.py [--jobs N] [--workers N...]

Needs the wheel with its extra `serve`, SimPy, and `V2L_TEST_FIXTURES` (`tests/fixtures`) with `tests/python` on the path. The model is told the mean seconds of a job
with and without a change of adapters, which come from the run itself; when jobs wait and which swap, it has to find out.
"""

import argparse
import itertools
import json
import random
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import List, Tuple

import v2l
from conftest import IMAGE, MINIATURE, PREDICTOR
from model import Fleet, Times, arrivals, simulate
from test_serve import FORM, Server

STACKS = 10


def run(engines: Path, loras: Path, work: Path, workers: int, trace: List[Tuple[float, int]]) -> List[sqlite3.Row]:
    """The jobs of a real run, as its store has them."""
    server = Server(engines, work / f"data{workers}", "--workers", workers, "--lora-folder", loras, "--threads", 1, "--max-queued", 1000)
    # Sessions are opened before anything is measured.
    warm = [server.create(dict(FORM)).json()["id"] for _ in range(4 * workers)]
    for id in warm:
        server.wait(id)
    ids, threads, began = [], [], time.monotonic()

    def create(stack: int) -> None:
        lora = {"lora": json.dumps({"name": "squash", "scale": (stack + 1) / STACKS})}
        ids.append(server.create({**FORM, **lora}).json()["id"])

    due = 0.0
    for pause, stack in trace:
        due += pause
        time.sleep(max(0.0, began + due - time.monotonic()))
        threads.append(threading.Thread(target=create, args=(stack,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for id in ids:
        assert server.wait(id, seconds=300)["status"] == "completed"
    swaps = next(line for line in server.client.get("/metrics").text.splitlines() if line.startswith("v2l_swaps_total"))
    print(json.dumps({"workers": workers, "swaps with those of the first jobs": float(swaps.split()[1])}))
    server.stop()
    with sqlite3.connect(work / f"data{workers}" / "jobs.sqlite") as store:
        store.row_factory = sqlite3.Row
        marks = ",".join("?" * len(ids))
        return store.execute(f"SELECT * FROM jobs WHERE id IN ({marks}) ORDER BY started", ids).fetchall()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=80)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with v2l.Pipeline.from_pretrained(MINIATURE, cache=work / "cache", export=PREDICTOR) as pipeline:
            engines = pipeline.directory
        loras = work / "loras"
        loras.mkdir()
        with v2l.Predictor(engines) as predictor:
            predictor.predict(MINIATURE / "references/squash", range=v2l.Range.SIGNED).save(loras / "squash.safetensors")
        for workers in options.workers:
            draw = random.Random(workers)
            # About as long as a job takes on an idle machine; the load comes out of the run.
            guess = Times(fuse=0.0, step=0.0, branch=0.0, rest=0.55, steps=1)
            fleet = Fleet(guess, workers, STACKS, "shared", jobs=options.jobs, load=0.75)
            trace = list(itertools.islice(arrivals(fleet, draw), options.jobs))
            jobs = run(engines, loras, work, workers, trace)
            swapping, staying = [], []
            for job in jobs:
                durations = json.loads(job["durations"])
                # A pipeline that keeps its adapters has nothing to do in this phase.
                (swapping if durations["swap"] > 0.0005 else staying).append(job["completed"] - job["started"])
            usual = statistics.mean(staying or swapping)
            fuse = max(0.0, statistics.mean(swapping) - usual) if swapping and staying else 0.0
            times = Times(fuse=fuse, step=0.0, branch=0.0, rest=usual, steps=1, scatter=0.2)
            made = simulate(Fleet(times, workers, STACKS, "shared"), trace)
            waits = sorted(job["started"] - job["created"] for job in jobs)
            span = max(job["completed"] for job in jobs) - min(job["created"] for job in jobs)
            for name, waited, swaps, end in (
                ("run", waits, len(swapping), span),
                ("model", sorted(made.waits), made.swaps, made.end - trace[0][0]),
            ):
                facts = {
                    "workers": workers,
                    "what": name,
                    "p50 wait s": round(statistics.median(waited), 2),
                    "p90 wait s": round(waited[int(0.9 * len(waited))], 2),
                    "swaps": swaps,
                    "seconds in all": round(end, 1),
                }
                print(json.dumps(facts))
            print(json.dumps({"workers": workers, "job s": round(usual, 3), "change s": round(fuse, 3), "jobs": len(jobs)}))


if __name__ == "__main__":
    main()
