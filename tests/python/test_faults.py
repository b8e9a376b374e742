"""`v2l serve` where the disk is full, the store damaged or another's, the engines replaced; what it then says, and that it gets well again."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Iterator, List

import httpx
import openai
import pytest

from conftest import COMMANDS, IMAGE, free_port
from test_serve import FORM, LONG, Server
from v2l.serve import Config
from v2l.serve.identity import identity_of
from v2l.serve.made import made_of
from v2l.serve.store import open_store


def other_engines(engines: Path, folder: Path) -> Path:
    """The same engines with another default: to a server they are others."""
    shutil.copytree(engines, folder)
    described = json.loads((folder / "pipeline.json").read_text())
    described["defaults"]["num_inference_steps"] += 1
    (folder / "pipeline.json").write_text(json.dumps(described))
    return folder


def refused(engines: Path, *flags: object, **environment: str) -> "tuple[int, str]":
    """The exit code and the words of a server that does not begin, within ten seconds."""
    words = [COMMANDS / "v2l", "serve", engines, "--no-ray", "--port", free_port(), *flags]
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=10, env={**os.environ, **environment})
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stderr


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Takes what room there is."""
    with open(file, "ab", buffering=0) as out:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while out.write(b"\1" * size) == size:
                    pass


# Whose jobs.


def test_identity_is_the_engines_content_wherever_they_lie(engines: Path, tmp_path: Path) -> None:
    found = identity_of(engines)
    copy = tmp_path / "copy"
    shutil.copytree(engines, copy)
    os.utime(copy / "transformer.engine", (1, 1))
    (copy / "notes.txt").write_text("not named in pipeline.json")
    assert identity_of(copy) == found
    assert identity_of(other_engines(engines, tmp_path / "other")) != found
    # A hash of the manifest changes with any tensor; here it is changed itself.
    file = copy / "transformer.engine"
    content = bytearray(file.read_bytes())
    at = content.rindex(b'"transformer"')
    content[at + 1] ^= 1
    file.write_bytes(content)
    assert identity_of(copy) != found
    (copy / "transformer.engine").write_bytes(b"\xff" * 64)
    damaged = identity_of(copy)
    (copy / "tokenizer.json").unlink()
    assert len({found, damaged, identity_of(copy)}) == 3


def test_servers_over_different_engines_of_one_name_share_nothing(engines: Path, video: bytes, tmp_path: Path) -> None:
    """Both folders are called `engines`, and nothing is said of where jobs lie."""
    first = tmp_path / "a/engines"
    shutil.copytree(engines, first)
    second = other_engines(engines, tmp_path / "b/engines")
    servers = []
    for folder in (first, second):
        port = free_port()
        words = [COMMANDS / "v2l", "serve", folder, "--no-ray", "--port", port, "--threads", 1]
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        servers.append((port, subprocess.Popen(list(map(str, words)), env=environment, stderr=subprocess.DEVNULL)))
    try:
        jobs: List[List[str]] = []
        for port, _ in servers:
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                assert time.monotonic() < until
                time.sleep(0.05)
        for port, _ in servers:
            asked = {**FORM, "num_inference_steps": "1"}
            files = {"input_reference": IMAGE.read_bytes()}
            jobs.append([httpx.post(f"http://127.0.0.1:{port}/v1/videos", data=asked, files=files).json()["id"] for _ in range(4)])
        for (port, _), ids in zip(servers, jobs):
            listed = httpx.get(f"http://127.0.0.1:{port}/v1/videos", params={"order": "asc"}).json()["data"]
            assert [one["id"] for one in listed] == ids
    finally:
        for _, process in servers:
            process.terminate()
            process.wait(60)
    assert len(list((tmp_path / "state/v2l/serve").iterdir())) == 2


def test_store_of_other_engines_is_refused_and_its_jobs_wait(engines: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = Server(engines, data, "--drain-seconds", 0)
    server.create(LONG)
    waiting = server.create().json()["id"]
    server.stop(signal.SIGKILL)
    other = other_engines(engines, tmp_path / "engines")
    for flags in ([], ["--workers", 1]):
        code, said = refused(other, "--data", data, "--model", "miniature", *flags)
        assert code == 2, said
        for word in ("'miniature'", str(data), identity_of(engines)[:12], identity_of(other)[:12], "--data DIR"):
            assert word in said
    again = Server(engines, data)
    assert again.wait(waiting)["status"] == "completed"
    again.stop(signal.SIGKILL)


@pytest.mark.parametrize("flags", [[], ["--workers", 1]])
def test_engines_that_are_replaced_under_a_server_make_none_of_its_jobs(engines: Path, tmp_path: Path, flags: List[object]) -> None:
    folder = tmp_path / "engines"
    shutil.copytree(engines, folder)
    server = Server(folder, tmp_path / "data", *flags)
    try:
        if flags:
            # Its worker has opened the engines; the next one has not.
            assert server.wait(server.create().json()["id"])["status"] == "completed"
            waiting = server.create(LONG).json()["id"]
        other_engines(engines, tmp_path / "new")
        (tmp_path / "new/pipeline.json").replace(folder / "pipeline.json")
        told = server.create()
        assert told.status_code == 503 and told.json()["error"]["code"] == "engines_replaced", told.text
        assert "start the server anew" in told.json()["error"]["message"]
        if flags:
            from test_serve import workers

            os.kill(workers(server)[0], signal.SIGKILL)
            failed = server.wait(waiting)
            assert failed["error"]["code"] == "engines_replaced", failed
            assert "start the server anew" in failed["error"]["message"]
    finally:
        server.stop()


# What is full, read-only, damaged or another's.


def test_full_disk_heals_by_the_sweep_and_by_delete(engines: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        server = Server(engines, disk / "data", "--keep-hours", 0.001)
        try:
            ids = [server.create().json()["id"] for _ in range(3)]
            for id in ids:
                server.wait(id)
            assert len(list((disk / "data/videos").iterdir())) == 3
            fill(disk / "full")
            # The WAL may have room left for small changes.
            until = time.monotonic() + 30
            health = server.client.get("/health")
            while health.status_code == 200 and time.monotonic() < until:
                time.sleep(0.3)
                health = server.client.get("/health")
            assert (health.status_code, health.json()["error"]["code"], health.headers["Retry-After"]) == (503, "unavailable", "5")
            # It does not change its mind while the disk is full.
            for _ in range(10):
                fill(disk / "full")
                assert server.client.get("/health").status_code == 503
                time.sleep(0.2)
            assert server.client.delete(f"/v1/videos/{ids[0]}").status_code == 200
            assert not list((disk / "data/videos").glob(f"{ids[0]}*")) and not (disk / "data/uploads" / ids[0]).exists()
            fill(disk / "full")
            # Within a minute the sweep has removed the others, though another file holds the disk.
            until = time.monotonic() + 90
            while list((disk / "data/videos").iterdir()):
                assert time.monotonic() < until, (disk / "data.log").read_text()
                time.sleep(0.5)
            (disk / "full").unlink()
            until = time.monotonic() + 20
            while server.client.get("/health").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.2)
            assert server.wait(server.create().json()["id"])["status"] == "completed"
            assert "Traceback" not in (disk / "data.log").read_text()
        finally:
            server.stop(signal.SIGKILL)


def test_disk_that_cannot_be_written_is_said_at_once(engines: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        server = Server(engines, disk / "data")
        id = server.create().json()["id"]
        assert server.wait(id)["status"] == "completed"
        assert server.stop() == 0
        fill(disk / "full")
        code, said = refused(engines, "--data", disk / "new")
        assert code == 9 and f"{disk}/new" in said and "No space left" in said and "--data DIR" in said, said
        (disk / "full").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for data in (disk / "data", disk / "new"):
            code, said = refused(engines, "--data", data, "--model", "miniature")
            assert code == 9 and str(data) in said and "Read-only file system" in said and "--data DIR" in said, said
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def test_store_that_is_none_or_another_versions_is_refused_at_once(engines: Path, tmp_path: Path) -> None:
    def garbage(file: Path) -> None:
        file.write_bytes(os.urandom(20000))

    def earlier(file: Path) -> None:
        with contextlib.closing(sqlite3.connect(file)) as made, made:
            made.execute("CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, model TEXT NOT NULL)")

    def later(file: Path) -> None:
        open_store(Config(engines=engines, data=file.parent, model="miniature"))
        with contextlib.closing(sqlite3.connect(file)) as made, made:
            made.execute("PRAGMA user_version = 99")

    def triggered(file: Path) -> None:
        open_store(Config(engines=engines, data=file.parent, model="miniature"))
        with contextlib.closing(sqlite3.connect(file)) as made, made:
            made.execute("CREATE TRIGGER more AFTER INSERT ON jobs BEGIN DELETE FROM jobs; END")

    def torn(file: Path) -> None:
        store = open_store(Config(engines=engines, data=file.parent, model="miniature", identity=identity_of(engines)))
        for _ in range(200):
            store.create(store.new_id(), {"prompt": "a" * 500, "seed": 1}, "", 1000)
        del store
        with contextlib.closing(sqlite3.connect(file)) as made:
            made.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray(file.read_bytes())
        content[40000:60000] = bytes(20000)
        file.write_bytes(content)

    for make, code, words in (
        (garbage, 9, "file is not a database"),
        (earlier, 6, "expected 2"),
        (later, 6, "version 99; expected 2"),
        (triggered, 9, "other tables"),
        (torn, 9, "is damaged"),
        (os.mkdir, 9, "is no file"),
        (os.mkfifo, 9, "is no file"),
    ):
        data = tmp_path / getattr(make, "__name__")
        data.mkdir()
        make(data / "jobs.sqlite")
        found = refused(engines, "--data", data, "--model", "miniature")
        assert found[0] == code and words in found[1] and "--data DIR" in found[1] and f"{data}/jobs.sqlite" in found[1], (make, found)


def test_store_that_another_holds_is_waited_for_and_that_is_said(engines: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_store(Config(engines=engines, data=data, model="miniature", identity=identity_of(engines)))
    with contextlib.closing(sqlite3.connect(data / "jobs.sqlite", isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        log = data.with_suffix(".log")

        def release() -> None:
            until = time.monotonic() + 20
            while time.monotonic() < until and not (log.exists() and "another program may hold" in log.read_text()):
                time.sleep(0.05)
            holder.execute("ROLLBACK")

        releases = threading.Thread(target=release)
        releases.start()
        server = Server(engines, data)
        releases.join()
        assert "another program may hold" in log.read_text()
        server.stop()


def test_store_that_is_damaged_under_a_server_is_503_in_the_documented_shape(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data")
    try:
        id = server.create().json()["id"]
        assert server.wait(id)["status"] == "completed"
        file = tmp_path / "data/jobs.sqlite"
        for suffix in ("", "-wal"):
            size = Path(f"{file}{suffix}").stat().st_size
            with open(f"{file}{suffix}", "r+b") as out:
                out.write(os.urandom(size))
        for method, path in (("GET", "/health"), ("GET", "/v1/videos"), ("GET", f"/v1/videos/{id}"), ("DELETE", f"/v1/videos/{id}"), ("GET", "/metrics")):
            answer = server.client.request(method, path)
            if answer.status_code != 200:
                # Some pages are still in memory.
                assert (answer.status_code, answer.json()["error"]["code"], answer.headers["Retry-After"]) == (503, "unavailable", "5"), answer.text
        file.unlink()
        for method, path in (("GET", "/health"), ("GET", "/v1/videos"), ("POST", "/v1/merge_lora_weights")):
            answer = server.client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), answer.text
        time.sleep(0.5)
        said = (tmp_path / "data.log").read_text()
        assert "removed or replaced; start the server anew" in said and "Traceback" not in said, said
    finally:
        server.stop(signal.SIGKILL)


# Requests.


def test_client_that_deletes_while_it_lists_sees_all(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data")
    try:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        made = {server.create({**FORM, "num_inference_steps": "1"}).json()["id"] for _ in range(13)}
        deleted = [client.videos.delete(video.id).id for video in client.videos.list(limit=3)]
        assert set(deleted) == made and server.client.get("/v1/videos").json()["data"] == []
        lost = server.client.get("/v1/videos", params={"after": "video_gen_none"})
        assert (lost.status_code, lost.json()["error"]["param"], lost.json()["error"]["code"]) == (404, "after", "not_found")
    finally:
        server.stop()


def test_head_is_answered_wherever_get_is(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data")
    try:
        id = server.create().json()["id"]
        server.wait(id)
        for path in ("/health", "/metrics", "/v1/models", "/v1/videos", f"/v1/videos/{id}", f"/v1/videos/{id}/content", "/v1/list_loras", "/v1/videos/none"):
            # By hand: clients hide what follows the head.
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            connection.request("HEAD", path)
            head = connection.getresponse()
            got = server.client.get(path)
            assert head.status == got.status_code and head.read() == b"", path
            assert head.headers["Content-Type"] == got.headers["Content-Type"]
            if path != "/metrics":
                assert head.headers["Content-Length"] == str(len(got.content))
            connection.close()
        assert "head" not in json.dumps(server.client.get("/openapi.json").json()["paths"]["/health"])
    finally:
        server.stop()


def test_key_outside_ascii_fits_in_utf_8_and_bearer_in_any_case(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data", environment={"V2L_API_KEY": "sé cret ключ"})
    try:
        for header, status in (
            ("Bearer sé cret ключ", 200), ("bearer sé cret ключ", 200), ("BEARER  sé cret ключ", 200),
            ("Bearer sé cret", 401), ("Basic sé cret ключ", 401), ("Bearer", 401), ("Bearersé cret ключ", 401), ("", 401), ("Bearer s? cret ????", 401),
        ):
            answer = server.client.get("/v1/models", headers={"Authorization": header.encode()})
            assert answer.status_code == status, header
        assert "clients must send it in UTF-8" in (tmp_path / "data.log").read_text()
    finally:
        server.stop()
    for key, words in (("two\nlines", "no client can send it"), ("plain", None)):
        file = tmp_path / "key"
        file.write_text(key)
        (tmp_path / "taken").write_text("")
        said = refused(engines, "--api-key-file", file, "--data", tmp_path / "taken")[1]
        assert (words in said) if words else ("the key" not in said)
    latin = Config(engines=engines, data=tmp_path, model="m", api_key="sé")
    assert latin.authorised("Bearer sé") and latin.authorised("Bearer " + "sé".encode().decode("latin-1")) and not latin.authorised("Bearer s?")


def test_row_says_what_was_really_made(engines: Path, tmp_path: Path) -> None:
    server = Server(engines, tmp_path / "data")
    try:
        id = server.client.post("/v1/videos/sync", data={**FORM, "num_frames": "9", "fps": "12.5"}, files={"input_reference": open(IMAGE, "rb")}).headers["X-Request-Id"]
        store = open_store(Config(engines=engines, data=tmp_path / "data", model="miniature", identity=identity_of(engines)))
        job = store.get(id)
        assert job is not None and job.made == {"num_frames": 9, "width": 48, "height": 48, "fps": 12.5}
        waiting = store.create(store.new_id(), {"prompt": "a", "seed": 1}, "", 99)
        assert waiting.made is None
    finally:
        server.stop()


def test_tables_that_are_torn_say_nothing(video: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(video)
    assert made_of(file) == {"num_frames": 9, "width": 48, "height": 48, "fps": 8.0}
    began = time.monotonic()
    for at in range(0, len(video), max(1, len(video) // 300)):
        file.write_bytes(video[:at] + b"\xff\xff\xff\xff" + video[at + 4 :])
        made_of(file)
        file.write_bytes(video[:at])
        made_of(file)
    assert made_of(tmp_path / "none.mp4") is None and time.monotonic() - began < 20
