"""Runs every experiment; writes the tables of docs/scaling.md between their marks, and its pictures.

    python experiments.py [--only NAME…] [--print]

With `--print` nothing is written. Needs SimPy, and matplotlib for the pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from simulator import POLICIES, Costs, Policy, Result, poisson, simulate, zipf

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE = DOCS / "scaling.md"
MEASURED: Dict[str, Any] = json.loads((HERE / "measured/miniature.json").read_text())
REAL: Dict[str, Any] = json.loads((HERE / "measured/real.json").read_text())

#: The jobs of a warm server that changed no adapters, in seconds; their spread is that of simulated videos.
WARM: List[float] = MEASURED["v2l serve"]["fuse"]["4 steps"]["same"]["jobs"]
MEAN = mean(WARM)
#: Shares of a video's time, as measured.
FUSE = MEASURED["v2l serve"]["fuse"]["4 steps"]["swap"]["phases"]["swap"] / median(WARM)
PREDICT = MEASURED["v2l-run"]["predict"]["predict"] / median(WARM)

#: What experiments assume where they do not vary it.
VIDEO = 10.0
SWAP = 0.25
STACKS, EXPONENT = 200, 1.0
LOAD = 0.7
REPLICAS = 10


def case(
    policy: str | Policy,
    *,
    replicas: int = REPLICAS,
    load: float = LOAD,
    video: float = VIDEO,
    swap: float = SWAP,
    stacks: int = STACKS,
    exponent: float = EXPONENT,
    predict: float = 0.0,
    unique: float = 0.0,
    jobs: int = 20_000,
    seed: int = 1,
) -> Result:
    """One simulation. `load` is of plain videos over what the replicas can make of them; `swap` and `predict` are in videos."""
    rule = POLICIES[policy] if isinstance(policy, str) else policy

    def seconds(rng: random.Random) -> float:
        return video * rng.choice(WARM) / MEAN

    drawn = poisson(jobs, load * replicas / video, zipf(stacks, exponent), seconds, seed, unique)
    # Idle workers look every 0.1 s, the ingress on Ray every 0.05 s; a server's own worker is woken.
    poll = 0.0 if not rule.shared else 0.05 if rule.warm else 0.1
    return simulate(drawn, Costs(swap=swap * video, predict=predict * video, poll=poll), replicas, rule, seed)


def grows(result: Result) -> bool:
    """Whether the queue never settles: jobs of the last quarter wait much longer than those of the second."""
    quarter = len(result.jobs) // 4
    second, last = (mean(job.waited for job in result.jobs[at * quarter : (at + 1) * quarter]) for at in (1, 3))
    work = mean(job.completed - job.started for job in result.counted)
    return last > 1.7 * second and last > 2 * work


def shown(result: Result, share: float, video: float = VIDEO) -> str:
    """A queue time in videos."""
    return "grows" if grows(result) else f"{result.wait(share) / video:.2f}"


def avoided(result: Result) -> str:
    """The share of jobs that changed no adapters."""
    return f"{1 - result.swaps:.2f}"


def cost(result: Result, video: float = VIDEO) -> str:
    """A replica's time for each video, in plain videos."""
    return f"{result.busy_per_job / video:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def measured() -> str:
    """What was measured on the miniature."""
    run, warm = MEASURED["v2l-run"], MEASURED["v2l serve"]

    def phase(mode: str, name: str, steps: str = "20 steps", kind: str = "same") -> float:
        return float(warm[mode][steps][kind]["phases"][name]) * 1000

    rows = [
        ("prediction from a reference", "`v2l-run --json`", f"{1000 * run['predict']['predict']:.0f}"),
        ("one step, base model", "`v2l-run --json`", f"{1000 * run['base']['one step']:.2f}"),
        ("one step, fused", "`v2l-run --json`", f"{1000 * run['fuse']['one step']:.2f}"),
        ("one step, in branches", "`v2l-run --json`", f"{1000 * run['branch']['one step']:.2f}"),
        ("change of adapters, fused", "`v2l serve`", f"{phase('fuse', 'swap', kind='swap'):.1f}"),
        ("change of adapters, in branches", "`v2l serve`", f"{phase('branch', 'swap', kind='swap'):.1f}"),
        ("20 steps, fused", "`v2l serve`", f"{phase('fuse', 'denoise'):.0f}"),
        ("20 steps, in branches", "`v2l serve`", f"{phase('branch', 'denoise'):.0f}"),
        ("text and image", "`v2l serve`", f"{phase('fuse', 'encode_text') + phase('fuse', 'encode_condition'):.0f}"),
        ("decode, and write the mp4", "`v2l serve`", f"{phase('fuse', 'decode'):.0f}"),
        ("a whole job of 4 steps", "`v2l serve`", f"{1000 * median(WARM):.0f}"),
    ]
    return table(("what", "by", "ms"), rows)


def real() -> str:
    """Real runs over simulated ones."""
    rows = []
    for run in REAL["runs"]:
        found, same, forecast = run["real"], run["same"], run["forecast"]
        name = {"affinity": "`--workers`", "fifo": "`--workers`, `--no-affinity`", "ray": "`--ray`"}[run["policy"]]
        ratios = [f"{found[fact] / same[fact]:.2f}" if same[fact] > 0.02 else "–" for fact in ("mean", "p50", "p99", "swaps")]
        rows.append(
            (
                name,
                run["replicas"],
                run["load"],
                f"{found['mean']:.2f}",
                *ratios,
                f"{found['mean'] / forecast['mean']:.2f}",
                f"{found['swaps'] / forecast['swaps']:.2f}",
                f"{run['job seconds'] / run['job seconds before']:.2f}",
            )
        )
    head = ("server", "replicas", "load", "mean wait, s", "mean", "p50", "p99", "swaps", "mean, forecast", "swaps, forecast", "job over the forecast's")
    return table(head, rows)


def policies() -> str:
    """Every policy at every size."""
    rows = []
    for replicas in (1, 2, 10, 100, 1000):
        for name in POLICIES:
            result = case(name, replicas=replicas, jobs=max(20_000, 200 * replicas))
            rows.append((replicas, name, shown(result, 0.5), shown(result, 0.99), avoided(result), cost(result)))
    return table(("replicas", "policy", "queue p50", "queue p99", "swaps avoided", "cost"), rows)


def length() -> str:
    """Affinity over the length of a video: the server's patience is 300 s, whatever a video takes."""
    rows = []
    rules = (POLICIES["fifo"], POLICIES["affinity"], replace(POLICIES["affinity"], patience=float("inf")))
    for load in (0.75, 0.85, 0.95):
        for video in (1.0, 10.0, 60.0, 600.0):
            row: List[object] = [load, f"{video:g}"]
            for rule in rules:
                result = case(rule, load=load, video=video)
                row += [avoided(result), shown(result, 0.99, video)]
            rows.append(row)
    head = ["load", "a video, s", "fifo: avoided", "p99", "300 s: avoided", "p99", "without bound: avoided", "p99"]
    return table(head, rows)


def capacity(name: str, replicas: int, swap: float, bound: float = 3.0) -> Optional[float]:
    """The highest load at which 99 of 100 videos wait for at most so many videos."""
    low, high = 0.0, 1.0
    for _ in range(7):
        load = (low + high) / 2
        result = case(name, replicas=replicas, load=load, swap=swap, jobs=max(10_000, 100 * replicas))
        if not grows(result) and result.wait(0.99) <= bound * VIDEO:
            low = load
        else:
            high = load
    return low or None


COSTS: Dict[Tuple[str, float], Optional[float]] = {}
SWAPS = (round(FUSE, 3), 0.05, 0.25, 0.5, 1.0)


def costs() -> str:
    """Replicas to pay for, by what a swap costs."""
    rows = []
    for name in POLICIES:
        row: List[object] = [name]
        for swap in SWAPS:
            found = COSTS[name, swap] = capacity(name, REPLICAS, swap)
            row.append("–" if found is None else f"{1 / found:.2f}")
        rows.append(row)
    return table(["policy", *(f"{swap:g}" for swap in SWAPS)], rows)


def stacks() -> str:
    """Swaps avoided by how many stacks there are, and how unequal."""
    rows = []
    for exponent in (0.5, 1.0, 1.5):
        for count in (10, 100, 1000, 10_000):
            row: List[object] = [exponent, count]
            for name in ("fifo", "home", "affinity", "ray", "last"):
                row.append(avoided(case(name, exponent=exponent, stacks=count)))
            rows.append(row)
    return table(["exponent", "stacks", "fifo", "home", "affinity", "ray", "last"], rows)


def references() -> str:
    """References of a job's own."""
    rows = []
    for unique in (0.0, 0.1, 0.3, 0.5):
        row: List[object] = [unique]
        for name in ("fifo", "affinity", "ray"):
            result = case(name, unique=unique, predict=PREDICT, load=0.5)
            row += [avoided(result), shown(result, 0.99), cost(result)]
        rows.append(row)
    head = ["share", "fifo: avoided", "p99", "cost", "affinity: avoided", "p99", "cost", "ray: avoided", "p99", "cost"]
    return table(head, rows)


def branches() -> str:
    """How much slower a video in branches may be before fusing is cheaper."""
    rows = []
    for replicas in (1, 10, 100):
        row: List[object] = [replicas]
        for name in ("fifo", "ray", "last"):
            for load in (0.4, 0.8):
                result = case(name, replicas=replicas, load=load)
                row.append(f"{100 * SWAP * result.swaps:.1f} %")
        rows.append(row)
    head = ["replicas", "fifo, load 0.4", "0.8", "ray, load 0.4", "0.8", "last, load 0.4", "0.8"]
    return table(head, rows)


#: Seconds on an imagined accelerator; none of these was measured.
STEP, FUSING, REST, SLOWER = 5.5, 30.0, 25.0, 0.15


def steps() -> str:
    """Fuse against branches for a model of 50 steps and for a distilled one of 4."""
    rows = []
    for count in (50, 4):
        plain, branched = (REST + count * STEP * slower for slower in (1.0, 1 + SLOWER))
        for load in (0.5, 0.7):
            for name in ("fifo", "affinity", "ray", "last", "branches"):
                if name == "branches":
                    result = case("fifo", replicas=100, stacks=1000, video=branched, swap=0.0, load=load * branched / plain)
                else:
                    result = case(name, replicas=100, stacks=1000, video=plain, swap=FUSING / plain, load=load)
                spared = "–" if name == "branches" else avoided(result)
                rows.append((count, load, name, shown(result, 0.5, plain), shown(result, 0.99, plain), spared, cost(result, plain)))
    return table(("steps", "load", "policy", "queue p50", "queue p99", "swaps avoided", "cost"), rows)


def store() -> str:
    """What replicas ask of the one file of jobs."""
    rows = []
    for replicas, found in MEASURED["store"]["replicas"].items():
        busy = int(replicas) * 4 * found["beat"]
        idle = int(replicas) * 10 * found["look"]
        rows.append((replicas, f"{1000 * found['beat']:.2f}", f"{1000 * found['look']:.2f}", f"{busy:.3f}", f"{idle:.3f}"))
    head = ["jobs at work", "a sign of life, ms", "a look for work, ms", "all at work", "as many idle"]
    return table(head, rows)


TABLES: Dict[str, Callable[[], str]] = {
    function.__name__: function for function in (
        measured,
        real,
        policies,
        length,
        costs,
        stacks,
        references,
        branches,
        steps,
        store,
    )
}
COLOURS = {
    "random": "#999999",
    "least-loaded": "#b07aa1",
    "home": "#f28e2b",
    "fifo": "#4e79a7",
    "affinity": "#e15759",
    "ray": "#59a14f",
    "last": "#000000",
}


def _picture(name: str, x_label: str, y_label: str, lines: Mapping[str, Tuple[Sequence[float], Sequence[float]]], scale: str = "linear") -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, axes = pyplot.subplots(figsize=(5.2, 3.1), dpi=90)
    for (label, (xs, ys)), marker in zip(lines.items(), "ov^sDx."):
        axes.plot(xs, ys, marker=marker, markersize=4, label=label, color=COLOURS[label], linewidth=1.3)
    axes.set(xlabel=x_label, ylabel=y_label, yscale=scale)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    file = DOCS / "scaling" / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, metadata={"Software": None})
    pyplot.close(figure)
    # A palette is a third of the bytes.
    Image.open(file).convert("RGB").quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, optimize=True)


def pictures() -> None:
    """Queue time and swaps over load, of ten replicas."""
    loads = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
    waits: Dict[str, Tuple[List[float], List[float]]] = {}
    swaps: Dict[str, Tuple[List[float], List[float]]] = {}
    for name in POLICIES:
        waits[name], swaps[name] = ([], []), ([], [])
        for load in loads:
            result = case(name, load=load)
            if not grows(result):
                for found, value in ((waits, max(0.01, result.wait(0.99) / VIDEO)), (swaps, 1 - result.swaps)):
                    found[name][0].append(load)
                    found[name][1].append(value)
    _picture("wait", "load (plain videos)", "queue time p99, in videos", waits, "log")
    _picture("swaps", "load (plain videos)", "share of jobs without a swap", swaps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=[*TABLES, "pictures"], default=[*TABLES, "pictures"])
    parser.add_argument("--print", action="store_true", dest="shows", help="print tables, and write nothing")
    options = parser.parse_args()
    for name in options.only:
        if name == "pictures":
            if not options.shows:
                pictures()
            continue
        made = TABLES[name]()
        print(f"{name}\n{made}\n", flush=True)
        if not options.shows:
            page = PAGE.read_text()
            marks = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
            if not re.search(marks, page, re.DOTALL):
                raise SystemExit(f"{PAGE.name} has no place for the table {name}")
            PAGE.write_text(re.sub(marks, lambda found: found[1] + made + found[2], page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
