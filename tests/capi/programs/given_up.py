"""Gives up an engine inside a progress function, directly and through the collector, and looks at whether it is still mapped.

    given_up.py ENGINES IMAGE OTHER_ENGINE
"""

import gc
import sys

import v2l


def mapped(file: str) -> bool:
    with open("/proc/self/maps") as maps:
        return file in maps.read()


def main(engines: str, image: str, other: str) -> None:
    handles = [v2l.Engine(other), v2l.Engine(other)]
    cycle = {"engine": handles[1]}
    cycle["itself"] = cycle
    given_up = []

    def progress(_phase: v2l.Phase, _done: int, _total: int) -> None:
        nonlocal cycle
        if handles:
            handles.clear()
            cycle = {}
            gc.collect()
            given_up.append(mapped(other))

    with v2l.Pipeline(engines) as pipeline:
        pipeline.generate("a red ball", image=image, num_frames=5, num_inference_steps=1, seed=1, progress=progress)
    print("kept in the callback:", given_up == [True])
    print("freed after the call:", not mapped(other))


if __name__ == "__main__":
    main(*sys.argv[1:])
