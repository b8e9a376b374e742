"""The Triton backend in a real `tritonserver`: equal bytes to `v2l-run`, progress, adapters, cancelling, errors, load."""

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


def free_ports(count: int) -> List[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Server:
    """A `tritonserver` with two models over one engine directory: `video` answers once, `stream` also with progress."""

    def __init__(self, engines: Path, loras: Path, work: Path) -> None:
        for name, decoupled, count in (("video", False, 2), ("stream", True, 1)):
            (work / "repository" / name / "1").mkdir(parents=True)
            parameters = {"engines": engines, "adapters": loras, "threads": "1"}
            text = 'backend: "v2l"\n' + f"instance_group [{{ kind: KIND_CPU, count: {count} }}]\n"
            text += "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in parameters.items())
            text += "model_transaction_policy { decoupled: true }\n" if decoupled else ""
            (work / "repository" / name / "config.pbtxt").write_text(text)
        self.http, self.grpc, self.metrics = free_ports(3)
        spec = importlib.util.find_spec("pytriton")
        assert spec is not None and spec.origin is not None
        program = Path(spec.origin).parent / "tritonserver/bin/tritonserver"
        words = [program, "--model-repository", work / "repository", "--backend-directory", os.environ["V2L_TEST_BACKENDS"]]
        for name, port in (("http", self.http), ("grpc", self.grpc), ("metrics", self.metrics)):
            words += [f"--{name}-port", port, f"--{name}-address", "127.0.0.1"]
        self.log = work / "server.log"
        self.process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=open(self.log, "wb"),
            stderr=subprocess.STDOUT,
            env={**v2l_tools.environment(), "ORT_DISABLE_TELEMETRY": "1"},
        )
        until = time.monotonic() + 60
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()[-4000:]
            time.sleep(0.1)

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
    running = Server(engines, loras, tmp_path_factory.mktemp("triton"))
    yield running
    assert running.process.poll() is None, running.log.read_text()[-4000:]
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()[-4000:]


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
    assert [one["name"] for one in config["output"]] == ["video", "frames", "progress"]
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
