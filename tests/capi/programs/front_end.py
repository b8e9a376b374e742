"""Makes the files of tests/capi/frontends.rs.

    front_end.py ENGINES REFERENCE IMAGE OUT PREDICTOR MAP NAME:IMAGE:WIDTH:HEIGHT:BRANCHES...
"""

import sys
from pathlib import Path

import numpy as np
import v2l


def matrix(rows: int, columns: int) -> np.ndarray:
    i, j = np.indices((rows, columns))
    return ((i * 7 + j) % 5).astype(np.float32) * np.float32(0.01)


def answer(engines: str, reference: str, image: str, out: Path, word: str) -> None:
    name, *numbers, scheduler = word.split(":")
    with_image, width, height, branches = map(int, numbers)
    mode = v2l.AdapterMode.BRANCH if branches else v2l.AdapterMode.FUSE
    with v2l.Predictor(engines, adapter_mode=mode) as predictor:
        adapter = predictor.predict(reference, width=width, height=height, image=image if with_image else None)
    adapter.save(out / f"{name}.lora.safetensors", v2l.Format.KOHYA)
    with v2l.Pipeline(engines, adapter_mode=mode) as pipeline:
        pipeline.generate(
            "a red ball",
            image=image,
            adapters=[(adapter, 0.5)],
            width=width,
            height=height,
            num_frames=5,
            num_inference_steps=2,
            seed=7,
            scheduler=None if scheduler == "own" else scheduler,
            file=out / f"{name}.video.safetensors",
        )


def mapped(engines: str, out: Path, predictor_file: str, predictor_map: str) -> None:
    model = v2l.Engine(Path(engines) / "transformer.engine")
    slot = model.slots[0]
    inputs = {"down_in": matrix(2, slot.in_features), "up_in": matrix(slot.out_features, 2)}
    with v2l.Predictor.mapped(predictor_file, predictor_map, model) as predictor:
        predictor.predict(tensors=inputs).save(out / "mapped.lora.safetensors", v2l.Format.KOHYA)


def main(engines: str, reference: str, image: str, out: str, predictor: str, predictor_map: str, *asks: str) -> None:
    for word in asks:
        answer(engines, reference, image, Path(out), word)
    mapped(engines, Path(out), predictor, predictor_map)


if __name__ == "__main__":
    main(*sys.argv[1:])
