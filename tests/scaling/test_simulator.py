"""The simulator against closed forms, against the server's own rule, and against what can never happen.

    python -m unittest discover -s tests/scaling
"""

from __future__ import annotations

import importlib
import math
import random
import sys
import tempfile
import types
import unittest
from pathlib import Path
from statistics import mean
from typing import Any, Callable, List
from unittest import mock

from simulator import POLICIES, Costs, Job, Policy, Result, Waiting, percentile, poisson, simulate, zipf

ONE = [1.0]
SERVER = Path(__file__).parents[2] / "runtime/capi/python/v2l/serve"


def exponential(rng: random.Random) -> float:
    """A service time with the mean 1."""
    return rng.expovariate(1.0)


def constant(_rng: random.Random) -> float:
    """A service time of 1."""
    return 1.0


def waits(
    policy: str, load: float, replicas: int, video: Callable[[random.Random], float], count: int = 25_000
) -> List[float]:
    """Queue times without swaps, of four runs."""
    found = []
    for seed in range(4):
        jobs = poisson(count, load * replicas, ONE, video, seed=seed)
        result = simulate(jobs, Costs(), replicas, POLICIES[policy], seed=seed)
        found += [job.waited for job in result.counted]
    return found


def erlang_c(load: float, replicas: int) -> float:
    """The probability that a job waits in M/M/c."""
    offered = load * replicas
    last = offered**replicas / math.factorial(replicas) / (1 - load)
    return last / (sum(offered**n / math.factorial(n) for n in range(replicas)) + last)


class ClosedForms(unittest.TestCase):
    def close(self, found: float, expected: float, tolerance: float) -> None:
        self.assertLess(abs(found / expected - 1), tolerance, f"found {found:.4f}, expected {expected:.4f}")

    def test_one_replica_waits_as_m_m_1(self) -> None:
        # The standard error of the mean is about 3 % of it at 32,000 jobs and a load of 0.5, and 4 % at 80,000 and 0.8.
        for load, policies, count in ((0.5, list(POLICIES), 10_000), (0.8, ["fifo"], 25_000)):
            for policy in policies:
                found = waits(policy, load, 1, exponential, count)
                self.close(mean(found), load / (1 - load), 0.08)
                # P(W > t) = load · exp(−(1 − load) · t)
                self.close(percentile(found, 0.99), math.log(load / 0.01) / (1 - load), 0.08)

    def test_one_replica_waits_as_m_d_1(self) -> None:
        for load in (0.5, 0.8):
            self.close(mean(waits("fifo", load, 1, constant)), load / (2 * (1 - load)), 0.06)

    def test_one_replica_follows_lindleys_recursion(self) -> None:
        jobs = poisson(5_000, 0.9, ONE, exponential, seed=1)
        simulate(jobs, Costs(swap=0.5, overhead=0.1), 1, POLICIES["fifo"])
        free = 0.0
        for job in jobs:
            began = max(job.created, free)
            self.assertAlmostEqual(job.started, began, places=6)
            free = began + job.video + 0.1 + (0.5 if job.number == 0 else 0.0)

    def test_shared_queue_waits_as_m_m_c(self) -> None:
        for replicas, load in ((2, 0.7), (10, 0.8), (100, 0.9)):
            expected = erlang_c(load, replicas) / (replicas * (1 - load))
            self.close(mean(waits("fifo", load, replicas, exponential)), expected, 0.1)

    def test_random_routing_waits_as_many_m_m_1(self) -> None:
        self.close(mean(waits("random", 0.7, 5, exponential)), 0.7 / 0.3, 0.08)

    def test_swaps_of_first_come_first_served_are_those_of_independent_draws(self) -> None:
        shares = zipf(20, 1.0)
        for replicas in (1, 4):
            jobs = poisson(30_000, 0.3 * replicas, shares, constant, seed=3)
            result = simulate(jobs, Costs(swap=0.1), replicas, POLICIES["fifo"], seed=4)
            self.close(result.swaps, 1 - sum(share * share for share in shares), 0.02)
            self.close(result.busy_per_job, 1 + 0.1 * result.swaps, 1e-9)

    def test_worker_that_polls_waits_half_a_turn(self) -> None:
        jobs = poisson(5_000, 0.01, ONE, constant, seed=5)
        result = simulate(jobs, Costs(poll=0.1), 1, POLICIES["affinity"], seed=6)
        self.close(result.mean_wait, 0.05, 0.1)

    def test_zipf_and_percentile_are_what_they_say(self) -> None:
        shares = zipf(4, 1.0)
        self.assertAlmostEqual(sum(shares), 1.0)
        self.assertAlmostEqual(shares[0] / shares[3], 4.0)
        self.assertEqual([percentile([3, 1, 2, 4], share) for share in (0.5, 0.75, 1.0)], [2, 3, 4])


class Conservation(unittest.TestCase):
    def run_all(self, check: Callable[[Policy, Result], None]) -> None:
        for name, policy in POLICIES.items():
            with self.subTest(policy=name):
                jobs = poisson(4_000, 0.8 * 5, zipf(30, 1.0), exponential, seed=7, unique=0.1)
                check(policy, simulate(jobs, Costs(swap=0.2, predict=0.3), 5, policy, seed=8, warm_up=0.0))

    def test_every_job_is_made_once_and_replicas_make_one_at_a_time(self) -> None:
        def check(_policy: Policy, result: Result) -> None:
            self.assertEqual([job.number for job in result.jobs], list(range(4_000)))
            for replica in range(5):
                made = sorted((job for job in result.jobs if job.replica == replica), key=lambda job: job.started)
                for before, after in zip(made, made[1:]):
                    self.assertGreaterEqual(after.started, before.completed)
                    self.assertEqual(after.swapped, after.stack != before.stack)
            for job in result.jobs:
                self.assertGreaterEqual(job.started, job.created)
                cost = job.video + 0.2 * job.swapped + 0.3 * job.predicted
                self.assertAlmostEqual(job.completed - job.started, cost)

        self.run_all(check)

    def test_every_stack_is_predicted_once_and_every_reference_of_its_own(self) -> None:
        def check(_policy: Policy, result: Result) -> None:
            stacks = {job.stack for job in result.jobs}
            self.assertEqual(sum(job.predicted for job in result.jobs), len(stacks))
            self.assertTrue(all(job.predicted for job in result.jobs if job.unique))

        self.run_all(check)

    def test_no_job_of_a_shared_queue_waits_while_a_replica_is_idle(self) -> None:
        def check(policy: Policy, result: Result) -> None:
            if not policy.shared:
                return
            for job in result.jobs:
                if job.waited > 1e-9:
                    # Just before it began, every replica was at work.
                    at = job.started - 1e-9
                    self.assertEqual(sum(other.started <= at < other.completed for other in result.jobs), 5)

        self.run_all(check)

    def test_little(self) -> None:
        def check(_policy: Policy, result: Result) -> None:
            events = sorted([(job.created, 1) for job in result.jobs] + [(job.completed, -1) for job in result.jobs])
            area, before, inside = 0.0, 0.0, 0
            for time, change in events:
                area += inside * (time - before)
                before, inside = time, inside + change
            self.assertEqual(inside, 0)
            self.assertAlmostEqual(area, sum(job.completed - job.created for job in result.jobs), places=4)

        self.run_all(check)

    def test_seed_decides_everything(self) -> None:
        def run(seed: int) -> List[float]:
            jobs = poisson(500, 3.0, zipf(30, 1.0), exponential, seed=seed)
            return [job.completed for job in simulate(jobs, Costs(swap=0.2), 4, POLICIES["ray"], seed=seed).jobs]

        self.assertEqual(run(1), run(1))
        self.assertNotEqual(run(1), run(2))

    def test_nobody_overtakes_a_job_that_is_overdue(self) -> None:
        policy = Policy("affinity", shared=True, affine=True, patience=5.0)
        jobs = poisson(3_000, 1.1 * 3, zipf(10, 1.0), exponential, seed=9)
        result = simulate(jobs, Costs(), 3, policy, seed=10, warm_up=0.0)
        overdue = [job for job in result.jobs if job.waited > 5.0]
        self.assertGreater(len(overdue), 100)
        for job in overdue:
            late = [other for other in result.jobs[job.number + 1 :] if job.created + 5.0 < other.started < job.started]
            self.assertEqual(late, [])


class TheServersRule(unittest.TestCase):
    def test_claims_are_those_of_the_servers_store(self) -> None:
        # The package itself needs what the wheel brings.
        package = types.ModuleType("serve")
        package.__path__ = [str(SERVER)]
        sys.modules["serve"] = package
        store_module: Any = importlib.import_module("serve.sqlite_store")
        rng = random.Random(11)
        kinds = set()
        with tempfile.TemporaryDirectory() as folder, mock.patch("time.time") as clock:
            store = store_module.SqliteStore(Path(folder), "model", "engines")
            waiting, ids = Waiting(), []
            now = 1000.0
            for number in range(400):
                now += rng.expovariate(1.0)
                clock.return_value = now
                if rng.random() < 0.55:
                    job = Job(number, rng.choice(["", "a", "b", "c"]), now, 1.0)
                    store.create(str(number), {"prompt": "", "seed": 0}, job.stack, 1_000)
                    waiting.add(job)
                    ids.append(number)
                else:
                    named = rng.choice(ids) if ids and rng.random() < 0.5 else None
                    stack = rng.choice([None, "", "a", "b", "c"])
                    patience = rng.choice([0.0, 5.0, 60.0, 1e9])
                    real = store.claim("host/1/1/w", id=None if named is None else str(named), stack=stack, patience=patience)
                    ours = waiting.claim(now, number=named, stack=stack, patience=patience)
                    self.assertEqual(None if real is None else int(real.id), None if ours is None else ours.number)
                    kinds.add((named is None, stack is None, patience, real is None))
            self.assertGreater(len(kinds), 12)
            store._connection().close()


if __name__ == "__main__":
    unittest.main()
