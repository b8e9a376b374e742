"""Real runs of `v2l serve` beside simulations of the same jobs.

    python real.py --work DIR [--jobs N] [--ray]      writes measured/real.json

Jobs come by Poisson's law with stacks by Zipf's, first faster than the replicas can make them, then slower. The store says when each was created,
begun and completed. Then the same jobs go through the simulator in two ways: `same` has each job's own arrival and seconds, and so checks the
rules alone; `forecast` knows only the medians of some jobs made before, the rate and the shares of the stacks, as `docs/scaling.md` does.

Seconds between jobs on one replica are taken from the first run, whose queue is long. Needs SimPy and the wheel with `[serve,video]`, or `[serve,video,ray]`.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from server import Server, machine, prepare
from simulator import POLICIES, Costs, Job, percentile, poisson, simulate, zipf

OUT = Path(__file__).parent / "measured/real.json"
#: Strengths of the one adapter: ten stacks, the base model among them.
STRENGTHS = [round(0.1 * tenth, 1) for tenth in range(10)]
SHARES = zipf(len(STRENGTHS), 1.0)
SEEDS = 20
#: Load of the first run and of the second, by seconds measured before.
LOADS = (1.5, 0.7)


def send(server: Server, rate: float, count: int, seed: int) -> List[str]:
    """Sends jobs at the times that were drawn; gives their identifiers."""
    rng = random.Random(seed)
    edges = list(itertools.accumulate(SHARES))
    ids: List[str] = []
    threads = []
    at = time.monotonic()
    for _ in range(count):
        at += rng.expovariate(rate)
        strength = STRENGTHS[min(bisect.bisect(edges, rng.random()), len(STRENGTHS) - 1)]
        time.sleep(max(0.0, at - time.monotonic()))
        # The next job does not wait for the answer to this one.
        thread = threading.Thread(target=lambda strength=strength: ids.append(server.create(strength)))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return ids


def work_of(row: Dict[str, Any]) -> float:
    """Seconds of a job on its replica."""
    seconds: float = row["completed"] - row["started"]
    return seconds


def between(rows: Sequence[Dict[str, Any]]) -> float:
    """Seconds from the end of a job to the start of one that waited for it; the median."""
    gaps = []
    events = sorted([(row["completed"], 0, row) for row in rows] + [(row["started"], 1, row) for row in rows], key=lambda event: event[:2])
    free: List[float] = []
    for at, is_start, row in events:
        if not is_start:
            free.append(at)
        elif free:
            # While jobs wait, no more than the replica that was freed last is free.
            ended = free.pop()
            if row["created"] < ended:
                gaps.append(at - ended)
    return statistics.median(gaps) if gaps else 0.0


def facts(waited: Sequence[float], swaps: float, count: int) -> Dict[str, float]:
    """What runs are compared by."""
    return {
        "mean": round(statistics.mean(waited), 3),
        "p50": round(percentile(waited, 0.5), 3),
        "p99": round(percentile(waited, 0.99), 3),
        "swaps": round(swaps / count, 3),
    }


def averaged(runs: Sequence[Dict[str, float]]) -> Dict[str, float]:
    """The mean of each fact, and the mean queue times between which nine tenths of the runs lie."""
    mean = {name: round(statistics.mean(run[name] for run in runs), 3) for name in runs[0]}
    means = [run["mean"] for run in runs]
    return {**mean, "mean from": percentile(means, 0.05), "mean to": percentile(means, 0.95)}


def one(server: Server, policy: str, replicas: int, load: float, count: int, gap: float, seed: int) -> Tuple[Dict[str, Any], float]:
    """A run, and the simulations of it."""
    before = server.finish([server.create(STRENGTHS[turn % 2 * 5]) for turn in range(6 * replicas)])[2 * replicas :]
    typical = statistics.median(map(work_of, before))
    # Jobs that change nothing spend some microseconds in this phase.
    swap = statistics.median([row["durations"]["swap"] for row in before if row["durations"]["swap"] > 1e-3] or [0.0])
    videos = [work_of(row) - row["durations"]["swap"] for row in before]
    rate = load * replicas / typical
    counter = swaps_of(server)
    rows = server.finish(send(server, rate, count, seed))
    swaps = swaps_of(server) - counter
    if load > 1:
        gap = between(rows)
    rows.sort(key=lambda row: row["created"])
    real = facts([row["started"] - row["created"] for row in rows], swaps, count)
    # Ray's ingress looks every 0.05 s, workers of their own every 0.1 s.
    costs = Costs(swap=swap, overhead=gap, poll=0.05 if policy == "ray" else 0.1)
    rule = POLICIES[policy]
    same: List[Dict[str, float]] = []
    forecast: List[Dict[str, float]] = []
    for turn in range(SEEDS):
        jobs = [
            Job(number, row["stack"], row["created"] - rows[0]["created"], work_of(row) - row["durations"]["swap"])
            for number, row in enumerate(rows)
        ]
        drawn = poisson(count, rate, SHARES, lambda rng: rng.choice(videos), turn)
        for job in drawn:
            # The first strength is that of the base model.
            job.stack = job.stack if job.stack != "s0" else ""
        for found, given in ((same, jobs), (forecast, drawn)):
            done = simulate(given, costs, replicas, rule, seed=turn, warm_up=0.0)
            found.append(facts([job.waited for job in done.jobs], sum(job.swapped for job in done.jobs), count))
    return {
        "server": "ray" if policy == "ray" else "workers",
        "policy": policy,
        "replicas": replicas,
        # What came, by what jobs really took.
        "load": round(rate * statistics.mean(map(work_of, rows)) / replicas, 2),
        "rate": round(rate, 3),
        "jobs": count,
        "job seconds": round(statistics.median(map(work_of, rows)), 3),
        "job seconds before": round(typical, 3),
        "swap seconds": round(swap, 4),
        "seconds between jobs": round(gap, 4),
        "real": real,
        "same": averaged(same),
        "forecast": averaged(forecast),
    }, gap


def swaps_of(server: Server) -> float:
    """The server's own count of swaps."""
    lines = server.get("/metrics").decode().splitlines()
    return float(next(line for line in lines if line.startswith("v2l_swaps_total ")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="folder for engines, videos and jobs")
    parser.add_argument("--jobs", type=int, default=100, help="jobs of a run")
    parser.add_argument("--ray", action="store_true", help="on Ray, too")
    options = parser.parse_args()
    work = options.work.resolve()
    prepare(work)
    runs: List[Dict[str, Any]] = []
    cases = [("affinity", 1), ("affinity", 2), ("fifo", 1), ("fifo", 2)]
    for policy, replicas in cases + ([("ray", 2)] if options.ray else []):
        flags: List[object] = ["--ray", "--replicas", replicas] if policy == "ray" else ["--workers", replicas]
        if policy == "fifo":
            flags.append("--no-affinity")
        with Server(work, f"{policy}-{replicas}", *flags) as server:
            gap = 0.0
            for load in LOADS:
                run, gap = one(server, policy, replicas, load, options.jobs, gap, seed=replicas)
                print(json.dumps(run), flush=True)
                runs.append(run)
                found = {"machine": machine(), "stacks": len(STRENGTHS), "runs": runs}
                OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
