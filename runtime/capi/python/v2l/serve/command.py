"""The command ``v2l serve``."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import logs
from .config import Config, warning_of
from .identity import identity_of
from .store import WAY_OUT, Unusable, open_store

LOG = logging.getLogger("v2l.serve")

#: The longest head of a request.
_HEAD = 32 * 1024
#: How long nothing is said of a store that does not answer.
_SILENCE = 2.0
#: Connections at the same time; more are answered with 503.
_CONNECTIONS = 256


def _replicas(text: str) -> Tuple[int, int]:
    fewest, _, most = text.partition(":")
    numbers = int(fewest), int(most or fewest)
    if not 1 <= numbers[0] <= numbers[1]:
        raise ValueError(text)
    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="v2l serve", description="Serves the videos of an engine directory over HTTP, in the dialect /v1/videos."
    )
    add = parser.add_argument
    add("engines", type=Path, help="engine directory; a model's folder is exported and compiled first")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8000, help="port to listen on; 0 is any (default: %(default)s)")
    add("--model", help="what clients call the model (default: the folder's name)")
    add("--data", type=Path, help="folder of jobs and videos (default: v2l/serve/MODEL-HASH in the user's state folder, with the hash of the engines)")
    add("--store", metavar="URL", help="Redis that keeps the jobs, redis://HOST:PORT/NUMBER (default: V2L_STORE, else SQLite in --data)")
    add("--lora-folder", type=Path, action="append", default=[], help="folder whose adapters clients may name; repeatable")
    add("--api-key-file", type=Path, help="file with the key that clients must send; V2L_API_KEY serves, too")
    add("--max-queued", type=int, default=64, help="jobs that may wait (default: %(default)s)")
    add("--max-upload-mib", type=int, default=256, help="largest request with files (default: %(default)s)")
    add("--max-seconds", type=float, default=0.0, help="how long a video may take; 0 is without end (default: 0)")
    add("--max-times", type=float, default=4.0, help="pixels of a video, in videos of the model's own size and length; 0 is without end (default: 4)")
    add("--keep-hours", type=float, default=24.0, help="how long videos are kept (default: %(default)s)")
    add("--drain-seconds", type=float, default=10.0, help="how long a video may finish when the server ends (default: %(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="processes that make videos; 0 makes them in the server (default: 0)")
    ray = parser.add_mutually_exclusive_group()
    ray.add_argument("--ray", action="store_true", default=None, help="run on Ray Serve (default where Ray is installed)")
    ray.add_argument("--no-ray", action="store_false", dest="ray", help="run without Ray")
    add("--replicas", default=(1, 1), type=_replicas, metavar="N[:M]", help="replicas on Ray: N, or N to M by the queue's length (default: 1)")
    add("--patience-seconds", type=float, default=300.0, help="how long a job lets those with the adapters in use go first (default: 300)")
    add("--no-affinity", action="store_true", help="first come, first served, wherever; equal adapters do not go together")
    add("--threads", type=int, help="threads within an operator (default: as many as there are cores)")
    add("--weights", choices=("auto", "f32", "stored"), help="how weights in 16 bits are held (default: auto)")
    add("--adapter-mode", choices=("auto", "fuse", "branch"), help="how adapters are applied (default: auto)")
    add("--quiet", "-q", action="store_true", help="print errors only")
    return parser


def _key(file: Optional[Path]) -> Optional[str]:
    written = file.read_bytes().decode("utf-8", "surrogateescape") if file is not None else os.environ.get("V2L_API_KEY", "")
    key = written.strip()
    if file is not None and not key:
        raise ValueError(f"{file} holds no key")
    warning = warning_of(key)
    if warning is not None:
        LOG.warning("%s", warning)
    return key or None


def _engines(folder: Path) -> Path:
    """The engine directory that was named, or that is made of the model that was named."""
    from v2l import _cache

    def said(event: Dict[str, Any]) -> None:
        if event.get("event") == "phase":
            LOG.info("making engines: %s", event["phase"])

    return _cache.engines(folder, None, {}, {}, said, None).resolve()


def _config(options: argparse.Namespace) -> Config:
    import v2l

    engines = _engines(options.engines)
    model = options.model or options.engines.resolve().name
    identity = identity_of(engines)
    home = os.environ.get("XDG_STATE_HOME")
    state = Path(home) if home else Path.home() / ".local" / "state"
    pipeline: Dict[str, Any] = {}
    if options.threads is not None:
        pipeline["threads"] = options.threads
    if options.weights is not None:
        pipeline["weights"] = int(v2l.Weights[options.weights.upper()])
    if options.adapter_mode is not None:
        pipeline["adapter_mode"] = int(v2l.AdapterMode[options.adapter_mode.upper()])
    for folder in options.lora_folder:
        if not folder.is_dir():
            raise NotADirectoryError(f"--lora-folder {folder}: there is no such folder")
    return Config(
        engines=engines,
        # Folders of engines have the same names again and again.
        data=(options.data or state / "v2l" / "serve" / f"{model.replace(os.sep, '_')}-{identity[:12]}").absolute(),
        store=os.environ.get("V2L_STORE", "") if options.store is None else options.store,
        model=model,
        lora_folders=tuple(folder.resolve() for folder in options.lora_folder),
        api_key=_key(options.api_key_file),
        max_queued=options.max_queued,
        max_upload=options.max_upload_mib << 20,
        max_seconds=options.max_seconds,
        max_times=options.max_times,
        keep=options.keep_hours * 3600,
        drain=options.drain_seconds,
        in_process=options.workers == 0,
        affinity=not options.no_affinity,
        patience=options.patience_seconds,
        identity=identity,
        pipeline=pipeline,
    )


def _prepare(config: Config) -> None:
    """Makes the folders and the store, and mends what can be; :class:`Unusable` if they cannot be used."""
    try:
        for folder in ("uploads", "videos", "predictions"):
            (config.data / folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.data) as file:
            file.write(b"v2l")
    except OSError as error:
        raise Unusable(f"the folder {config.data} cannot be written: {error.strerror or error}; {WAY_OUT}", 9) from None
    waits = threading.Timer(_SILENCE, LOG.warning, ["waiting for the store, which another program may hold"])
    waits.start()
    try:
        broken = open_store(config).mend()
    except UnicodeEncodeError:
        raise Unusable(f"the name {config.model!r} is not UTF-8; give another with --model", 2) from None
    finally:
        waits.cancel()
    if broken:
        LOG.warning("%s jobs of the store could not be read, and have failed", broken)


class Crew:
    """Worker processes; one that ends is replaced."""

    def __init__(self, config: Config, size: int) -> None:
        self._config = config
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._keep, name=f"v2l-crew-{n}", daemon=True) for n in range(size)]
        for thread in self._threads:
            thread.start()

    def _keep(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            process = subprocess.Popen([sys.executable, "-m", "v2l.serve.worker"], stdin=subprocess.PIPE, text=True)
            assert process.stdin is not None
            try:
                process.stdin.write(self._config.to_json())
                process.stdin.close()
            except OSError:
                pass  # it has ended already
            while process.poll() is None:
                if self._ending.wait(0.2):
                    process.terminate()
                    process.wait()
                    return
            LOG.error("a worker ended with %s; another begins", process.returncode)
            # One that cannot begin is not started over and over at full speed.
            self._ending.wait(max(0.0, 2.0 - (time.monotonic() - began)))

    def end(self) -> None:
        """Ends the workers as :meth:`Worker.stop` does, and waits for them."""
        self._ending.set()
        for thread in self._threads:
            thread.join()


def _serve(config: Config, options: argparse.Namespace) -> None:
    import uvicorn

    from .app import create_app

    app = create_app(config)
    # After what may fail.
    crew = Crew(config, options.workers) if options.workers else None

    class Server(uvicorn.Server):
        """Answers while the video at work is finished, and closes its port after that; at a second signal, at once."""

        _draining = False

        def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
            if self._draining:
                super().handle_exit(sig, frame)
                return
            self._draining = True
            threading.Thread(target=self._drain, name="v2l-drain", daemon=True).start()

        def _drain(self) -> None:
            LOG.info("ending: requests are refused, the video at work has %g s", config.drain)
            try:
                app.state.service.drain()
                if crew is not None:
                    crew.end()
            finally:
                self.should_exit = True

    # uvicorn sends signals again to whoever handled them before: there is nothing left to do.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda _signal, _frame: None)
    try:
        settings = uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            # The parser that bounds the head of a request.
            http="h11",
            ws="none",
            h11_max_incomplete_event_size=_HEAD,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, round(options.drain_seconds)),
            server_header=False,
            access_log=False,
            log_level="error" if options.quiet else "info",
            log_config=None,
        )
        Server(settings).run()
    finally:
        if crew is not None:
            crew.end()


def main(arguments: Sequence[str]) -> int:
    """Runs the command; gives its exit code."""
    options = _parser().parse_args(arguments)
    logs.configure(logging.ERROR if options.quiet else logging.INFO, datefmt="%H:%M:%S")
    missing = [name for name in ("fastapi", "uvicorn", "multipart", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"v2l serve: {', '.join(missing)} is not installed; pip install 'v2l[serve]'", file=sys.stderr)
        return 6
    import v2l

    with_ray = options.ray if options.ray is not None else not options.workers and importlib.util.find_spec("ray") is not None
    try:
        config = _config(options)
    except (OSError, ValueError) as error:
        print(f"v2l serve: {error}", file=sys.stderr)
        return 2
    except v2l.Error as error:
        print(f"v2l serve: {error}", file=sys.stderr)
        return error.status
    if config.store and importlib.util.find_spec("redis") is None:
        print("v2l serve: redis is not installed, and --store needs it; pip install 'v2l[redis]'", file=sys.stderr)
        return 6
    try:
        _prepare(config)
    except Unusable as error:
        print(f"v2l serve: {error}", file=sys.stderr)
        return error.code
    if not config.api_key and options.host not in ("127.0.0.1", "::1", "localhost"):
        LOG.warning("whoever reaches %s may use this server; --api-key-file asks for a key", options.host)
    LOG.info("serving %s as %s; jobs and videos lie in %s", config.engines, config.model, config.data)
    try:
        if with_ray:
            from . import cluster

            fewest, most = options.replicas
            cluster.serve(config, options.host, options.port, fewest, most)
        else:
            _serve(config, options)
    except Unusable as error:
        print(f"v2l serve: {error}", file=sys.stderr)
        return error.code
    return 0


__all__: List[str] = ["Crew", "main"]
