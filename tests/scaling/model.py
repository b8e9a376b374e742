"""A fleet of replicas that make videos with adapters: a discrete-event model on SimPy.

A job needs a stack of adapters. A replica whose weights have another one fuses first, or, with low-rank branches, makes slower steps instead. Jobs
arrive at random (Poisson) or by a trace; which stack they need follows Zipf's law.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import random
from dataclasses import dataclass, field
from typing import Deque, Dict, Iterator, List, Optional, Sequence, Tuple

import simpy

#: Which replica a job goes to.
POLICIES = ("random", "least-loaded", "affinity", "shared")


@dataclass(frozen=True)
class Times:
    """Seconds of the parts of a job."""

    #: Change of the adapters in the weights.
    fuse: float
    #: A step, and how much longer it takes with branches.
    step: float
    branch: float
    #: Everything else: prompt, image, decoding, the file.
    rest: float
    steps: int
    #: How far the time of a job scatters, as a part of it.
    scatter: float = 0.0

    def job(self, branches: bool) -> float:
        """Seconds of a job without the change of adapters."""
        return self.rest + self.steps * self.step * (1 + self.branch if branches else 1)


@dataclass
class Fleet:
    """What is simulated."""

    times: Times
    replicas: int
    stacks: int
    policy: str
    #: Part of the fleet's time that jobs without any change of adapters would take.
    load: float = 0.7
    branches: bool = False
    zipf: float = 1.1
    jobs: int = 20_000
    seed: int = 1
    #: How long the oldest job of a shared queue lets others with the stack in the weights go first.
    patience: float = 60.0
    #: With affinity: how many jobs may wait at a stack's own replica before another takes them.
    spill: int = 4


@dataclass
class Outcome:
    """What came of it."""

    waits: List[float] = field(default_factory=list)
    swaps: int = 0
    busy: float = 0.0
    end: float = 0.0

    def quantile(self, part: float) -> float:
        """The wait that this part of the jobs does not exceed."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


@dataclass
class Job:
    stack: int
    arrived: float
    taken: bool = False


def zipf(count: int, exponent: float, draw: random.Random) -> Iterator[int]:
    """Numbers from 0, each as often as its rank says."""
    sums = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(count)))
    while True:
        yield bisect.bisect_left(sums, draw.random() * sums[-1])


def arrivals(fleet: Fleet, draw: random.Random) -> Iterator[Tuple[float, int]]:
    """Times between jobs, and their stacks."""
    rate = fleet.load * fleet.replicas / fleet.times.job(False)
    for stack in itertools.islice(zipf(fleet.stacks, fleet.zipf, draw), fleet.jobs):
        yield draw.expovariate(rate), stack


class Shared:
    """One queue for all replicas, as `v2l serve` has it: the stack in the weights first, while the oldest has patience."""

    def __init__(self, environment: simpy.Environment, patience: float) -> None:
        self._environment, self._patience = environment, patience
        self._all: Deque[Job] = collections.deque()
        self._by_stack: Dict[int, Deque[Job]] = collections.defaultdict(collections.deque)
        #: Replicas that have nothing to do, and the stacks in their weights.
        self._idle: List[Tuple[simpy.Event, Optional[int]]] = []

    def put(self, job: Job) -> None:
        self._all.append(job)
        self._by_stack[job.stack].append(job)
        if self._idle:
            fits = (place for place, (_, stack) in enumerate(self._idle) if stack == job.stack)
            self._idle.pop(next(fits, -1))[0].succeed()

    def take(self, stack: Optional[int]) -> Optional[Job]:
        """The job that a replica with this stack in its weights takes."""
        while self._all and self._all[0].taken:
            self._all.popleft()
        if not self._all:
            return None
        oldest = self._all[0]
        same = self._by_stack[stack] if stack is not None else None
        while same and same[0].taken:
            same.popleft()
        patient = self._environment.now - oldest.arrived < self._patience
        job = same[0] if same and patient else oldest
        job.taken = True
        return job

    def wait(self, stack: Optional[int]) -> simpy.Event:
        """An event for when there is a job again."""
        event = self._environment.event()
        self._idle.append((event, stack))
        return event


def simulate(fleet: Fleet, trace: Optional[Sequence[Tuple[float, int]]] = None) -> Outcome:
    """Runs the fleet over jobs that are drawn, or over a trace of times between jobs and stacks."""
    draw = random.Random(fleet.seed)
    environment, outcome = simpy.Environment(), Outcome()
    # The base model's weights are no stack of anybody's.
    held: List[Optional[int]] = [None] * fleet.replicas
    queues: List[Shared] = []
    if fleet.policy == "shared":
        queues = [Shared(environment, fleet.patience)] * fleet.replicas
    else:
        # Own queues go by age alone.
        queues = [Shared(environment, 0.0) for _ in range(fleet.replicas)]
    waiting = [0] * fleet.replicas

    def replica(number: int) -> Iterator[simpy.Event]:
        while True:
            job = queues[number].take(held[number])
            if job is None:
                yield queues[number].wait(held[number])
                continue
            outcome.waits.append(environment.now - job.arrived)
            began = environment.now
            if held[number] != job.stack:
                held[number] = job.stack
                if not fleet.branches:
                    outcome.swaps += 1
                    yield environment.timeout(fleet.times.fuse)
            scatter = 1 + fleet.times.scatter * draw.uniform(-1, 1)
            yield environment.timeout(fleet.times.job(fleet.branches) * scatter)
            outcome.busy += environment.now - began
            waiting[number] -= 1

    def choose(stack: int) -> int:
        if fleet.policy == "shared":
            return 0
        if fleet.policy == "random":
            return draw.randrange(fleet.replicas)
        # The power of two choices: nobody knows all queues.
        pair = [draw.randrange(fleet.replicas) for _ in range(2)]
        least = min(pair, key=waiting.__getitem__)
        if fleet.policy == "affinity":
            own = (stack * 2654435761 >> 7) % fleet.replicas
            return own if waiting[own] <= fleet.spill else least
        return least

    def source() -> Iterator[simpy.Event]:
        for pause, stack in trace if trace is not None else arrivals(fleet, draw):
            yield environment.timeout(pause)
            number = choose(stack)
            waiting[number] += 1
            queues[number].put(Job(stack, environment.now))

    for number in range(fleet.replicas):
        environment.process(replica(number))
    environment.process(source())
    environment.run()
    outcome.end = environment.now
    return outcome
