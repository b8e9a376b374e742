"""What `v2l serve` takes and refuses before a job is made of it, and what it says a video will be."""

import base64
import io
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import httpx
import openai
import pytest
from PIL import Image

import v2l
from conftest import COMMANDS, IMAGE, MINIATURE, PROMPT, free_port
from recipes import write_wan
from test_serve import FORM, LONG, Server, raw

FEW = {"num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1, "seed": 1}
URL = "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()


def row(server: Server, id: str) -> Dict[str, Any]:
    """What the store keeps of a job's request."""
    with sqlite3.connect(f"file:{server.data}/jobs.sqlite?mode=ro", uri=True) as database:
        ((request,),) = database.execute("SELECT request FROM jobs WHERE id = ?", (id,))
    found: Dict[str, Any] = json.loads(request)
    return found


def refused(answer: httpx.Response, status: int = 400) -> Dict[str, Any]:
    """The error of an answer, which has the documented shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    error: Dict[str, Any] = body["error"]
    assert isinstance(error["message"], str) and error["message"] and error["code"] and error["type"]
    return error


@pytest.fixture(scope="module")
def loras(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    with v2l.Predictor(engines) as predictor:
        predictor.predict(MINIATURE / "references/squash", range=v2l.Range.SIGNED).save(folder / "effect.safetensors")
    shutil.copy(folder / "effect.safetensors", folder / "second.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(engines: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(engines, tmp_path_factory.mktemp("served") / "data", "--lora-folder", loras)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def text_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Wan: text to video, one transformer."""
    folder = tmp_path_factory.mktemp("text")
    write_wan("t2v", folder / "model")
    with v2l.Pipeline.from_pretrained(folder / "model", cache=folder / "cache") as pipeline:
        return pipeline.directory


@pytest.fixture(scope="module")
def image_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over a small Wan that animates an image."""
    folder = tmp_path_factory.mktemp("image")
    write_wan("i2v_2_2", folder / "model")
    with v2l.Pipeline.from_pretrained(folder / "model", cache=folder / "cache") as pipeline:
        running = Server(pipeline.directory, folder / "data")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def text_server(text_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(text_engines, tmp_path_factory.mktemp("served") / "data")
    yield running
    assert running.stop() == 0


# Lists of adapters in forms.


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_effect_is_refused_at_the_door_where_the_predictor_reads_references(server: Server) -> None:
    error = refused(server.client.post("/v1/videos", json={"prompt": PROMPT, "effect": "it melts", **FEW}))
    assert (error["param"], error["code"]) == ("effect", "unsupported")
    assert "reads reference" in error["message"]


def test_list_of_openais_client_gives_each_adapter_its_own_strength(server: Server, loras: Path) -> None:
    def stack(lora: Any) -> List[Tuple[str, float]]:
        made = client(server).videos.create(prompt=PROMPT, input_reference=IMAGE, extra_body={**FEW, "lora": lora})
        found = [(Path(file).stem, strength) for file, strength, _ in row(server, made.id)["lora"]]
        client(server).videos.delete(made.id)
        return found

    both = [{"name": "effect", "scale": 0.5}, {"name": "second", "scale": 0.25}]
    assert stack(both) == [("effect", 0.5), ("second", 0.25)]
    assert stack(list(reversed(both))) == [("second", 0.25), ("effect", 0.5)]
    assert stack(json.dumps(both)) == stack(both)
    assert stack([{"name": "effect", "scale": 0.5}]) == stack({"name": "effect", "scale": 0.5}) == [("effect", 0.5)]
    assert stack([{"name": "effect"}, {"name": "second"}]) == stack(["effect", "second"]) == [("effect", 1.0), ("second", 1.0)]
    # The client sends nothing at all for an empty list; as text it arrives.
    server.client.post("/v1/set_lora", json={"lora_nickname": "effect", "strength": 0.75})
    assert (stack([]), stack("[]")) == ([("effect", 0.75)], [])
    server.client.post("/v1/unmerge_lora_weights")


def test_list_of_openais_client_is_refused_where_pairs_are_not_certain(server: Server) -> None:
    for lora in (
        [{"name": "effect", "scale": 0.25}, {"name": "second"}],
        [{"name": "effect"}, {"name": "second", "scale": 0.25}],
        [{"name": "effect", "target": "transformer"}, {"name": "second"}],
        [{"name": "effect"}, {"path": "second"}],
        [{"name": "effect", "scale": 0.5}, {"lora_path": "second", "strength": 0.25}],
        ["effect", {"name": "second"}],
    ):
        with pytest.raises(openai.BadRequestError, match="JSON text in the field lora"):
            client(server).videos.create(prompt=PROMPT, input_reference=IMAGE, extra_body={**FEW, "lora": lora})


# What a request comes to.


def test_cases_that_were_queued_and_failed_later_are_answered_at_once(server: Server, image_server: Server, text_server: Server) -> None:
    """The cases of a field report; `want` is a refusal that says this, or a job."""
    few = {"prompt": "a", **FEW}
    small = {**few, "size": "32x16"}
    for running, body, want, param in (
        (image_server, {**few, "size": "48x32"}, "the image is absent", "input_reference"),
        (image_server, {**small, "input_reference": {"image_url": URL}}, None, None),
        (text_server, {**few, "size": "50x34"}, "do not divide by 16", "size"),
        (text_server, {**small, "num_frames": 6}, "such as 5 or 9", "num_frames"),
        (text_server, {**small, "guidance_scale_2": 3.0}, "one transformer", "guidance_scale_2"),
        (text_server, {**small, "input_reference": {"image_url": URL}}, "takes text only", "input_reference"),
        (text_server, {**small, "last_image": {"image_url": URL}}, "no image of the last frame", "last_image"),
        (text_server, {**small, "boundary_ratio": 0.5}, "one transformer", "boundary_ratio"),
        (text_server, {**small, "scheduler": "nonsense"}, "there is no scheduler", "scheduler"),
        (text_server, {**small, "fps": 1e-30}, "the frame rate", "fps"),
        (text_server, {**small, "controls": {"x": 1}}, "a control", "controls"),
        (text_server, {**small, "reference_strength": 0.5}, "without a reference", "reference_strength"),
        (text_server, {**small, "effect_strength": 0.5}, "without an effect", "effect_strength"),
        (text_server, {**few, "num_frames": None, "seconds": 3600, "size": "32x16"}, "positions", "seconds"),
        (server, {**few, "num_frames": None, "seconds": 3600, "input_reference": {"image_url": URL}}, "at most 1024", "seconds"),
        (text_server, {**small, "seed": None, "num_inference_steps": 0}, "num_inference_steps", "num_inference_steps"),
        (server, {**few, "input_reference": {"image_url": URL}, "flow_shift": 3.0}, "has no shift", "flow_shift"),
        (server, {**few, "input_reference": {"image_url": URL}, "last_image": {"image_url": URL}}, "leave `last_image` out", "last_image"),
        (server, {**few, "input_reference": {"image_url": URL}}, None, None),
        (server, {**few, "image_reference": {"image_url": URL}}, None, None),
        (server, {**few, "input_reference": {"image_url": URL}, "image_reference": {"image_url": URL}}, "together with", "image_reference"),
        (text_server, {**small, "generator_device": "cpu"}, None, None),
        (text_server, {**small, "flow_shift": 3.0, "n": 1}, None, None),
    ):
        body = {name: value for name, value in body.items() if value is not None}
        answer = running.client.post("/v1/videos", json=body)
        if want is None:
            assert answer.status_code == 200, (body, answer.text)
            assert running.wait(answer.json()["id"])["status"] == "completed"
        else:
            error = refused(answer)
            assert want in error["message"] and error["param"] == param, (body, error)
    with open(IMAGE, "rb") as image:
        error = refused(text_server.client.post("/v1/videos", data={key: str(value) for key, value in small.items()}, files={"input_reference": image}))
    assert "takes text only" in error["message"]
    assert text_server.client.get("/metrics").text.split('v2l_jobs{status="failed"}')[1].split("\n")[0].strip() == "0.0"
    assert list((text_server.data / "uploads").iterdir()) == []


def test_picture_that_nobody_can_decode_is_refused_at_the_door(server: Server) -> None:
    for content in (IMAGE.read_bytes()[:200], b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"\xff\xd8\xff" + b"x" * 100, b"RIFF\0\0\0\0WEBPVP8 "):
        error = refused(server.client.post("/v1/videos", data=FORM, files={"input_reference": ("x.png", content)}))
        assert error["param"] == "input_reference" and str(server.data) not in error["message"], error


def frames_of(video: bytes, folder: Path) -> int:
    """Frames that ffmpeg finds in an mp4."""
    import v2l_tools

    (folder / "counted.mp4").write_bytes(video)
    program = os.environ.get("V2L_FFMPEG") or v2l_tools.libraries()["V2L_FFMPEG"]
    words = [program, "-v", "error", "-i", str(folder / "counted.mp4"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    pixels = subprocess.run(words, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    return len(pixels) // (48 * 48 * 3)


def test_video_says_the_frames_that_it_has(server: Server, tmp_path: Path) -> None:
    for asked, made in ((8, 5), (9, 9), (1, 1)):
        video = server.create({**FORM, "num_frames": str(asked), "num_inference_steps": "1"}).json()
        assert (video["num_frames"], video["seconds"], video["size"]) == (made, f"{made / 8:g}", "48x48")
        assert len(video["warnings"]) == (asked != made) and (asked == made or "8 frames are not possible" in video["warnings"][0])
        done = server.wait(video["id"])
        assert (done["status"], done["num_frames"], done["seconds"]) == ("completed", made, f"{made / 8:g}")
        assert frames_of(server.content(video["id"]), tmp_path) == made


def test_seconds_are_made_frames_by_the_runtime(server: Server, engines: Path, tmp_path: Path) -> None:
    for seconds, fps, frames in (("1", None, 9), ("0.5", "16", 9), ("0.1", None, 1), ("2", "4", 9)):
        form = {"prompt": PROMPT, "seconds": seconds, "num_inference_steps": "1", "guidance_scale": "1", **({"fps": fps} if fps else {})}
        made = server.create(form).json()
        given = {"seconds": float(seconds), **({"fps": float(fps)} if fps else {})}
        assert made["num_frames"] == frames == v2l.resolve(engines, image=IMAGE, **given)["num_frames"], made
        assert server.wait(made["id"])["status"] == "completed"
        assert frames_of(server.content(made["id"]), tmp_path) == frames


def test_resolve_refuses_in_the_words_of_generate(engines: Path, text_engines: Path) -> None:
    for folder, request in (
        (engines, {"image": IMAGE, "width": 50, "height": 48}),
        (engines, {"image": IMAGE, "num_inference_steps": 5000}),
        (engines, {"image": IMAGE, "guidance_scale_2": 2.0}),
        (engines, {"image": IMAGE, "fps": 2000.0}),
        (text_engines, {"num_frames": 7, "width": 32, "height": 16}),
        (text_engines, {"image": IMAGE}),
        (text_engines, {"width": 32, "height": 16, "noise_aug_strength": 0.5}),
        (text_engines, {"width": 32, "height": 16, "boundary_ratio": 0.5}),
        (text_engines, {"width": 32, "height": 16, "shift": -1.0}),
    ):
        with v2l.Pipeline(folder, threads=1) as pipeline:
            with pytest.raises(v2l.Error) as made:
                pipeline.generate("a", **request)
        with pytest.raises(v2l.Error) as found:
            v2l.resolve(folder, "a", **request)
        assert (found.value.status, str(found.value)) == (made.value.status, str(made.value))
    found_all = v2l.resolve(engines, "a", image=IMAGE, num_frames=8)
    assert (found_all["num_frames"], found_all["own"]["num_frames"], len(found_all["warnings"])) == (5, 49, 1)


def test_more_work_than_a_few_videos_of_the_models_own_is_refused(server: Server, engines: Path, tmp_path: Path) -> None:
    for fields in ({"size": "2048x2048"}, {"size": "2048x2048", "num_frames": "1"}, {"num_frames": "1021"}, {"seconds": "60"}):
        form = {name: value for name, value in FORM.items() if name != "num_frames"}
        error = refused(server.create({**form, **fields}))
        assert error["code"] == "too_much_work" and "--max-times" in error["message"] and error["param"] in fields, error
    wide = Server(engines, tmp_path / "data", "--max-times", 0)
    try:
        long = wide.create({**FORM, "num_frames": "1021", "num_inference_steps": "200"}).json()["id"]
        wide.wait(long, "in_progress")
        time.sleep(0.5)
        began = time.monotonic()
        wide.client.delete(f"/v1/videos/{long}")
        assert wide.wait(wide.create().json()["id"])["status"] == "completed"
        assert time.monotonic() - began < 30
    finally:
        wide.stop()


# Uploads.


def encoded(kind: str, frames: int = 1, **options: Any) -> bytes:
    """The picture in another format; animated where it has more frames."""
    with Image.open(IMAGE) as picture:
        pictures = [picture.convert("RGB").rotate(angle * 5) for angle in range(frames)]
    out = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:], "duration": 100} if frames > 1 else {}
    pictures[0].save(out, kind, **more, **options)
    return out.getvalue()


def test_uploads_are_known_by_their_content_whatever_they_are_called(server: Server, video: bytes) -> None:
    for name in ("photo.jfif", "../../x.mp4", "nothing", "x.png"):
        with open(IMAGE, "rb") as image:
            answer = server.client.post("/v1/videos/sync", data=FORM, files={"input_reference": (name, image, "video/mp4")})
        assert answer.status_code == 200 and answer.content == video
        jpeg = server.client.post("/v1/videos", data=FORM, files={"input_reference": (name, encoded("JPEG"), "video/mp4")})
        assert server.wait(jpeg.json()["id"])["status"] == "completed"
    for kind, frames in (("WEBP", 3), ("PNG", 3), ("GIF", 3), ("WEBP", 1)):
        files = {"reference_video": ("x", encoded(kind, frames)), "input_reference": ("x", IMAGE.read_bytes())}
        answer = server.client.post("/v1/videos", data={**FORM, "reference_range": "signed"}, files=files)
        assert answer.status_code == 200, (kind, answer.text)
        server.client.delete(f"/v1/videos/{answer.json()['id']}")


def test_animated_pictures_that_decode_to_too_much_are_refused(server: Server) -> None:
    chunk = len(encoded("PNG", 3))
    huge = encoded("PNG", 3).replace(b"acTL" + (3).to_bytes(4, "big"), b"acTL" + (10**6).to_bytes(4, "big"))
    assert len(huge) == chunk
    vast = bytearray(encoded("WEBP", 3))
    vast[24:27] = vast[27:30] = (16383).to_bytes(3, "little")
    for content in (huge, bytes(vast)):
        error = refused(server.client.post("/v1/videos", data=FORM, files={"reference_video": ("x", content)}))
        assert "decodes to more than" in error["message"], error


def test_upload_on_its_side_gives_the_bytes_of_the_upright_picture(server: Server) -> None:
    """A photograph with the orientation 6, and the same pixels upright: as the library reads pictures."""
    with Image.open(IMAGE) as picture:
        upright = picture.convert("RGB")
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x112] = 6
    contents = []
    for picture, options in ((upright, {}), (lying, {"exif": exif})):
        out = io.BytesIO()
        picture.save(out, "PNG", **options)
        answer = server.client.post("/v1/videos/sync", data=FORM, files={"input_reference": ("x.jpg", out.getvalue())})
        assert answer.status_code == 200, answer.text
        contents.append(answer.content)
    assert contents[0] == contents[1]


def full_disk(engines: Path, data: Path, variable: Dict[str, str]) -> "subprocess.Popen[bytes]":
    """A server whose data, or whose folder for uploads under way, lies on a disk of three megabytes."""
    port = variable.pop("PORT")
    mount = variable.pop("MOUNT")
    words = [str(COMMANDS / "v2l"), "serve", str(engines), "--data", str(data), "--port", port, "--no-ray"]
    script = f"mount -t tmpfs -o size=3m tmpfs {mount} && exec " + " ".join(words)
    with open(data.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(["unshare", "-rm", "sh", "-c", script], env={**os.environ, **variable}, stderr=log, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("where", ["data", "tmp"])
def test_upload_onto_a_full_disk_is_a_503_and_the_connection_goes_on(engines: Path, tmp_path: Path, where: str) -> None:
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here, and a full one is needed")
    port = free_port()
    for folder in ("data", "tmp"):
        (tmp_path / folder).mkdir()
    process = full_disk(engines, tmp_path / "data", {"PORT": str(port), "MOUNT": str(tmp_path / where), "TMPDIR": str(tmp_path / "tmp")})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            until = time.monotonic() + 60
            while True:
                try:
                    if http.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None and time.monotonic() < until, (tmp_path / "data.log").read_text()
                    time.sleep(0.05)
            for _ in range(3):
                files = {"input_reference": ("x.png", IMAGE.read_bytes() + b"\0" * (5 << 20))}
                answer = http.post("/v1/videos", data=FORM, files=files)
                assert refused(answer, 503)["code"] == "unavailable" and answer.headers["Retry-After"] == "5"
                assert http.get("/v1/models").status_code == 200
            assert list((tmp_path / "data/uploads").iterdir()) == [] if where == "tmp" else True
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in (tmp_path / "data.log").read_text()


# Adapters.


def test_set_lora_has_the_limit_of_requests(server: Server) -> None:
    for count in (17, 20_000):
        assert "at most 16" in refused(server.client.post("/v1/set_lora", json={"lora_nickname": ["effect"] * count}))["message"]
        assert "at most 16" in refused(server.client.post("/v1/videos", json={"prompt": "a", "lora": ["effect"] * count}))["message"]
    assert server.client.post("/v1/set_lora", json={"lora_nickname": ["effect"] * 16}).status_code == 200
    server.client.post("/v1/unmerge_lora_weights")


def test_list_loras_lists_what_requests_may_name_and_nothing_else(engines: Path, loras: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    (folder / "below").mkdir(parents=True)
    whole = (loras / "effect.safetensors").read_bytes()
    for name in ("good", "below/other"):
        (folder / f"{name}.safetensors").write_bytes(whole)
    (folder / "link.safetensors").symlink_to("good.safetensors")
    (tmp_path / "outside.safetensors").write_bytes(whole)
    (folder / "linkfile.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "gone.safetensors").symlink_to("nothing.safetensors")
    (folder / "dir.safetensors").mkdir()
    os.mkfifo(folder / "fifo.safetensors")
    (folder / "trunc.safetensors").write_bytes(whole[:-1])
    (folder / "text.safetensors").write_bytes(b"no adapter")
    (folder / "empty.safetensors").write_bytes(b"")
    odd = os.fsencode(folder) + b"/\xff\xfe"
    os.mkdir(odd)
    with open(odd + b"/bad.safetensors", "wb") as file:
        file.write(whole)
    running = Server(engines, tmp_path / "data", "--lora-folder", folder)
    try:
        listed = running.client.get("/v1/list_loras")
        assert [one["nickname"] for one in listed.json()["loaded_adapters"]] == ["below/other", "good", "link"], listed.text
        for one in listed.json()["loaded_adapters"]:
            for lora in (one["nickname"], {"path": one["path"]}):
                answer = running.create({**FORM, "lora": json.dumps(lora) if isinstance(lora, dict) else lora})
                assert answer.status_code == 200, answer.text
        for name in ("linkfile", "loop", "gone", "dir", "fifo", "trunc", "text", "empty"):
            refused(running.create({**FORM, "lora": name}))
        # What lies outside is not even looked for: a path that is there is refused in the words for one that is not.
        told = set()
        for path in (str(folder / "good"), "/nowhere/good", "../loras/good", "../nowhere/good", "/proc/self/cwd/good", "below/../good"):
            error = refused(running.create({**FORM, "lora": json.dumps({"path": path})}))
            told.add(error["message"].replace(path, "PATH"))
        assert len(told) == 1 and "without `..`" in told.pop()
    finally:
        running.stop()


def test_adapter_that_goes_before_its_turn_fails_its_job_as_a_bad_adapter(engines: Path, loras: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    shutil.copy(loras / "effect.safetensors", folder / "passing.safetensors")
    running = Server(engines, tmp_path / "data", "--lora-folder", folder)
    try:
        long = running.create(LONG).json()["id"]
        id = running.create({**FORM, "lora": "passing"}).json()["id"]
        (folder / "passing.safetensors").unlink()
        running.client.delete(f"/v1/videos/{long}")
        error = running.wait(id)["error"]
        assert error["code"] == "bad_adapter" and "passing is no longer there" in error["message"], error
    finally:
        running.stop()


# Forms, and the shape of refusals.


def multipart(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    return b"".join(head % tuple(part.split(b"=", 1)) for part in parts) + end


def test_damaged_forms_are_refused(image_server: Server) -> None:
    def post(body: bytes, kind: str = "multipart/form-data; boundary=b") -> httpx.Response:
        return image_server.client.post("/v1/videos", content=body, headers={"Content-Type": kind})

    for body in (multipart(b"prompt=a", end=b""), multipart(b"prompt=a", end=b"--b\r\n"), multipart(b"prompt=a")[:-6]):
        assert "closing boundary" in refused(post(body))["message"]
    assert refused(post(multipart(b"prompt=\xff\xfe")))["param"] == "prompt"
    assert "no UTF-8" in refused(post(multipart(b"\xff=a")))["message"]
    assert "no UTF-8" in refused(post(b"prompt=%ff%fe", "application/x-www-form-urlencoded"))["message"]
    assert "no UTF-8" in refused(post(b"prompt=\xff\xfe", "application/x-www-form-urlencoded"))["message"]
    for part in (
        b'Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="prompt"',
        b'Content-Disposition: form-data; name="a"; name="prompt"',
        b'Content-Disposition: form-data; name="prompt"x',
        b"Content-Type: text/plain",
    ):
        assert "malformed" in refused(post(b"--b\r\n" + part + b"\r\n\r\na\r\n--b--\r\n"))["message"], part
    assert "charset" in refused(post(multipart(b"prompt=a"), "multipart/form-data; boundary=b; charset=rot13"))["message"]
    assert "is given twice" in refused(post(multipart(b"prompt=a", b"lora[name]=nope", b"lora[name]=effect")))["message"]
    assert "is given twice" in refused(post(multipart(b"prompt=a", b"lora=effect", b"lora[]=effect")))["message"]
    assert "is given twice" in refused(post(b'{"prompt": "a", "prompt": "b"}', "application/json"))["message"]
    # What is whole is taken up to the image that it lacks, with every letter of its text.
    assert "the image is absent" in refused(post(multipart("prompt=ÿþ☃".encode())))["message"]
    assert "the image is absent" in refused(post("prompt=%C3%BF☃+a".encode(), "application/x-www-form-urlencoded"))["message"]


def test_every_refusal_has_the_documented_shape(server: Server) -> None:
    for method, path, status in (
        ("GET", "/v1/videos?limit=abc", 400),
        ("GET", "/v1/videos?limit=0", 400),
        ("GET", "/v1/videos?order=up", 400),
        ("GET", "/v1/videos/nothing", 404),
        ("GET", "/v1/videos/nothing/content", 404),
        ("DELETE", "/v1/videos/nothing", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/v1/videos", 405),
        ("POST", "/v1/videos", 415),
        ("POST", "/v1/set_lora", 415),
    ):
        refused(server.client.request(method, path), status)
    kind = {"Content-Type": "application/json"}
    half = (
        b'{"prompt": "a", "control_\\ud800": 1}', b'{"\\ud800": 1, "\\ud800": 2}', b'{"prompt": "a", "input_reference": {"\\ud800": "x"}}',
        b'{"prompt": "\\ud800"}', b'{"lora": {"\\ud800": 1}, "prompt": "a"}',
    )
    for body in (b"", b"[]", b"17", b"{", b'"a"', b'{"prompt": 1}', *half):
        refused(server.client.post("/v1/videos", content=body, headers=kind))
    refused(server.client.post("/v1/set_lora", content=b'{"\\ud800": 1}', headers=kind))


def test_refusal_in_the_middle_of_a_body_closes_its_connection(server: Server) -> None:
    head = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n"
    answer = raw(server, head + b"a" * 10)
    assert b" 415 " in answer[:20] and b"connection: close" in answer.lower()


def test_log_line_of_a_stranger_is_one_line(server: Server) -> None:
    forged = "x\n06:00:00 video_gen_0: done\n\u001b[2J\u202e\u2028\x85\x9b31m"
    for fields in ({"user": forged}, {"lora": forged}, {"controls": json.dumps({forged: 1})}, {"scheduler": forged}, {forged: "1"}):
        server.create({**FORM, **fields})
    server.client.get("/v1/videos/" + httpx.QueryParams({"a": forged}).__str__()[2:])
    log = server.data.with_suffix(".log").read_text()
    assert "\n06:00:00" not in log and not set("\u001b\u202e\u2028\x85\x9b") & set(log)


def test_formatter_escapes_messages_and_marks_tracebacks() -> None:
    from v2l.serve.logs import Formatter

    try:
        raise ValueError("x\n06:00:00 forged\u001b[2J")
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "", 0, "%s is wrong", ("a\nb\u001b\ud800☃\\",), sys.exc_info())
    written = Formatter("%(message)s").format(record)
    lines = written.split("\n")
    assert lines[0] == "a\\nb\\x1b\\ud800☃\\ is wrong"
    assert all(line.startswith("  | ") for line in lines[1:]) and "\u001b" not in written and len(lines) > 3
