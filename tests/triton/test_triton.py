"""The Triton backend in a real `tritonserver`: equal bytes to `v2l-run`, graphs, progress, adapters, cancelling, errors, metrics, load."""

import importlib.util
import json
import os
import queue
import random
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import ml_dtypes
import numpy as np
import onnx
import pytest
import requests
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

import v2l
import v2l_tools
from conftest import IMAGE, MINIATURE, PROMPT, REQUEST, command
from v2l import _cache

PARAMETERS: Dict[str, Any] = {**REQUEST, "guidance_scale": "1"}
#: Stacks of requests: strengths of the one adapter.
STACKS = [0.0, 0.3, 0.6, 1.0]
#: What the server runs with where the backend was built for AddressSanitizer. What is not v2l's is not built for it.
SANITIZER: Dict[str, str] = {}
if "V2L_TEST_ASAN" in os.environ:
    # TBB, which comes with OpenVINO, else loads a library in a way that AddressSanitizer refuses.
    SANITIZER = {"TBB_ENABLE_SANITIZERS": "1", "LD_PRELOAD": os.environ["V2L_TEST_ASAN"], "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0"}


def free_ports(count: int) -> List[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def program() -> Path:
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tritonserver/bin/tritonserver"


def models(engines: Path, loras: Path, work: Path) -> Dict[str, str]:
    """Configurations by the names of their models. `video` answers once, `stream` also with progress, both from one engine directory;
    `kept` has caches; `step` and `encode` are graphs by themselves."""

    def configuration(count: int = 1, decoupled: bool = False, **parameters: object) -> str:
        given = {"adapters": loras, "threads": 1, **parameters}
        text = 'backend: "v2l"\n' + f"instance_group [{{ kind: KIND_CPU, count: {count} }}]\n"
        text += "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in given.items())
        return text + ("model_transaction_policy { decoupled: true }\n" if decoupled else "")

    return {
        "video": configuration(2, engines=engines),
        "stream": configuration(decoupled=True, engines=engines),
        "kept": configuration(engines=engines, fused_cache=work / "fused", prediction_cache=work / "predictions"),
        "step": configuration(2, engine=engines / "transformer.engine", graph="step", backend="ort", weights="f32"),
        "encode": configuration(engine=engines / "text_encoder.engine"),
    }


def ended(process: "subprocess.Popen[bytes]", log: Path, last: str) -> int:
    """Waits for a server that ends, and gives its exit code.

    With AddressSanitizer it hangs in its last destructors after it has unloaded any backend, even one that does nothing. There it is killed
    once it has said `last`, and its exit code is 0 if there is no report.
    """
    until = time.monotonic() + 60
    while SANITIZER and last not in log.read_text() and process.poll() is None:
        assert time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.1)
    if SANITIZER and process.poll() is None:
        process.kill()
        process.wait()
        return int("AddressSanitizer" in log.read_text())
    return process.wait(60)


class Server:
    """A `tritonserver` with some models."""

    def __init__(self, configurations: Dict[str, str], work: Path, backends: str = os.environ["V2L_TEST_BACKENDS"]) -> None:
        for name, text in configurations.items():
            (work / "repository" / name / "1").mkdir(parents=True)
            (work / "repository" / name / "config.pbtxt").write_text(text)
        self.http, self.grpc, self.metrics = free_ports(3)
        words = [program(), "--model-repository", work / "repository", "--backend-directory", backends]
        for name, port in (("http", self.http), ("grpc", self.grpc), ("metrics", self.metrics)):
            words += [f"--{name}-port", port, f"--{name}-address", "127.0.0.1"]
        self.log = work / "server.log"
        self.process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=open(self.log, "wb"),
            stderr=subprocess.STDOUT,
            env={**v2l_tools.environment(), "ORT_DISABLE_TELEMETRY": "1", **SANITIZER},
        )
        until = time.monotonic() + 120
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def private(self) -> int:
        """Bytes of memory that the server has alone, free pages given back."""
        pages = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in pages if line.startswith("Private_"))

    def counted(self, name: str, **labels: str) -> float:
        """What a counter says."""
        text = requests.get(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5).text
        for line in text.splitlines():
            if line.startswith(name + "{") and all(f'{label}="{value}"' in line for label, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no {name} {labels}:\n{text}")

    def stop(self) -> None:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        self.process.send_signal(signal.SIGTERM)
        assert ended(self.process, self.log, "Found 0 live models") == 0, self.log.read_text()[-4000:]

    def ready(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=5).ok
        except requests.ConnectionError:
            return False


@pytest.fixture(scope="module")
def loras(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    with v2l.Predictor(engines) as predictor:
        predictor.predict(MINIATURE / "references/squash", range=v2l.Range.SIGNED).save(folder / "squash.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(engines: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("triton")
    running = Server(models(engines, loras, work), work)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def expected(engines: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Dict[float, bytes]:
    """The video of each stack, by the module in this process."""
    out = tmp_path_factory.mktemp("expected") / "out.mp4"
    videos = {}
    with v2l.Pipeline(engines, threads=1) as pipeline:
        adapter = v2l.Adapter(pipeline.engine("transformer"), loras / "squash.safetensors")
        for strength in STACKS:
            pipeline.generate(PROMPT, image=IMAGE, file=out, adapters=[(adapter, strength)] if strength else [], **REQUEST)
            videos[strength] = out.read_bytes()
    assert len(set(videos.values())) == len(STACKS)
    return videos


def inputs(client: Any, prompt: str = PROMPT, **more: Any) -> List[Any]:
    """Inputs of a client's kind; bytes and text as BYTES, arrays as they are."""
    given: List[Any] = []
    for name, value in {"prompt": prompt, "image_bytes": IMAGE.read_bytes(), **more}.items():
        if value is None:
            continue
        array = value if isinstance(value, np.ndarray) else np.array([value if isinstance(value, bytes) else value.encode()], np.object_)
        kind = "UINT8" if array.dtype == np.uint8 else "BYTES"
        given.append(client.InferInput(name, list(array.shape), kind))
        given[-1].set_data_from_numpy(array)
    return given


def parameters(strength: float = 0.0, **more: Any) -> Dict[str, Any]:
    return {**PARAMETERS, **({"lora": f"squash={strength}"} if strength else {}), **more}


def test_http_and_grpc_give_the_bytes_of_the_command(server: Server, video: bytes, expected: Dict[float, bytes]) -> None:
    assert expected[0.0] == video
    for library, port in ((http, server.http), (grpc, server.grpc)):
        client = library.InferenceServerClient(f"127.0.0.1:{port}")
        outputs = [library.InferRequestedOutput("video"), library.InferRequestedOutput("frames")]
        made = client.infer("video", inputs(library), outputs=outputs, parameters=parameters())
        assert made.as_numpy("video").item() == video
        assert made.as_numpy("frames").shape == (9, 48, 48, 3)
        steered = client.infer("video", inputs(library), outputs=outputs[:1], parameters=parameters(0.6))
        assert steered.as_numpy("video").item() == expected[0.6]
        client.close()


def test_configuration_is_completed(server: Server) -> None:
    client = http.InferenceServerClient(f"127.0.0.1:{server.http}")
    config = client.get_model_config("stream")
    assert [one["name"] for one in config["input"]] == ["prompt", "image", "image_bytes", "last_image_bytes", "reference", "reference_bytes"]
    assert [one["name"] for one in config["output"]] == ["video", "frames", "latents", "progress"]
    assert config["model_transaction_policy"]["decoupled"]
    client.close()


def test_image_as_array_and_reference_as_bytes(server: Server, engines: Path, video: bytes, tmp_path: Path) -> None:
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    outputs = [grpc.InferRequestedOutput("video")]
    # The miniature's image by the library's own reader: the first frame of a video of one step is not the image.
    reference = (Path(os.environ["V2L_TEST_FIXTURES"]) / "sample/reference.mp4")
    made = client.infer(
        "video", inputs(grpc, reference_bytes=reference.read_bytes()), outputs=outputs, parameters=parameters(reference_range="signed")
    )
    with v2l.Predictor(engines, threads=1) as predictor, v2l.Pipeline(engines, threads=1) as pipeline:
        adapter = predictor.predict(reference, range=v2l.Range.SIGNED, seed=43, image=IMAGE)
        pipeline.generate(PROMPT, image=IMAGE, file=tmp_path / "out.mp4", adapters=[(adapter, 1.0)], **REQUEST)
    assert made.as_numpy("video").item() == (tmp_path / "out.mp4").read_bytes() != video
    grey = np.full((1, 48, 48, 3), 127, np.uint8)
    made = client.infer("video", inputs(grpc, image_bytes=None, image=grey), outputs=outputs, parameters=parameters())
    with v2l.Pipeline(engines, threads=1) as pipeline:
        pipeline.generate(PROMPT, image=grey, file=tmp_path / "grey.mp4", **REQUEST)
    assert made.as_numpy("video").item() == (tmp_path / "grey.mp4").read_bytes()
    client.close()


class Stream:
    """A gRPC stream, and what came through it."""

    def __init__(self, server: Server) -> None:
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        self.came: "queue.Queue[Tuple[Any, Optional[Exception]]]" = queue.Queue()
        self.client.start_stream(lambda result, error: self.came.put((result, error)))

    def ask(self, **more: Any) -> None:
        self.client.async_stream_infer(
            "stream", inputs(grpc), parameters=parameters(**more), enable_empty_final_response=True
        )


def test_decoupled_model_tells_its_progress(server: Server, video: bytes) -> None:
    stream = Stream(server)
    stream.ask()
    progress, made = [], None
    while True:
        result, error = stream.came.get(timeout=60)
        assert error is None
        if result.as_numpy("progress") is not None:
            progress.append(result.as_numpy("progress").tolist())
        if result.as_numpy("video") is not None:
            made = result.as_numpy("video").item()
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    assert made == video
    assert [4, 4, 4] in progress and progress[0][1] == 0
    stream.client.stop_stream()


def test_client_that_cancels_stops_the_work(server: Server, video: bytes) -> None:
    stream = Stream(server)
    stream.ask(num_inference_steps=200, num_frames=513)
    stream.came.get(timeout=60)
    began = time.monotonic()
    stream.client.stop_stream(cancel_requests=True)
    again = Stream(server)
    again.ask()
    while True:
        result, error = again.came.get(timeout=60)
        assert error is None
        if result.as_numpy("video") is not None:
            assert result.as_numpy("video").item() == video
            break
    assert time.monotonic() - began < 15
    again.client.stop_stream()


def test_wrong_requests_are_errors_and_the_server_lives(server: Server, loras: Path, video: bytes) -> None:
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    outputs = [grpc.InferRequestedOutput("video")]
    (loras.parent / "outside.safetensors").write_bytes((loras / "squash.safetensors").read_bytes())
    wrong: List[Tuple[Dict[str, Any], Dict[str, Any], str]] = [
        ({}, {"seed": "much"}, "seed"),
        ({}, {"seed": -1}, "seed"),
        ({}, {"num_frames": 0}, "num_frames"),
        ({}, {"guidance_scale": "nan"}, "guidance_scale"),
        ({}, {"nonsense": 1}, "nonsense"),
        ({}, {"width": 7}, "7x48"),
        ({}, {"lora": "another"}, "another"),
        ({}, {"lora": "../outside"}, "outside"),
        ({}, {"lora": str(loras.parent / "outside.safetensors")}, "outside"),
        ({}, {"lora": "/etc/passwd"}, "passwd"),
        ({}, {"lora": "squash=inf"}, "squash"),
        ({"image_bytes": b""}, {}, "image_bytes"),
        ({"image_bytes": b"#EXTM3U\nfile:///etc/passwd\n"}, {}, "image_bytes"),
        ({"image_bytes": b"\x89PNG\r\n\x1a\n" + b"\0" * 100}, {}, ""),
        ({"image": np.zeros((1, 4, 4, 4), np.uint8), "image_bytes": None}, {}, "image"),
        ({"reference_bytes": (b"\0\0\0\x18ftypisom" + b"\0" * 50)}, {}, ""),
    ]
    for more, given, named in wrong:
        with pytest.raises(InferenceServerException) as refused:
            client.infer("video", inputs(grpc, **more), outputs=outputs, parameters=parameters(**given))
        assert named in str(refused.value), refused.value
    assert client.infer("video", inputs(grpc), outputs=outputs, parameters=parameters()).as_numpy("video").item() == video
    client.close()


def test_latents_come_alone_without_being_decoded(server: Server, engines: Path) -> None:
    with v2l.Pipeline(engines, threads=1) as pipeline:
        latents = pipeline.generate(PROMPT, image=IMAGE, **REQUEST)["latents"]
    for library, port in ((http, server.http), (grpc, server.grpc)):
        client = library.InferenceServerClient(f"127.0.0.1:{port}")
        before = server.counted("v2l_phase_seconds_total", model="video", phase="decode")
        made = client.infer("video", inputs(library), outputs=[library.InferRequestedOutput("latents")], parameters=parameters())
        assert np.array_equal(made.as_numpy("latents"), latents)
        assert made.as_numpy("video") is None and made.as_numpy("frames") is None
        assert server.counted("v2l_phase_seconds_total", model="video", phase="decode") == before
        outputs = [library.InferRequestedOutput(name) for name in ("frames", "latents")]
        made = client.infer("video", inputs(library), outputs=outputs, parameters=parameters())
        assert np.array_equal(made.as_numpy("latents"), latents) and made.as_numpy("frames").shape == (9, 48, 48, 3)
        assert server.counted("v2l_phase_seconds_total", model="video", phase="decode") > before
        client.close()


TYPES = {
    "FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32, "INT16": np.int16, "INT8": np.int8,
    "UINT64": np.uint64, "UINT32": np.uint32, "UINT16": np.uint16, "UINT8": np.uint8, "BOOL": np.bool_,
}
#: Those that graphs for OpenVINO have.
OPENVINO = ("FP32", "INT64", "INT32", "INT8", "UINT8", "BOOL")
HALVES = ("FP16", "BF16")


def write_graph(kinds: Sequence[str], file: Path) -> None:
    """A graph that gives each input of some types twice over, and the sum of one without axes with another."""
    element = {"FP32": "FLOAT", "FP64": "DOUBLE", "FP16": "FLOAT16", "BF16": "BFLOAT16"}
    ports, nodes = [], []
    for kind in kinds:
        number = getattr(onnx.TensorProto, element.get(kind, kind))
        ports.append((kind, number))
        nodes.append(onnx.helper.make_node("Concat", [f"x_{kind}"] * 2, [f"y_{kind}"], axis=0))
    taken = [onnx.helper.make_tensor_value_info(f"x_{kind}", number, ["n"]) for kind, number in ports]
    given = [onnx.helper.make_tensor_value_info(f"y_{kind}", number, ["m"]) for kind, number in ports]
    nodes.append(onnx.helper.make_node("Add", ["scalar", "scalar"], ["sum"]))
    taken.append(onnx.helper.make_tensor_value_info("scalar", onnx.TensorProto.FLOAT, []))
    given.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, []))
    graph = onnx.helper.make_graph(nodes, "types", taken, given)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9), file)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of graphs of every type, on ONNX Runtime and OpenVINO, and the miniature on OpenVINO."""
    work = tmp_path_factory.mktemp("typed")
    for name, kinds, flags in (("types", list(TYPES), []), ("halves", HALVES, []), ("openvino", OPENVINO, ["--backend", "openvino"])):
        write_graph(kinds, work / f"{name}.onnx")
        compiled = command("v2l-compile", work / f"{name}.onnx", "-o", work / f"{name}.engine", *flags)
        assert compiled.returncode == 0, compiled.stderr
    engines = _cache.engines(MINIATURE, work / "cache", {}, {"backend": "openvino"}, None, None)

    def configuration(**parameters: object) -> str:
        return models(engines, work, work)["video"].split("parameters")[0] + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in parameters.items()
        )

    def declared(place: str, names: Dict[str, str]) -> str:
        ports = [f'{{ name: "{name}" data_type: TYPE_{kind} dims: [{1 if name in ("scalar", "sum") else -1}] }}' for name, kind in names.items()]
        return f"{place} [{', '.join(ports)}]\n"

    taken, given = ({**{f"{letter}_{kind}": kind for kind in HALVES}, more: "FP32"} for letter, more in (("x", "scalar"), ("y", "sum")))
    given["sum"] = "BF16"
    served = {
        "types": configuration(engine=work / "types.engine"),
        "halves": configuration(engine=work / "halves.engine"),
        "declared": configuration(engine=work / "halves.engine") + declared("input", taken) + declared("output", given),
        "openvino": configuration(engine=work / "openvino.engine", backend="openvino"),
        "video": configuration(engines=engines, backend="openvino", threads=1),
    }
    running = Server(served, work)
    yield running
    running.stop()


def some(kind: str) -> "np.ndarray[Any, Any]":
    """Numbers of a type, its largest and smallest among them."""
    if kind == "BOOL":
        return np.array([True, False, True])
    if kind in HALVES:
        return np.array([0.5, -3.0, 1.0078125 if kind == "BF16" else 1.0009765625], np.float16 if kind == "FP16" else ml_dtypes.bfloat16)
    limits: Any = (np.finfo if kind.startswith("FP") else np.iinfo)(TYPES[kind])
    return np.array([3, limits.max, limits.min], TYPES[kind])


def clients(server: Server) -> Iterator[Tuple[Any, Any]]:
    for library, port in ((http, server.http), (grpc, server.grpc)):
        client = library.InferenceServerClient(f"127.0.0.1:{port}")
        yield library, client
        client.close()


def test_graphs_take_and_give_numbers_of_every_type(typed: Server) -> None:
    scalar = np.array([1.5], np.float32)
    for library, client in clients(typed):
        for model, kinds in (("types", [kind for kind in TYPES if kind != "FP16"]), ("openvino", OPENVINO)):
            tensors = {f"x_{kind}": some(kind) for kind in kinds}
            if model == "openvino":
                tensors["x_INT64"] = np.array([3, 2**31 - 1, -(2**31)])
            else:
                # Graphs take and give numbers in 16 bits as FP32.
                tensors["x_FP16"] = some("FP16").astype(np.float32)
            made = ran(library, client, model, {**tensors, "scalar": scalar})
            for name, array in tensors.items():
                found = made.as_numpy(name.replace("x", "y"))
                assert found.dtype == array.dtype and np.array_equal(found, np.concatenate([array, array])), (model, name, found)
            assert made.as_numpy("sum").tolist() == [3.0]


def test_halves_are_taken_and_given_where_the_configuration_declares_them(typed: Server) -> None:
    for library, client in clients(typed):
        asked = []
        for name, kind, array in (("x_FP16", "FP16", some("FP16")), ("x_BF16", "BF16", some("BF16")), ("scalar", "FP32", np.float32([1 / 3]))):
            asked.append(library.InferInput(name, list(array.shape), kind))
            asked[-1].set_data_from_numpy(array)
        made = client.infer("declared", asked)
        for kind in HALVES:
            found = made.as_numpy(f"y_{kind}")
            assert made.get_output(f"y_{kind}")["datatype"] == kind if library is http else made.get_output(f"y_{kind}").datatype == kind
            assert np.array_equal(found.astype(np.float32), np.concatenate([some(kind)] * 2).astype(np.float32)), (kind, found)
        # 2/3, rounded to the 8 bits of BF16.
        assert made.as_numpy("sum").tolist() == [0.66796875]
        with pytest.raises(InferenceServerException, match="x_FP16|x_BF16"):
            client.infer("halves", asked)


def test_openvino_refuses_what_it_would_cut_off_and_serves_videos(typed: Server, tmp_path: Path) -> None:
    tensors = {f"x_{kind}": some(kind) for kind in OPENVINO}
    for library, client in clients(typed):
        with pytest.raises(InferenceServerException, match="x_INT64"):
            ran(library, client, "openvino", {**tensors, "scalar": np.array([1.5], np.float32)})
    directory = typed.log.parent / "cache"
    (engines,) = [path.parent for path in directory.glob("*/engines/pipeline.json")]
    with v2l.Pipeline(engines, threads=1, backend=v2l.Backend.OPENVINO) as pipeline:
        latents = pipeline.generate(PROMPT, image=IMAGE, **REQUEST)["latents"]
    client = grpc.InferenceServerClient(f"127.0.0.1:{typed.grpc}")
    made = client.infer("video", inputs(grpc), outputs=[grpc.InferRequestedOutput("latents")], parameters=parameters())
    assert np.array_equal(made.as_numpy("latents"), latents)
    client.close()


def tensors_of(batch: int) -> Dict[str, "np.ndarray[Any, Any]"]:
    """Some numbers for a step of the miniature."""
    draw = np.random.default_rng(7)
    shapes = {
        "hidden_states": (batch, 3, 16, 6, 6),
        "inpaint_latents": (batch, 3, 17, 6, 6),
        "encoder_hidden_states": (batch, 16, 64),
        "image_rotary_emb_cos": (27, 32),
        "image_rotary_emb_sin": (27, 32),
    }
    given = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**given, "timestep": np.full(batch, 500, np.int64)}


def ran(library: Any, client: Any, model: str, tensors: Dict[str, Any], **given: Any) -> Any:
    asked = []
    for name, array in tensors.items():
        kind = next(kind for kind, dtype in TYPES.items() if array.dtype == dtype)
        asked.append(library.InferInput(name, list(array.shape), kind))
        asked[-1].set_data_from_numpy(array)
    return client.infer(model, asked, parameters=given or None)


def test_graph_of_an_engine_takes_named_tensors_and_adapters(server: Server, engines: Path, loras: Path) -> None:
    described = http.InferenceServerClient(f"127.0.0.1:{server.http}")
    step = described.get_model_config("step")
    assert {one["name"]: (one["data_type"], one["dims"]) for one in step["input"]}["hidden_states"] == ("TYPE_FP32", [-1, -1, 16, -1, -1])
    config = described.get_model_config("encode")
    assert config["max_batch_size"] == 0
    assert [(one["name"], one["data_type"]) for one in config["input"]] == [("input_ids", "TYPE_INT64")]
    described.close()
    with v2l.Engine(engines / "transformer.engine", threads=1, weights=v2l.Weights.F32) as engine, v2l.Session(engine, "step") as session:
        adapter = v2l.Adapter(engine, loras / "squash.safetensors")
        for batch in (1, 2):
            tensors = tensors_of(batch)
            plain, steered = session.run(tensors, []), session.run(tensors, [(adapter, 0.5)])
            assert not np.array_equal(plain["sample"], steered["sample"])
            for library, port in ((http, server.http), (grpc, server.grpc)):
                client = library.InferenceServerClient(f"127.0.0.1:{port}")
                assert np.array_equal(ran(library, client, "step", tensors).as_numpy("sample"), plain["sample"])
                found = ran(library, client, "step", tensors, lora="squash=0.5").as_numpy("sample")
                assert np.array_equal(found, steered["sample"])
                client.close()
        client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        name = "hidden_states"
        for wrong, given, named in (
            ({**tensors, name: tensors[name][:, :1]}, {}, name),
            ({key: value for key, value in tensors.items() if key != name}, {}, name),
            (tensors, {"lora": "another"}, "another"),
            (tensors, {"seed": 1}, "seed"),
        ):
            with pytest.raises(InferenceServerException) as refused:
                ran(grpc, client, "step", wrong, **given)
            assert named in str(refused.value), refused.value
        assert np.array_equal(ran(grpc, client, "step", tensors).as_numpy("sample"), plain["sample"])
        client.close()


def test_metrics_tell_phases_steps_swaps_and_hits(server: Server) -> None:
    client = http.InferenceServerClient(f"127.0.0.1:{server.http}")
    outputs = [http.InferRequestedOutput("video")]
    reference = (Path(os.environ["V2L_TEST_FIXTURES"]) / "sample/reference.mp4").read_bytes()

    def counts() -> Dict[str, float]:
        found = {f"{kind} {cache}": server.counted(f"v2l_cache_{kind}_total", model="kept", cache=cache)
                 for kind in ("hits", "misses") for cache in ("prediction", "fused")}
        found.update({name: server.counted(f"v2l_{name}_total", model="kept") for name in ("steps", "swaps")})
        return found

    assert set(counts().values()) == {0.0}
    first = client.infer("kept", inputs(http, reference_bytes=reference), outputs=outputs, parameters=parameters()).as_numpy("video").item()
    assert counts() == {"hits prediction": 0, "misses prediction": 1, "hits fused": 0, "misses fused": 1, "steps": 4, "swaps": 1}
    client.infer("kept", inputs(http), outputs=outputs, parameters=parameters())
    again = client.infer("kept", inputs(http, reference_bytes=reference), outputs=outputs, parameters=parameters()).as_numpy("video").item()
    assert again == first
    assert counts() == {"hits prediction": 1, "misses prediction": 1, "hits fused": 1, "misses fused": 1, "steps": 12, "swaps": 3}
    seconds = {phase: server.counted("v2l_phase_seconds_total", model="kept", phase=phase)
               for phase in ("predict", "swap", "encode_text", "encode_condition", "denoise", "decode", "save", "total")}
    assert all(spent > 0 for spent in seconds.values()), seconds
    assert sum(seconds.values()) - seconds["total"] <= seconds["total"] < 120, seconds
    client.close()


def test_wrong_configurations_are_refused(engines: Path, tmp_path: Path) -> None:
    wrong = {
        "both": ({"engines": engines, "engine": engines / "transformer.engine"}, "both engines and engine"),
        "graph": ({"engines": engines, "graph": "step"}, "graph without engine"),
        "unknown": ({"engine": engines / "transformer.engine", "graph": "leap"}, "leap"),
        "threads": ({"engines": engines, "threads": "some"}, "threads"),
        "backend": ({"engines": engines, "backend": "directml"}, "directml"),
        "nonsense": ({"engines": engines, "nonsense": "1"}, "nonsense"),
        "form": ({"engine": engines / "transformer.engine", "backend": "openvino"}, "OpenVINO"),
        "type": ({"engine": engines / "text_encoder.engine"}, "TYPE_FP32 or TYPE_FP16 or TYPE_BF16"),
        "port": ({"engine": engines / "text_encoder.engine"}, "the input ids"),
    }
    declared = {
        "type": 'output [{ name: "last_hidden_state" data_type: TYPE_INT8 dims: [-1, -1, -1] }]\n',
        "port": 'input [{ name: "ids" data_type: TYPE_INT64 dims: [-1, -1] }]\n',
    }
    for name, (given, _) in wrong.items():
        (tmp_path / name / "1").mkdir(parents=True)
        lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in given.items()]
        (tmp_path / name / "config.pbtxt").write_text('backend: "v2l"\ninstance_group [{ kind: KIND_CPU }]\n' + "".join(lines) + declared.get(name, ""))
    words = [program(), "--model-repository", tmp_path, "--backend-directory", os.environ["V2L_TEST_BACKENDS"]]
    words += ["--allow-http", "false", "--allow-grpc", "false", "--allow-metrics", "false"]
    log = tmp_path / "server.log"
    environment = {**v2l_tools.environment(), **SANITIZER}
    process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=open(log, "wb"), stderr=subprocess.STDOUT, env=environment)
    assert (ended(process, log, "creating server: ") == 0) == bool(SANITIZER), log.read_text()[-4000:]
    for name, (_, named) in wrong.items():
        failed = [line for line in log.read_text().splitlines() if f"failed to load '{name}'" in line]
        assert failed and named in failed[0], (name, failed)


@pytest.mark.skipif("V2L_TEST_PLANTED" not in os.environ, reason="tests/triton/check --sanitize has a backend with a planted error")
def test_sanitizer_sees_a_planted_error(engines: Path, loras: Path, tmp_path: Path) -> None:
    planted = Server({"step": models(engines, loras, tmp_path)["step"]}, tmp_path, os.environ["V2L_TEST_PLANTED"])
    client = http.InferenceServerClient(f"127.0.0.1:{planted.http}")
    with pytest.raises(Exception):
        ran(http, client, "step", tensors_of(1))
    assert planted.process.wait(60) != 0
    assert "AddressSanitizer: heap-buffer-overflow" in planted.log.read_text()


def test_two_hundred_requests_of_eight_clients_get_each_their_own_video(server: Server, expected: Dict[float, bytes]) -> None:
    draw = random.Random(8)
    wanted = [draw.choice(STACKS) for _ in range(200)]
    local = threading.local()

    def ask(strength: float) -> bool:
        if not hasattr(local, "client"):
            local.client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        outputs = [grpc.InferRequestedOutput("video")]
        made = local.client.infer("video", inputs(grpc), outputs=outputs, parameters=parameters(strength))
        same: bool = made.as_numpy("video").item() == expected[strength]
        return same

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, wanted)) == [True] * 200
    client = http.InferenceServerClient(f"127.0.0.1:{server.http}")
    statistics = client.get_inference_statistics("video")["model_stats"][0]["inference_stats"]
    assert statistics["success"]["count"] >= 200
    # The clock is the server's: a queue of hours would say that it is not.
    assert statistics["queue"]["ns"] / statistics["queue"]["count"] < 600e9, json.dumps(statistics)
    client.close()
