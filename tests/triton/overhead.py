"""What Triton adds to a request: the same call in this process, through `tritonserver` by HTTP and by gRPC, in turn; medians.

    python overhead.py [--rounds N] [--memory]

`--memory` prints instead what memory instances take: of a step of the miniature's transformer, made LAYERS deep.

Needs what `test_triton.py` needs, beside it: `tests/triton/check --overhead` sees to that.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import tritonclient.grpc as grpc
import tritonclient.http as http
from safetensors.numpy import load_file, save_file

import v2l
from conftest import IMAGE, MINIATURE, PROMPT
from test_triton import Server, inputs, models, ran, tensors_of

LAYERS = 150
#: Two requests of the miniature: its smallest, and the usual one.
SIZES = {"1 frame, 1 step": (1, 1), "9 frames, 20 steps": (9, 20)}
Ways = Dict[str, Callable[[], bytes]]


def compared(request: str, ways: Ways, rounds: int) -> None:
    """Times the ways in turn, and compares what they give."""
    seconds: Dict[str, List[float]] = {name: [] for name in ways}
    for turn in range(rounds + 3):
        made = set()
        for name, call in ways.items():
            began = time.perf_counter()
            made.add(call())
            # The first ones open sessions.
            if turn >= 3:
                seconds[name].append(time.perf_counter() - began)
        assert len(made) == 1
    base = statistics.median(seconds["in process"])
    for name, times in seconds.items():
        # Of pairs in one round, which other work on the machine slows alike.
        ratio = statistics.median(found / alone for found, alone in zip(times, seconds["in process"]))
        added = statistics.median(found - alone for found, alone in zip(times, seconds["in process"]))
        print(json.dumps({"request": request, "way": name, "median_ms": round(1000 * statistics.median(times), 2), "ratio": round(ratio, 2),
                          "added_ms": round(1000 * added, 2), "base_ms": round(1000 * base, 2)}), flush=True)


def overhead(work: Path, rounds: int) -> None:
    pipeline = v2l.Pipeline.from_pretrained(MINIATURE, cache=work / "cache", threads=1)
    engines = pipeline.directory
    (work / "loras").mkdir()
    served = {name: text for name, text in models(engines, work / "loras", work).items() if name in ("video", "step")}
    server = Server(served, work)
    clients: List[Tuple[str, Any, Any]] = [
        ("HTTP", http, http.InferenceServerClient(f"127.0.0.1:{server.http}")),
        ("gRPC", grpc, grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")),
    ]
    tensors = tensors_of(1)
    with v2l.Engine(engines / "transformer.engine", threads=1, weights=v2l.Weights.F32) as engine, v2l.Session(engine, "step") as session:
        ways: Ways = {"in process": lambda: session.run(tensors)["sample"].tobytes()}
        for name, library, client in clients:
            ways[name] = lambda library=library, client=client: ran(library, client, "step", tensors).as_numpy("sample").tobytes()  # type: ignore[misc]
        compared("a graph: one step", ways, 10 * rounds)
    for size, (frames, steps) in SIZES.items():

        # Frames, not a file: before a file is written, the module tries whether ffmpeg can, which the backend has no need to.
        def in_process() -> bytes:
            given: Dict[str, Any] = {"num_frames": frames, "num_inference_steps": steps, "guidance_scale": 1.0, "seed": 43}
            made: bytes = pipeline.generate(PROMPT, image=IMAGE, **given)["frames"].tobytes()
            return made

        def through(library: Any, client: Any) -> bytes:
            given = {"num_frames": frames, "num_inference_steps": steps, "guidance_scale": "1", "seed": 43}
            outputs = [library.InferRequestedOutput("frames")]
            made: bytes = client.infer("video", inputs(library), outputs=outputs, parameters=given).as_numpy("frames").tobytes()
            return made

        ways = {"in process": in_process}
        for name, library, client in clients:
            ways[name] = lambda library=library, client=client: through(library, client)  # type: ignore[misc]
        compared(size, ways, rounds)
    for _, _, client in clients:
        client.close()
    server.stop()


def memory(work: Path) -> None:
    shutil.copytree(MINIATURE, work / "deep")
    folder = work / "deep/transformer"
    (file,) = folder.glob("*.safetensors")
    config = json.loads((folder / "config.json").read_text())
    blocks, tensors = config["num_layers"], load_file(file)
    deep = {name: tensor for name, tensor in tensors.items() if not name.startswith("transformer_blocks.")}
    for layer in range(LAYERS):
        prefix = f"transformer_blocks.{layer % blocks}."
        deep.update({f"transformer_blocks.{layer}.{name[len(prefix):]}": tensor for name, tensor in tensors.items() if name.startswith(prefix)})
    save_file(deep, file)
    (folder / "config.json").write_text(json.dumps({**config, "num_layers": LAYERS}))
    with v2l.Pipeline.from_pretrained(work / "deep", cache=work / "cache") as pipeline:
        engine = pipeline.directory / "transformer.engine"
    weights = sum(tensor.size for tensor in deep.values()) * 4
    print(json.dumps({"weights_in_f32_mb": round(weights / 1e6)}), flush=True)
    for count in (0, 1, 2, 4):
        text = f'backend: "v2l"\ninstance_group [{{ kind: KIND_CPU, count: {count} }}]\n'
        for key, value in {"engine": str(engine), "threads": "1", "weights": "f32", "backend": "ort"}.items():
            text += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        place = work / f"of-{count}"
        (place / "repository").mkdir(parents=True)
        server = Server({"step": text} if count else {}, place)
        print(json.dumps({"instances": count, "private_mb": round(server.private() / 1e6)}), flush=True)
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            memory(Path(folder))
        else:
            overhead(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
