"""Predicts an adapter from frames in an array and generates with it, with the base model, and with half of it.

    generate.py ENGINES IMAGE PROMPT
"""

import sys

import numpy as np
import v2l


def moving_square() -> np.ndarray:
    """A white square that moves to the right: uint8 [frames, height, width, 3]."""
    frames = np.zeros((9, 64, 96, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[24:40, 8 * index : 8 * index + 16] = 255
    return frames


def main(engines: str, image: str, prompt: str) -> None:
    with v2l.Predictor(engines) as predictor:
        adapter = predictor.predict(moving_square(), fps=8)
    print(f"adapter of {adapter.coverage.slots_covered} slots")

    with v2l.Pipeline(engines) as pipeline:

        def frames(adapters: v2l.AdapterSet) -> np.ndarray:
            made = pipeline.generate(
                prompt, image=image, num_frames=5, num_inference_steps=2, seed=7, adapters=adapters
            )
            return made["frames"].astype(np.int16)

        base, half, whole = frames([]), frames([(adapter, 0.5)]), frames([(adapter, 1.0)])
        again = frames([])
    print(f"{base.shape} half {np.abs(half - base).mean():.3f} whole {np.abs(whole - base).mean():.3f}")
    print("the base comes back" if (again == base).all() else "the base is lost")


if __name__ == "__main__":
    main(*sys.argv[1:])
