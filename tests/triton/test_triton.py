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
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pytest
import requests
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

import v2l
import v2l_tools
from conftest import IMAGE, MINIATURE, PROMPT, REQUEST

PARAMETERS: Dict[str, Any] = {**REQUEST, "guidance_scale": "1"}
#: Stacks of requests: strengths of the one adapter.
STACKS = [0.0, 0.3, 0.6, 1.0]
#: What the server runs with where the backend was built for AddressSanitizer. What is not v2l's is not built for it.
SANITIZER: Dict[str, str] = {}
if "V2L_TEST_ASAN" in os.environ:
    SANITIZER = {"LD_PRELOAD": os.environ["V2L_TEST_ASAN"], "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0"}


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
        if SANITIZER:
            # With AddressSanitizer the server hangs in its last destructors after it has unloaded any backend, one that does nothing, too.
            until = time.monotonic() + 60
            while "Found 0 live models" not in self.log.read_text():
                assert time.monotonic() < until, self.log.read_text()[-4000:]
                time.sleep(0.1)
            self.process.kill()
            self.process.wait()
        else:
            assert self.process.wait(60) == 0, self.log.read_text()[-4000:]
        assert "AddressSanitizer" not in self.log.read_text(), self.log.read_text()[-4000:]

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


TYPES = {"FP32": np.float32, "INT64": np.int64}


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


@pytest.mark.skipif(bool(SANITIZER), reason="with AddressSanitizer the server hangs when it ends, as in Server.stop")
def test_wrong_configurations_are_refused(engines: Path, tmp_path: Path) -> None:
    wrong = {
        "both": ({"engines": engines, "engine": engines / "transformer.engine"}, "both engines and engine"),
        "graph": ({"engines": engines, "graph": "step"}, "graph without engine"),
        "unknown": ({"engine": engines / "transformer.engine", "graph": "leap"}, "leap"),
        "threads": ({"engines": engines, "threads": "some"}, "threads"),
        "backend": ({"engines": engines, "backend": "directml"}, "directml"),
        "nonsense": ({"engines": engines, "nonsense": "1"}, "nonsense"),
    }
    for name, (given, _) in wrong.items():
        (tmp_path / name / "1").mkdir(parents=True)
        lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in given.items()]
        (tmp_path / name / "config.pbtxt").write_text('backend: "v2l"\ninstance_group [{ kind: KIND_CPU }]\n' + "".join(lines))
    words = [program(), "--model-repository", tmp_path, "--backend-directory", os.environ["V2L_TEST_BACKENDS"]]
    words += ["--allow-http", "false", "--allow-grpc", "false", "--allow-metrics", "false"]
    ended = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True, timeout=60, env=v2l_tools.environment())
    assert ended.returncode != 0
    for name, (_, named) in wrong.items():
        failed = [line for line in ended.stdout.splitlines() if f"failed to load '{name}'" in line]
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
