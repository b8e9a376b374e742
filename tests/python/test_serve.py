"""`v2l serve` without Ray: the dialect, by OpenAI's client and by plain HTTP; hostile clients; workers and servers that are killed."""

import base64
import contextlib
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import httpx
import openai
import pytest
import requests

import v2l
from conftest import COMMANDS, FIXTURES, IMAGE, MINIATURE, PROMPT, command, free_port

FORM = {"prompt": PROMPT, "num_frames": "9", "num_inference_steps": "4", "guidance_scale": "1", "seed": "43"}
#: A job of some seconds, so that something can happen to it.
LONG = {**FORM, "num_inference_steps": "100", "num_frames": "129"}


class Server:
    """A server in a process of its own."""

    def __init__(self, engines: Path, data: Path, *flags: object, environment: Optional[Dict[str, str]] = None) -> None:
        self.port, self.data = free_port(), data
        words = ["serve", engines, "--model", "miniature", "--data", data, "--port", self.port, *flags]
        if "--ray" not in flags:
            words.append("--no-ray")
        self._log = open(data.with_suffix(".log"), "ab")
        self.process = subprocess.Popen(
            [str(COMMANDS / "v2l"), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        try:
            self._begin(180 if "--ray" in flags else 60)
        except BaseException:
            # Whoever waits for it does not get it, and cannot end it.
            self.stop()
            raise

    def _begin(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None and time.monotonic() < until, self.data.with_suffix(".log").read_text()
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/health").status_code == 200:
                    return
            time.sleep(0.05)

    def create(self, fields: Dict[str, str] = FORM, **more: Any) -> httpx.Response:
        with open(IMAGE, "rb") as image:
            return self.client.post("/v1/videos", data=fields, files={"input_reference": image, **more})

    def wait(self, id: str, *statuses: str, seconds: float = 60) -> Dict[str, Any]:
        until = time.monotonic() + seconds
        while True:
            video: Dict[str, Any] = self.client.get(f"/v1/videos/{id}").json()
            if video["status"] in (statuses or ("completed", "failed")):
                return video
            assert time.monotonic() < until, video
            time.sleep(0.02)

    def content(self, id: str) -> bytes:
        answer = self.client.get(f"/v1/videos/{id}/content")
        assert answer.status_code == 200, answer.text
        return answer.content

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(60)
        self.client.close()
        self._log.close()
        return code


@pytest.fixture(scope="module")
def loras(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter that was predicted, and one that is none."""
    folder = tmp_path_factory.mktemp("loras")
    reference = MINIATURE / "references/squash"
    with v2l.Predictor(engines) as predictor:
        predictor.predict(reference, range=v2l.Range.SIGNED).save(folder / "squash.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(engines: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("served") / "data"
    running = Server(engines, data, "--lora-folder", loras, "--max-upload-mib", 8)
    yield running
    assert running.stop() == 0


def by_command(engines: Path, out: Path, *flags: object) -> bytes:
    """The video of a request by the command, in the words of FORM."""
    words = ["--image", IMAGE, "--prompt", PROMPT, "--num-frames", 9, "--steps", 4, "--guidance", 1, "--seed", 43]
    made = command("v2l-run", "--engine", engines, *words, *flags, "-o", out)
    assert made.returncode == 0, made.stderr
    return out.read_bytes()


def test_openai_client_makes_polls_lists_loads_and_deletes(server: Server, video: bytes) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["miniature"]
    extra = {"num_frames": 9, "num_inference_steps": 4, "guidance_scale": 1, "seed": 43}
    made = client.videos.create_and_poll(
        model="miniature", prompt=PROMPT, input_reference=IMAGE, size="48x48", extra_body=extra, poll_interval_ms=50  # type: ignore[arg-type]
    )
    assert (made.status, made.progress, made.size, made.error) == ("completed", 100, "48x48", None)
    assert client.videos.download_content(made.id).read() == video
    assert made.id in [listed.id for listed in client.videos.list(limit=2)]
    steered = client.videos.create_and_poll(
        prompt=PROMPT, input_reference=IMAGE, extra_body={**extra, "lora": {"name": "squash", "scale": 0.5}}, poll_interval_ms=50
    )
    assert steered.status == "completed" and client.videos.download_content(steered.id).read() != video
    assert client.videos.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.create(model="another", prompt=PROMPT)


def test_json_with_data_url_is_the_form_with_a_file(server: Server, video: bytes) -> None:
    url = "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
    body = {"prompt": PROMPT, "num_frames": 9, "num_inference_steps": 4, "guidance_scale": 1, "seed": 43}
    answer = requests.post(f"{server.url}/v1/videos/sync", json={**body, "image_reference": {"image_url": url}}, timeout=60)
    assert answer.status_code == 200 and answer.content == video
    assert answer.headers["X-Model"] == "miniature" and float(answer.headers["X-Inference-Time-S"]) > 0


def test_lora_by_name_by_path_and_by_default_gives_the_bytes_of_the_command(
    server: Server, engines: Path, loras: Path, video: bytes, tmp_path: Path
) -> None:
    expected = by_command(engines, tmp_path / "lora.mp4", "--lora", f"{loras}/squash.safetensors=0.5")
    assert expected != video
    entries: List[Any] = [{"name": "squash", "scale": 0.5}, {"lora_path": "squash.safetensors", "lora_scale": "0.5"}]
    for lora in (entries[0], [entries[1]]):
        made = server.create({**FORM, "lora": json.dumps(lora)})
        assert made.status_code == 200, made.text
        assert server.wait(made.json()["id"])["status"] == "completed"
        assert server.content(made.json()["id"]) == expected
    halves = {"lora_nickname": ["squash"], "lora_path": "squash.safetensors", "strength": 0.5}
    assert server.client.post("/v1/set_lora", json=halves).status_code == 200
    listed = server.client.get("/v1/list_loras").json()
    assert listed["loaded_adapters"] == [{"nickname": "squash", "path": "squash.safetensors"}]
    assert listed["active"]["all"][0]["strength"] == 0.5

    def now() -> bytes:
        id = server.create().json()["id"]
        assert server.wait(id)["status"] == "completed"
        return server.content(id)

    assert now() == expected
    assert server.client.post("/v1/unmerge_lora_weights").status_code == 200
    assert now() == video
    assert server.client.post("/v1/merge_lora_weights").status_code == 200
    assert server.client.post("/v1/set_lora", json={"lora_nickname": "another"}).status_code == 400
    assert now() == expected
    server.client.post("/v1/unmerge_lora_weights")


def test_reference_is_predicted_from_and_gives_the_bytes_of_the_command(server: Server, engines: Path, tmp_path: Path) -> None:
    reference = FIXTURES / "sample/reference.mp4"
    expected = by_command(engines, tmp_path / "out.mp4", "--reference", reference, "--reference-range", "signed")
    with open(reference, "rb") as file:
        made = server.create({**FORM, "reference_range": "signed"}, reference_video=file)
    assert made.status_code == 200, made.text
    assert server.wait(made.json()["id"])["status"] == "completed"
    assert server.content(made.json()["id"]) == expected


def test_fields_are_checked_before_a_job_is_made(server: Server) -> None:
    for fields, status, named in (
        ({"prompt": ""}, 200, ""),
        ({"size": "48x"}, 400, "size"),
        ({"size": "99999x48"}, 400, "size"),
        ({"width": "48"}, 400, "height"),
        ({"num_frames": "0"}, 400, "num_frames"),
        ({"num_frames": "1000000"}, 400, "num_frames"),
        ({"num_inference_steps": "1e9"}, 400, "num_inference_steps"),
        ({"guidance_scale": "nan"}, 400, "guidance_scale"),
        ({"seed": "-1"}, 400, "seed"),
        ({"seed": str(2**64)}, 400, "seed"),
        ({"nonsense": "1"}, 400, "nonsense"),
        ({"true_cfg_scale": "3"}, 400, "true_cfg_scale"),
        ({"output_path": "/tmp/x"}, 400, "output_path"),
        ({"enable_teacache": ""}, 200, ""),
        ({"model": "another"}, 404, "model"),
        ({"lora": "squash"}, 200, ""),
        ({"lora": '{"name": "another"}'}, 400, "lora"),
        ({"lora": '{"name": "squash", "scale": "much"}'}, 400, "lora"),
        ({"lora": "[" * 100000}, 400, "lora"),
        ({"lora[name]": "squash", "lora[scale]": "1"}, 200, ""),
        ({"lora": '{"name": "squash", "target": "transformer"}'}, 200, ""),
        ({"lora": '{"name": "squash", "target": "transformer_2"}'}, 400, "one transformer"),
        ({"extra_params": '{"rank": 3}'}, 400, "extra_params"),
        ({"prompt": "x" * 20001}, 400, "prompt"),
    ):
        answer = server.create({**FORM, **fields})
        assert answer.status_code == status, (fields, answer.text)
        if status == 200:
            assert server.client.delete(f"/v1/videos/{answer.json()['id']}").json()["deleted"]
        else:
            assert named in json.dumps(answer.json()["error"]), answer.text
    missing = server.client.post("/v1/videos", json={"seed": 1})
    assert (missing.status_code, missing.json()["error"]["param"]) == (422, "prompt")


def test_length_in_seconds_becomes_frames_that_the_model_makes(server: Server) -> None:
    made = server.create({"prompt": PROMPT, "seconds": "1", "num_inference_steps": "1", "guidance_scale": "1"}).json()
    assert (made["num_frames"], made["fps"]) == (9, 8.0)
    assert server.wait(made["id"])["status"] == "completed"
    assert made["seed"] == server.client.get(f"/v1/videos/{made['id']}").json()["seed"]


def test_running_and_waiting_videos_are_cancelled(server: Server) -> None:
    running, waiting = server.create(LONG).json()["id"], server.create(LONG).json()["id"]
    server.wait(running, "in_progress")
    assert server.client.get(f"/v1/videos/{running}/content").status_code == 404
    began = time.monotonic()
    for id in (waiting, running):
        assert server.client.delete(f"/v1/videos/{id}").status_code == 200
        assert server.client.get(f"/v1/videos/{id}").status_code == 404
    short = server.create().json()["id"]
    assert server.wait(short)["status"] == "completed"
    assert time.monotonic() - began < 10
    assert not list((server.data / "videos").glob(f"{running}*")) and not (server.data / "uploads" / running).exists()


def test_client_that_leaves_cancels_its_synchronous_video(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/videos/sync", json={key: LONG[key] for key in LONG}, timeout=0.7)
    until = time.monotonic() + 10
    while server.client.get("/v1/videos").json()["data"][:1] and time.monotonic() < until:
        if all(one["status"] not in ("queued", "in_progress") for one in server.client.get("/v1/videos").json()["data"]):
            break
        time.sleep(0.05)
    assert time.monotonic() < until


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("video.mp4", b"\0" * 50_000_000)
    return out.getvalue()


def video_bomb(folder: Path) -> bytes:
    """A few kilobytes of mp4 that decode to some gigabytes of pixels."""
    import v2l_tools

    out = folder / "bomb.mp4"
    source = "color=black:size=4096x4096:rate=25:duration=3"
    words = [v2l_tools.libraries()["V2L_FFMPEG"], "-v", "error", "-f", "lavfi", "-i", source, "-preset", "ultrafast", str(out)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    assert out.stat().st_size < 1 << 20
    return out.read_bytes()


def test_hostile_files_are_refused_and_never_become_jobs(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(IMAGE.read_bytes())
    before = server.client.get("/metrics").text.split('v2l_jobs{status="completed"}')[1].split("\n")[0]

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/executed",)

    huge_png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0)
    for name, content in (
        ("playlist", f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n".encode()),
        ("script", f"ffconcat version 1.0\nfile '{secret}'\n".encode()),
        ("zip bomb", zipped()),
        ("pickle", pickle.dumps(Evil())),
        ("video bomb", video_bomb(tmp_path)),
        ("cut off", (FIXTURES / "sample/reference.mp4").read_bytes()[:900]),
        ("svg", f'<svg><image href="file://{secret}"/></svg>'.encode()),
        ("empty", b""),
    ):
        for field in ("reference_video", "input_reference"):
            answer = server.client.post("/v1/videos", data=FORM, files={field: ("../../x.mp4", content, "video/mp4")})
            assert answer.status_code == 400, (name, field, answer.text)
            assert str(server.data) not in answer.text
    for url in ("file:///etc/passwd", "http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:1/x.png", "/etc/passwd", "data:,x"):
        for field, member in (("image_reference", "image_url"), ("video_reference", "video_url")):
            answer = server.client.post("/v1/videos", json={"prompt": PROMPT, field: {member: url}})
            assert answer.status_code == 400, (url, answer.text)
        answer = server.client.post("/v1/videos", data={**FORM, "input_reference": url})
        assert answer.status_code == 400, (url, answer.text)
    # What is wrong only once it is decoded fails its job, and that alone.
    picture = server.client.post("/v1/videos", data=FORM, files={"input_reference": huge_png})
    if picture.status_code == 200:
        failed = server.wait(picture.json()["id"])
        assert failed["status"] == "failed" and str(server.data) not in json.dumps(failed)
    assert server.client.get("/metrics").text.split('v2l_jobs{status="completed"}')[1].split("\n")[0] == before
    assert not (tmp_path / "executed").exists()
    assert [path.name for path in (server.data / "uploads").iterdir() if not server.client.get(f"/v1/videos/{path.name}").is_success] == []


def test_adapters_outside_their_folder_are_never_opened(server: Server, loras: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((loras / "squash.safetensors").read_bytes())
    (loras / "link.safetensors").symlink_to(outside)

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/executed",)

    (loras / "pickle.safetensors").write_bytes(pickle.dumps(Evil()))
    (loras / "model.pt").write_bytes(pickle.dumps(Evil()))
    try:
        for lora in (
            {"path": str(outside)},
            {"path": f"../{tmp_path.name}/outside.safetensors"},
            {"path": os.path.relpath(outside, loras)},
            {"name": "link"},
            {"path": "file://" + str(loras / "squash.safetensors")},
            {"path": "http://169.254.169.254/x.safetensors"},
            {"name": "model.pt"},
            {"name": "pickle"},
            {"path": "/proc/self/environ"},
            {"name": "a\0b"},
            {"name": "x" * 5000},
            {"name": ["squash"]},
            17,
        ):
            answer = server.create({**FORM, "lora": json.dumps(lora)})
            assert answer.status_code == 400, (lora, answer.text)
            assert str(loras) not in answer.text or str(loras) in str(lora)
            if isinstance(lora, dict) and isinstance(lora.get("name", ""), str):
                body = {"lora_nickname": lora.get("name"), "lora_path": lora.get("path")}
                assert server.client.post("/v1/set_lora", json=body).status_code == 400
    finally:
        for name in ("link.safetensors", "pickle.safetensors", "model.pt"):
            (loras / name).unlink()
    assert not (tmp_path / "executed").exists()


def raw(server: Server, request: bytes, more: Iterator[bytes] = iter(())) -> bytes:
    """What the server answers to bytes; it may close before it has read all of them."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
            for chunk in more:
                connection.sendall(chunk)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                answer += chunk
                if b"\r\n\r\n" in answer and b"connection: close" not in answer.lower():
                    break
        return answer


def test_floods_are_refused_without_being_kept(server: Server) -> None:
    post = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    assert b" 413 " in raw(server, post + b"Content-Length: 10737418240\r\n\r\n")[:20]
    # Ten gigabytes in pieces, as far as the server takes them.
    sent = [0]

    def pieces() -> Iterator[bytes]:
        block = b"100000\r\n" + b"\0" * 0x100000 + b"\r\n"
        while sent[0] < 10 << 30:
            sent[0] += 0x100000
            yield block

    head = b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="x.png"\r\n\r\n'
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(head):x}\r\n".encode() + head + b"\r\n"
    answer = raw(server, chunked, pieces())
    assert answer == b"" or b" 413 " in answer[:20], answer[:200]
    assert sent[0] < 64 << 20
    many = b"".join(b"X-%d: y\r\n" % number for number in range(500))
    assert b" 431 " in raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")[:20]
    assert b" 400 " in raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n")[:20]
    for body in (b"[" * 1_000_000, b'{"a":' * 500_000, b'{"prompt": NaN}', b"\xff\xfe", b'{"prompt": ' + b"9" * 100_000 + b"}", b"[]"):
        refused = server.client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400, body[:20]
    assert server.client.post("/v1/videos", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert server.client.post("/v1/videos", json={"prompt": "x"}, headers={"Origin": "http://elsewhere"}).status_code == 403
    parts = [(f"field{number}", "x") for number in range(2000)]
    assert server.client.post("/v1/videos", files=[(name, (None, value)) for name, value in parts]).status_code == 400
    assert server.client.get("/health").json() == {"status": "ok"}


def test_key_is_asked_for_everywhere_but_for_health(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data", environment={"V2L_API_KEY": "secret"})
    try:
        for path in ("/v1/videos", "/metrics", "/v1/models", "/v1/list_loras", "/openapi.json"):
            assert server.client.get(path).status_code == 401
            assert server.client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
            assert server.client.get(path, headers={"Authorization": "Bearer secrets"}).status_code == 401
        assert server.client.get("/health").status_code == 200
    finally:
        server.stop()


def test_full_queue_is_429_and_nothing_is_lost(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data", "--max-queued", 3)
    try:
        first = server.create(LONG).json()["id"]
        server.wait(first, "in_progress")
        answers = [server.create() for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 3
        assert answers[-1].headers["Retry-After"] == "5"
        assert answers[-1].json()["error"]["code"] == "queue_full"
        server.client.delete(f"/v1/videos/{first}")
        for answer in answers[:3]:
            assert server.wait(answer.json()["id"])["status"] == "completed"
    finally:
        server.stop()


def test_killed_server_takes_its_jobs_up_again_with_equal_bytes(engines: Path, video: bytes, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data")
    long = server.create(LONG).json()["id"]
    waiting = [server.create().json()["id"] for _ in range(3)]
    server.wait(long, "in_progress")
    server.stop(signal.SIGKILL)
    again = Server(engines, tmp_path / "data")
    try:
        assert [again.wait(id)["status"] for id in waiting] == ["completed"] * 3
        assert [again.content(id) for id in waiting] == [video] * 3
        assert again.wait(long, seconds=120)["status"] == "completed"
        fresh = again.create(LONG).json()["id"]
        assert again.wait(fresh, seconds=120)["status"] == "completed"
        assert again.content(long) == again.content(fresh)
        assert "v2l_workers_lost_total 1.0" in again.client.get("/metrics").text
    finally:
        again.stop()


def workers(server: Server) -> List[int]:
    """Processes of workers; they are started by threads of the server."""
    found = []
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_killed_worker_costs_a_job_one_more_try_and_then_it_fails(engines: Path, video: bytes, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data", "--workers", 1)
    try:
        long, short = server.create(LONG).json()["id"], server.create().json()["id"]
        for attempt in (1, 2):
            until = time.monotonic() + 30
            while server.wait(long, "in_progress")["attempts"] != attempt:
                assert time.monotonic() < until
            (worker,) = workers(server)
            os.kill(worker, signal.SIGKILL)
        lost = server.wait(long)
        assert (lost["status"], lost["error"]["code"]) == ("failed", "worker_lost")
        assert server.wait(short)["status"] == "completed"
        assert server.content(short) == video
    finally:
        server.stop()


def test_server_that_ends_puts_its_job_back(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data", "--drain-seconds", 0, "--max-times", 16)
    long = server.create({**LONG, "num_frames": "513"}).json()["id"]
    server.wait(long, "in_progress")
    assert server.stop() == 0
    again = Server(engines, tmp_path / "data")
    try:
        assert again.wait(long, "in_progress", "completed")["id"] == long
        assert "v2l_workers_lost_total 0.0" in again.client.get("/metrics").text
    finally:
        again.stop(signal.SIGKILL)


@pytest.mark.parametrize("flags", [[], ["--workers", 1]])
def test_server_that_ends_answers_503_until_its_video_is_done(engines: Path, tmp_path: Path, flags: List[object]) -> None:
    server = Server(engines, tmp_path / "data", "--drain-seconds", 60, *flags)
    long, waiting = server.create(LONG).json()["id"], server.create().json()["id"]
    assert server.client.get("/health").status_code == 200
    server.wait(long, "in_progress")
    sync: List[int] = []
    waits = threading.Thread(target=lambda: sync.append(httpx.post(f"{server.url}/v1/videos/sync", json=FORM, timeout=60).status_code))
    waits.start()
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 5
    while server.client.get("/health").status_code == 200:
        assert time.monotonic() < until
    refused = server.create()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert server.client.get("/health").json() == {"status": "draining"}
    # What was taken is answered for all the same.
    assert server.client.get(f"/v1/videos/{long}").json()["status"] == "in_progress"
    waits.join()
    assert sync == [503]
    assert server.process.wait(60) == 0
    again = Server(engines, tmp_path / "data")
    try:
        made = again.client.get(f"/v1/videos/{long}").json()
        assert (made["status"], made["attempts"]) == ("completed", 1)
        assert again.wait(waiting)["status"] == "completed"
        assert "v2l_workers_lost_total 0.0" in again.client.get("/metrics").text
    finally:
        again.stop()


def test_many_clients_get_each_their_own_video(server: Server, engines: Path, tmp_path: Path) -> None:
    """40 videos of ten kinds by eight threads: each has the bytes that the command gives for its kind."""
    kinds = [(seed, scale) for seed in range(5) for scale in (None, 0.7)]
    failures: List[str] = []
    contents: Dict[Any, set] = {kind: set() for kind in kinds}  # type: ignore[type-arg]

    def client(number: int) -> None:
        for turn in range(5):
            seed, scale = kinds[(number * 5 + turn * 3) % len(kinds)]
            fields = {**FORM, "seed": str(seed)}
            if scale is not None:
                fields["lora"] = json.dumps({"name": "squash", "scale": scale})
            with open(IMAGE, "rb") as image:
                answer = requests.post(f"{server.url}/v1/videos/sync", data=fields, files={"input_reference": image}, timeout=120)
            if answer.status_code != 200:
                failures.append(answer.text)
            contents[seed, scale].add(answer.content)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(len(found) for found in contents.values()) == len({one for found in contents.values() for one in found})
    lora = ["--lora", f"{next(iter(server_loras(server)))}=0.7"]
    for kind, flags in (((1, None), []), ((3, 0.7), lora)):
        out = tmp_path / "kind.mp4"
        words = ["--image", IMAGE, "--prompt", PROMPT, "--num-frames", 9, "--steps", 4, "--guidance", 1, "--seed", kind[0]]
        assert command("v2l-run", "--engine", engines, *words, *flags, "-o", out).returncode == 0
        assert contents[kind] == {out.read_bytes()}


def server_loras(server: Server) -> List[str]:
    """Files of adapters that the server was given, from its command line."""
    words = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
    folder = Path(os.fsdecode(words[words.index(b"--lora-folder") + 1]))
    return [str(folder / "squash.safetensors")]
