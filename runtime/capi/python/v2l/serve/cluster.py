"""The server on Ray Serve: replicas of an engine directory, and requests routed to the replica that has their adapters.

Two deployments. ``v2l-ingress`` is the HTTP application, which puts jobs into the store and sends each waiting one to ``v2l-engine``. A replica of that
claims the job in the store, makes its video, and records what became of it. So a replica that dies costs a job one more try, and an ingress
that dies costs nothing: the next one finds the store as it was.

``v2l serve ENGINES --ray`` starts it on this machine, ``serve run v2l.serve.cluster:application engines=ENGINES data=FOLDER`` on a cluster whose nodes share
these folders. Needs ``v2l[serve,ray]``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib
import logging
import os
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

from .app import Service, create_app, waited, watch
from .config import Config
from .identity import identified
from .store import Job, open_store
from .trouble import Trouble
from .worker import Worker

LOG = logging.getLogger("v2l.serve")

APPLICATION = "v2l"
ENGINE = "v2l-engine"
INGRESS = "v2l-ingress"
#: Stacks that a replica is known for at the same time.
_STACKS = 8
#: How often a replica asks whether it is about to end, and how long it has to put a job back once the time for that job is over.
_ASK = 0.25
_MARGIN = 20.0
#: How often the ingress looks for jobs that wait and came by another.
_LOOK = 0.05


def _shutting_down() -> Callable[[], bool]:
    """What says whether Ray ends the replica of this process.

    Ray has no call for it: a replica's ``__del__`` comes after its last request, and the process is killed if that takes too long. Its object
    for the replica knows; where a version of Ray has no such object, a planned end counts as a lost worker.
    """
    for found in gc.get_objects():
        kind = type(found)
        if kind.__module__ == "ray.serve._private.replica" and "_shutting_down" in getattr(found, "__dict__", {}):
            return lambda: bool(found._shutting_down)
    LOG.warning("this version of Ray does not say when it ends a replica")
    return lambda: False


class Engine:
    """A replica: one engine directory, one video at a time."""

    def __init__(self, config: str) -> None:
        told = Config.from_json(config)
        self._affine = told.affinity
        self._store = open_store(told)
        self._worker = Worker(told, self._store, label="replica")
        self._worker.open()
        self._one = asyncio.Lock()
        self._told = told
        threading.Thread(target=self._watch, args=(_shutting_down(),), name="v2l-ending", daemon=True).start()

    def _watch(self, ended_by_ray: Callable[[], bool]) -> None:
        """Puts the job back in good time when Ray ends this replica, or the cluster ends."""
        trouble, what = Trouble(LOG), "whether the cluster ends cannot be read"
        while True:
            try:
                if ended_by_ray() or self._store.is_ending(self._told.generation):
                    self._worker.stop()
                    return
                trouble.went(what)
            except self._store.errors as error:
                trouble.failed(what, error)
            except Exception:
                LOG.exception(what)
            time.sleep(_ASK)

    async def make(self, id: str) -> bool:
        """Makes a video: that of the job, or of another that fits the adapters in use; false if none waits.

        The caller may go away meanwhile. A job that another's call has made does not wait any more when its own call comes.
        """
        return await asyncio.shield(asyncio.create_task(self._make(id)))

    async def _make(self, id: str) -> bool:
        serve: Any = importlib.import_module("ray.serve")
        stack = serve.get_multiplexed_model_id()
        async with self._one:
            if stack and self._affine:
                await self.stack(stack)
            return await asyncio.to_thread(self._worker.take, id)

    async def stack(self, key: str) -> str:
        """Makes the replica known for a stack of adapters; the adapters themselves come with the job."""
        return key

    def check_health(self) -> None:
        """Raises if the store cannot be read, and Ray replaces the replica."""
        self._worker.check()


async def _dispatch(service: Service, handle: Any) -> None:
    """Sends each job that waits to a replica, by the stack that it needs."""
    sent: Dict[str, "asyncio.Task[None]"] = {}

    async def send(job: Job) -> None:
        try:
            routed = handle.options(multiplexed_model_id=job.stack) if service.config.affinity else handle
            await routed.make.remote(job.id)
            service.store.changed()
        except Exception as error:
            # The job is in the store all the same, and goes out again when it waits again.
            LOG.warning("%s: the replica is lost or takes nothing: %s", job.id, type(error).__name__)
            await asyncio.sleep(0.5)

    def waiting() -> List[Job]:
        service.store.recover(service.config.lease)
        return service.store.queued()

    changed, _ = watch(service.store)
    trouble, what = Trouble(LOG), "the queue cannot be read"
    while True:
        try:
            ending = await asyncio.to_thread(service.store.is_ending, service.config.generation)
            for job in [] if ending else await asyncio.to_thread(waiting):
                if job.id not in sent:
                    sent[job.id] = asyncio.create_task(send(job))
            trouble.went(what)
        except service.store.errors as error:
            trouble.failed(what, error)
        except Exception:
            LOG.exception(what)
        for id in [id for id, task in sent.items() if task.done()]:
            del sent[id]
        await waited(changed, _LOOK)


def _deployed(config: Config, fewest: int, most: int) -> Any:
    """The application for ``ray.serve.run``."""
    serve: Any = importlib.import_module("ray.serve")
    # Replicas elsewhere must find the same engines.
    config = identified(config)
    text = config.to_json()

    def build() -> Any:
        def dispatch(service: Service) -> Callable[[], object]:
            # Of the application that this replica belongs to, whatever its name.
            handle = serve.get_deployment_handle(ENGINE)
            return asyncio.create_task(_dispatch(service, handle)).cancel

        return create_app(Config.from_json(text), dispatch)

    engine = type("Engine", (Engine,), {})
    if config.affinity:
        setattr(engine, "stack", serve.multiplexed(max_num_models_per_replica=_STACKS)(Engine.stack))
    scaled: Dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        scaled = {
            "autoscaling_config": {
                "min_replicas": fewest,
                "max_replicas": most,
                "target_ongoing_requests": 2,
                "upscale_delay_s": 5,
                "downscale_delay_s": 300,
            }
        }
    engines = serve.deployment(
        name=ENGINE,
        # A video waits where any replica can take it, not behind another.
        max_ongoing_requests=1,
        # The store bounds the queue.
        max_queued_requests=-1,
        health_check_period_s=5,
        health_check_timeout_s=30,
        # Ray kills what takes longer.
        graceful_shutdown_timeout_s=config.drain + _MARGIN,
        ray_actor_options={"num_cpus": 1},
        **scaled,
    )(engine)
    ingress = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=256,
        max_queued_requests=256,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=config.drain,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress(build)())
    return ingress.bind(engines.bind(text))


def application(arguments: Dict[str, str]) -> Any:
    """The application for ``serve run v2l.serve.cluster:application KEY=VALUE…``.

    ``engines`` and ``data`` are folders that every node sees; ``model``, ``store``, ``lora_folder`` and ``replicas`` (``N`` or ``N:M``) are as in ``v2l serve``. The key is
    ``V2L_API_KEY`` of the environment.
    """
    engines = Path(arguments["engines"])
    folder = arguments.get("lora_folder")
    fewest, _, most = arguments.get("replicas", "1").partition(":")
    config = Config(
        engines=engines,
        data=Path(arguments["data"]),
        store=arguments.get("store") or os.environ.get("V2L_STORE", ""),
        model=arguments.get("model") or engines.name,
        lora_folders=(Path(folder),) if folder else (),
        api_key=os.environ.get("V2L_API_KEY") or None,
        in_process=False,
    )
    return _deployed(config, int(fewest), int(most or fewest))


def serve(config: Config, host: str, port: int, fewest: int, most: int) -> None:
    """Serves on Ray until a signal ends it: on the cluster that ``RAY_ADDRESS`` names, or on one of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = importlib.import_module("ray")
    ray_serve: Any = importlib.import_module("ray.serve")
    alone: Dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        # Ray's count of processors only books replicas; a machine with one may have several.
        alone = {"address": "local", "num_cpus": max(os.cpu_count() or 1, most + 1), "include_dashboard": False, "log_to_driver": False}
    config = dataclasses.replace(identified(config), generation=secrets.token_hex(8))
    store = open_store(config)
    ray.init(logging_level=logging.WARNING, **alone)
    # Ray has put its own functions here, which end the process at once.
    ended = threading.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda _signal, _frame: ended.set())
    try:
        ray_serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": 15})
        ray_serve.run(_deployed(config, fewest, most), name=APPLICATION, route_prefix="/")
        LOG.info("Ray Serve running on http://%s:%s", host, port)
        ended.wait()
        LOG.info("ending: requests are refused, the videos at work have %g s", config.drain)
        store.set_ending(config.generation, True)
        until = time.monotonic() + config.drain + _MARGIN
        while store.statuses()["in_progress"] and time.monotonic() < until:
            time.sleep(_ASK)
    finally:
        ray_serve.shutdown()
        ray.shutdown()
        store.set_ending(config.generation, False)
