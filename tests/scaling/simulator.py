"""A discrete-event simulation of replicas that make videos with adapters. Times are in seconds.

A job asks for a video with a *stack* of adapters. A replica makes one video at a time, and pays a swap when the stack differs from
that of its last job. A policy says which replica makes which job, and when.

The claim of a job is that of `v2l.serve.store.Store.claim`; `test_simulator.py` plays random histories against the real one.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Generator, List, Optional, Sequence

import simpy

#: How many stacks Ray knows a replica for; `_STACKS` of `v2l.serve.cluster`.
KNOWN_STACKS = 8


@dataclass
class Job:
    """A video to make, and when what became of it."""

    number: int
    stack: str
    created: float
    #: How long the video takes without any swap or prediction.
    video: float
    #: The reference of the job's own; its prediction is nobody else's.
    unique: bool = False
    started: float = math.nan
    completed: float = math.nan
    replica: int = -1
    swapped: bool = False
    predicted: bool = False

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return self.started - self.created


@dataclass(frozen=True)
class Costs:
    """What a job costs besides its video."""

    #: A change of adapters.
    swap: float = 0.0
    #: A prediction that is not in the cache; every stack but the base model's is predicted once.
    predict: float = 0.0
    #: Between a job and the next on one replica.
    overhead: float = 0.0
    #: How often an idle worker process looks for work; 0 is at once.
    poll: float = 0.0


@dataclass(frozen=True)
class Policy:
    """Who makes which job.

    `shared` has one queue, from which replicas take; else each replica has a queue of its own, into which `route` puts jobs:
    `random`, `least` (fewest jobs) or `home` (by the stack's hash). `warm` gives a job to an idle replica that is `known` for its
    stack, as Ray's multiplexing does, or that had it `last`. `affine` claims as `v2l serve` does, without it as
    `v2l serve --no-affinity`.
    """

    name: str
    shared: bool
    affine: bool
    route: str = "idle"
    warm: str = ""
    patience: float = 300.0


#: The policies by name. `affinity`, `fifo` and `ray` are the server's own. `random`, `least-loaded` and `home`
#: are what a balancer before many servers does. `last` is what the server could do.
POLICIES: Dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("random", shared=False, affine=False, route="random"),
        Policy("least-loaded", shared=False, affine=False, route="least"),
        Policy("home", shared=False, affine=True, route="home"),
        Policy("fifo", shared=True, affine=False),
        Policy("affinity", shared=True, affine=True),
        Policy("ray", shared=True, affine=True, warm="known"),
        Policy("last", shared=True, affine=True, warm="last"),
    )
}


class Waiting:
    """The jobs that wait, in the order in which they came."""

    def __init__(self) -> None:
        self._all: "collections.OrderedDict[int, Job]" = collections.OrderedDict()
        self._by_stack: Dict[str, "collections.OrderedDict[int, Job]"] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, job: Job) -> None:
        """Adds a job that is younger than all that wait."""
        self._all[job.number] = job
        self._by_stack.setdefault(job.stack, collections.OrderedDict())[job.number] = job

    def oldest(self) -> Optional[Job]:
        """The job that has waited for longest."""
        return next(iter(self._all.values()), None)

    def claim(
        self, now: float, *, number: Optional[int] = None, stack: Optional[str] = None, patience: float = 0.0
    ) -> Optional[Job]:
        """Takes a job, by the rule of `Store.claim`: one that is overdue, one with `stack`, that of `number`, or the oldest."""
        oldest = self.oldest()
        if oldest is None:
            return None
        job = None
        if (number is None or stack is not None) and oldest.created < now - patience:
            job = oldest
        if job is None and stack is not None:
            job = next(iter(self._by_stack.get(stack, {}).values()), None)
        if job is None and number is not None:
            job = self._all.get(number)
        job = job or oldest
        del self._all[job.number]
        same = self._by_stack[job.stack]
        del same[job.number]
        if not same:
            del self._by_stack[job.stack]
        return job


class Pool:
    """A set from which one is drawn at random in constant time."""

    def __init__(self) -> None:
        self._items: List[int] = []
        self._places: Dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: int) -> bool:
        return item in self._places

    def add(self, item: int) -> None:
        """Adds one that is not in it."""
        self._places[item] = len(self._items)
        self._items.append(item)

    def remove(self, item: int) -> None:
        """Removes one that is in it."""
        place, last = self._places.pop(item), self._items.pop()
        if last != item:
            self._items[place] = last
            self._places[last] = place

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        return self._items[rng.randrange(len(self._items))]


@dataclass
class _Replica:
    number: int
    waiting: Waiting
    stack: Optional[str] = None
    #: Jobs in its own queue and at work.
    load: int = 0
    wake: Optional[simpy.Event] = None
    #: The stacks that Ray knows it for, those used last at the end.
    known: "collections.OrderedDict[str, None]" = field(default_factory=collections.OrderedDict)


@dataclass
class Result:
    """What became of the jobs."""

    jobs: List[Job]
    replicas: int
    #: Seconds of work of all replicas, for the jobs that are counted.
    busy: float
    #: Jobs at the start that are not counted.
    skipped: int

    @property
    def counted(self) -> List[Job]:
        """The jobs after the warm-up."""
        return self.jobs[self.skipped :]

    def wait(self, share: float) -> float:
        """The queue time that this share of the jobs stays below."""
        return percentile([job.waited for job in self.counted], share)

    @property
    def mean_wait(self) -> float:
        """The mean queue time."""
        return sum(job.waited for job in self.counted) / len(self.counted)

    @property
    def swaps(self) -> float:
        """Swaps for each job."""
        return sum(job.swapped for job in self.counted) / len(self.counted)

    @property
    def busy_per_job(self) -> float:
        """Seconds of a replica's work for each job."""
        return self.busy / len(self.counted)

    @property
    def offered(self) -> float:
        """Work that came, over what the replicas can do; from 1 on the queue grows without end."""
        counted = self.counted
        return self.busy / (self.replicas * (counted[-1].created - counted[0].created))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of the values stays below or at."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


class _Simulation:
    def __init__(self, jobs: Sequence[Job], costs: Costs, replicas: int, policy: Policy, seed: int) -> None:
        self.env = simpy.Environment()
        self.costs, self.policy, self.rng = costs, policy, random.Random(seed)
        shared = Waiting()
        self.replicas = [_Replica(n, shared if policy.shared else Waiting()) for n in range(replicas)]
        self.idle = Pool()
        self.by_load: Dict[int, Pool] = collections.defaultdict(Pool)
        self.known: Dict[str, Dict[int, None]] = collections.defaultdict(dict)
        self.cached = {""}
        self.done = 0
        self.all_done = self.env.event()
        self.jobs = list(jobs)
        for replica in self.replicas:
            self.by_load[0].add(replica.number)
            self.env.process(self._work(replica))
        self.env.process(self._arrive())

    def _arrive(self) -> Generator[simpy.Event, Any, None]:
        for job in self.jobs:
            yield self.env.timeout(job.created - self.env.now)
            replica = self._route(job)
            if replica is not None:
                self._wake(replica, job)

    def _route(self, job: Job) -> Optional[_Replica]:
        """Puts a job into a queue; gives the idle replica that shall look at it."""
        if self.policy.shared:
            self.replicas[0].waiting.add(job)
            return self._free(job) if self.idle else None
        if self.policy.route == "random":
            at = self.rng.randrange(len(self.replicas))
        elif self.policy.route == "least":
            at = next(self.by_load[load] for load in itertools.count() if self.by_load[load]).draw(self.rng)
        else:
            at = random.Random(job.stack).randrange(len(self.replicas))
        replica = self.replicas[at]
        replica.waiting.add(job)
        self._loaded(replica, 1)
        return replica if at in self.idle else None

    def _free(self, job: Job) -> _Replica:
        """An idle replica for a job of the shared queue."""
        if self.policy.warm:
            # Ray's calls for the base model name no stack.
            named = job.stack or self.policy.warm == "last"
            known = [at for at in self.known.get(job.stack, ()) if at in self.idle] if named else []
            if known:
                return self.replicas[self.rng.choice(known)]
        if self.policy.warm == "known":
            # Of two that are drawn, the one that is known for fewer stacks.
            drawn = [self.replicas[self.idle.draw(self.rng)] for _ in range(2)]
            return min(drawn, key=lambda replica: len(replica.known))
        return self.replicas[self.idle.draw(self.rng)]

    def _wake(self, replica: _Replica, job: Job) -> None:
        # Of k workers that look every `poll` seconds, the first looks after the least of k uniform times.
        others = len(self.idle) if self.policy.shared else 1
        delay = self.costs.poll * (1.0 - self.rng.random() ** (1.0 / others)) if self.costs.poll else 0.0
        self.idle.remove(replica.number)
        if replica.wake is not None:
            replica.wake.succeed((delay, job))

    def _loaded(self, replica: _Replica, by: int) -> None:
        self.by_load[replica.load].remove(replica.number)
        replica.load += by
        self.by_load[replica.load].add(replica.number)

    def _learn(self, replica: _Replica, stack: str) -> None:
        """Makes a replica known for a stack, and forgets what was used least of late."""
        replica.known[stack] = None
        replica.known.move_to_end(stack)
        self.known[stack][replica.number] = None
        if len(replica.known) > (KNOWN_STACKS if self.policy.warm == "known" else 1):
            forgotten, _ = replica.known.popitem(last=False)
            del self.known[forgotten][replica.number]

    def _work(self, replica: _Replica) -> Generator[simpy.Event, Any, None]:
        env, costs, policy = self.env, self.costs, self.policy
        called: Optional[Job] = None
        while True:
            # On Ray a replica is called for a job, and claims that one unless another fits better. It is then known for the stack
            # of the call, not of the job that it took.
            number = None
            if policy.warm == "known":
                called = called or replica.waiting.oldest()
                if called is not None:
                    number = called.number
                    if called.stack:
                        self._learn(replica, called.stack)
            stack = replica.stack if policy.affine else None
            job = replica.waiting.claim(env.now, number=number, stack=stack, patience=policy.patience)
            called = None
            if job is None:
                replica.wake = env.event()
                self.idle.add(replica.number)
                delay, called = yield replica.wake
                if delay:
                    yield env.timeout(delay)
                continue
            job.started, job.replica = env.now, replica.number
            work = job.video
            job.predicted = bool(costs.predict) and (job.unique or job.stack not in self.cached)
            if job.predicted:
                self.cached.add(job.stack)
                work += costs.predict
            job.swapped = job.stack != replica.stack
            if job.swapped:
                work += costs.swap
            replica.stack = job.stack
            if policy.warm == "last":
                self._learn(replica, job.stack)
            yield env.timeout(work)
            job.completed = env.now
            if not policy.shared:
                self._loaded(replica, -1)
            self.done += 1
            if self.done == len(self.jobs):
                self.all_done.succeed()
            if costs.overhead:
                yield env.timeout(costs.overhead)


def simulate(
    jobs: Sequence[Job], costs: Costs, replicas: int, policy: Policy, seed: int = 0, warm_up: float = 0.2
) -> Result:
    """Runs the jobs to their end. They are changed: each learns when it began, ended, and where.

    `jobs` are sorted by `created` and numbered in that order; the first `warm_up` of them do not count.
    """
    simulation = _Simulation(jobs, costs, replicas, policy, seed)
    simulation.env.run(until=simulation.all_done)
    skipped = int(warm_up * len(jobs))
    busy = sum(job.completed - job.started + costs.overhead for job in simulation.jobs[skipped:])
    return Result(simulation.jobs, replicas, busy, skipped)


def zipf(stacks: int, exponent: float) -> List[float]:
    """The share of each of so many stacks: the n-th is asked for `n ** -exponent` times as often as the first."""
    weights = [n**-exponent for n in range(1, stacks + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def poisson(
    count: int,
    rate: float,
    shares: Sequence[float],
    video: Callable[[random.Random], float],
    seed: int,
    unique: float = 0.0,
) -> List[Job]:
    """So many jobs that come independently of each other, `rate` a second, with stacks drawn by their shares.

    `video` draws the seconds of a video. A share `unique` of the jobs has a reference of its own.
    """
    rng = random.Random(seed)
    edges = list(itertools.accumulate(shares))
    jobs = []
    now = 0.0
    for number in range(count):
        now += rng.expovariate(rate)
        # Always drawn, so that jobs are the same but for this.
        own = rng.random() < unique
        stack = f"s{min(bisect.bisect(edges, rng.random()), len(edges) - 1)}"
        jobs.append(Job(number, f"own{number}" if own else stack, now, video(rng), own))
    return jobs
