"""Prints the tables of docs/scaling.md: waits, swaps and cost of fleets, by policy, size and number of adapters.

    python simulate.py [--jobs N]

Needs SimPy alone. Equal seeds give equal numbers.
"""

import argparse

from model import POLICIES, Fleet, Outcome, Times, simulate

#: Seconds on an imagined accelerator: nothing of these was measured. A fuse takes a tenth of a video of 50 steps, and two thirds of one of 4.
MODELS = {
    "50 steps": Times(fuse=30.0, step=5.5, branch=0.15, rest=25.0, steps=50),
    "4 steps": Times(fuse=30.0, step=5.5, branch=0.15, rest=25.0, steps=4),
}


def row(name: str, fleet: Fleet) -> str:
    made: Outcome = simulate(fleet)
    job = fleet.times.job(False)
    jobs = len(made.waits)
    cells = [
        name,
        f"{fleet.replicas}",
        f"{fleet.stacks}",
        "shared, branches" if fleet.branches else fleet.policy,
        f"{made.quantile(0.5) / job:.2f}",
        f"{made.quantile(0.99) / job:.1f}",
        f"{1 - made.swaps / jobs:.0%}" if not fleet.branches else "–",
        f"{made.busy / jobs / job:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20_000)
    jobs = parser.parse_args().jobs
    print("| model | replicas | stacks | policy | p50 wait, videos | p99 wait, videos | swaps avoided | cost of a video |")
    print("|---|---|---|---|---|---|---|---|")
    for name, times in MODELS.items():
        patience = 2 * times.job(False)
        for replicas, stacks in ((1, 10), (2, 10), (10, 100), (100, 1000), (1000, 1000)):
            for policy in POLICIES:
                print(row(name, Fleet(times, replicas, stacks, policy, jobs=jobs, patience=patience)))
            print(row(name, Fleet(times, replicas, stacks, "shared", branches=True, jobs=jobs, patience=patience)))
        for load in (0.5, 0.9):
            for policy in POLICIES[1:]:
                fleet = Fleet(times, 100, 1000, policy, load=load, jobs=jobs, patience=patience)
                print(row(f"{name}, load {load}", fleet))
    times = MODELS["4 steps"]
    for videos in (2, 20, 200):
        fleet = Fleet(times, 10, 100, "shared", jobs=jobs, patience=videos * times.job(False))
        print(row(f"4 steps, patience of {videos} videos", fleet))


if __name__ == "__main__":
    main()
