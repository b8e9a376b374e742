"""The HTTP application: `/v1/videos` as vLLM-Omni and SGLang speak it, and what belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import secrets
import threading
import time
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, List, Optional, Tuple, Type

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from . import fields, forms, logs, metrics, uploads
from .adapters import MOST, TARGET_NAMES, Adapters, Checker, Entry, has_two_transformers, stack_key
from .config import Config
from .door import KEPT, Door
from .errors import Refused
from .guard import Guard
from .health import Health
from .identity import identified
from .store import Job, NoSuchJob, QueueFull, Store, open_store
from .trouble import Trouble
from .worker import Worker, remove, remove_files, sweep

LOG = logging.getLogger(logs.NAME)

#: How often the server looks whether a synchronous request's video is done that another process makes.
_POLL = 0.01
#: HTTP statuses of jobs that have failed, for clients that wait for the video; 500 of others.
_OF_JOBS = {"invalid_argument": 400, "bad_adapter": 400, "numeric": 400, "unsupported": 501, "memory": 503, "engines_replaced": 503}
#: How often what is too old is removed.
_SWEEP = 60.0


class Service:
    """What the routes share."""

    def __init__(self, config: Config) -> None:
        self.config = config
        for folder in ("uploads", "videos", "predictions"):
            (config.data / folder).mkdir(parents=True, exist_ok=True)
        self.store = open_store(config)
        #: What is raised while jobs or files cannot be written.
        self.unwritten: Tuple[Type[Exception], ...] = (OSError, *self.store.errors)
        self.health = Health(config, self.store, LOG)
        self.adapters = Adapters(config.lora_folders, has_two_transformers(config.engines))
        self.checker = Checker(config.engines)
        self.door = Door(config)
        self._draining = False
        self._worker: Optional[Worker] = None
        self._thread: Optional[threading.Thread] = None

    # Beginning and end.

    @property
    def draining(self) -> bool:
        """True once the server is about to end, or the cluster that it belongs to."""
        return self._draining or self.store.is_ending(self.config.generation)

    def begin(self) -> None:
        """Starts the worker of this process."""
        self._worker = Worker(self.config, self.store)
        self._thread = threading.Thread(target=self._worker.run, name="v2l-worker")
        self._thread.start()

    def drain(self) -> None:
        """Takes no more requests, and returns once the video at work is done or back in the queue."""
        self._draining = True
        if self._worker is not None and self._thread is not None:
            self._worker.stop()
            self._thread.join()

    # From a request to a job.

    async def read(self, request: Request) -> Tuple[fields.Checked, Dict[str, Tuple[str, Any]]]:
        """The fields of a request, and its files: for what each is, its field, and the upload or its content."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        files: Dict[str, Tuple[str, Any]] = {}
        if kind == "application/json":
            given = fields.parsed(await request.body(), "the body")
            if not isinstance(given, dict):
                raise Refused(400, "the body is not a JSON object; expected one with the fields of a request")
        elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
            texts: List[Tuple[str, str]] = []
            for name, value in await forms.read(request, kind, self.config.max_json):
                if isinstance(value, UploadFile):
                    what = fields.FILES.get(name)
                    if what is None:
                        raise Refused(400, f"{name[:80]} is not a field for a file; expected {', '.join(fields.FILES)}", name[:80])
                    if what in files:
                        raise Refused(400, f"{name} is given together with {files[what][0]}; expected one of them", name)
                    files[what] = (name, value)
                else:
                    texts.append((name, value))
            given = fields.form_fields(texts)
        else:
            raise Refused(415, "the body has another type; expected application/json or multipart/form-data")
        checked = fields.checked(given)
        for what, (name, url) in fields.urls(checked).items():
            if what in files:
                raise Refused(400, f"{name} is given together with {files[what][0]}; expected one of them", name)
            files[what] = (name, uploads.decoded_url(url, name))
        return checked, files

    async def create(self, request: Request) -> Job:
        """Makes a job of a request, or refuses it."""
        if self.draining:
            raise Refused(503, "the server is shutting down; send this to another server, or again later")
        checked, files = await self.read(request)
        try:
            return await self._created(checked, files)
        finally:
            for _, content in files.values():
                if isinstance(content, UploadFile):
                    content.file.close()

    async def _created(self, checked: fields.Checked, files: Dict[str, Tuple[str, Any]]) -> Job:
        values = fields.plain(checked, self.config)
        if ("reference" in files or values.get("effect")) and not self.door.predicts:
            raise Refused(400, "this model has no predictor; leave out references and effect", "reference_video", "unsupported")
        fields.without_effect(values, "reference" in files)
        if checked.user:
            LOG.info("a request of user %r", checked.user)
        return await run_in_threadpool(self._create, checked, values, files)

    def _create(self, checked: fields.Checked, values: Dict[str, Any], files: Dict[str, Tuple[str, Any]]) -> Job:
        if checked.lora is not None:
            values["lora"] = self.adapters.resolve(checked.lora)
        else:
            values["lora"] = self.default_stack()
        self.checker.check(values["lora"])
        values.setdefault("seed", secrets.randbits(32))
        id = self.store.new_id()
        folder = self.config.data / "uploads" / id
        try:
            for what, (name, content) in files.items():
                folder.mkdir(exist_ok=True)
                values[what], values[f"{what}_hash"] = self._save(folder / what, name, what, content)
            values["resolved"] = self.door.resolved(values, {what: name for what, (name, _) in files.items()})
            try:
                return self.store.create(id, values, stack_key(values), self.config.max_queued)
            except QueueFull as full:
                raise Refused(429, str(full)) from None
        except BaseException:
            remove(folder)
            raise

    def _save(self, file: Path, name: str, what: str, content: Any) -> Tuple[str, str]:
        """Writes an upload below the server's own folder; gives its path and its hash."""
        digest = hashlib.sha256()
        with open(file, "xb") as out:
            if isinstance(content, bytes):
                digest.update(content)
                out.write(content)
            else:
                while chunk := content.file.read(1 << 20):
                    digest.update(chunk)
                    out.write(chunk)
        named = uploads.check(file, video=what == "reference", most=self.config.max_decoded, what=name)
        return str(named), digest.hexdigest()

    def default_stack(self) -> List[Entry]:
        """The adapters of requests that name none."""
        state = self.store.state("lora") or {}
        if not state.get("active"):
            return []
        return [(entry["path"], entry["strength"], entry["target"]) for entry in state["stack"]]

    # From a job to an answer.

    def shown(self, job: Job) -> Dict[str, Any]:
        """A job as clients see it."""
        request = job.request
        # What the request comes to, and once there is a video what is in it. Jobs of earlier servers say neither.
        made: Dict[str, Any] = {**dict.fromkeys(KEPT), **(request.get("resolved") or {}), **(job.made or {})}
        if job.made is not None:
            made["seconds"] = made["num_frames"] / made["fps"]
        error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
        return {
            "id": job.id,
            "object": "video",
            "model": job.model,
            "prompt": request["prompt"],
            "status": job.status,
            "progress": job.progress,
            "created_at": int(job.created),
            "completed_at": None if job.completed is None else int(job.completed),
            "expires_at": None if job.completed is None else int(job.completed + self.config.keep),
            "size": None if made["width"] is None else f"{made['width']}x{made['height']}",
            "seconds": None if made["seconds"] is None else f"{made['seconds']:g}",
            "quality": "standard",
            "remixed_from_video_id": None,
            "error": error,
            "media_type": "video/mp4",
            "file_name": f"{job.id}.mp4" if job.file else None,
            "seed": request["seed"],
            "num_frames": made["num_frames"],
            "fps": made["fps"],
            "num_inference_steps": made["num_inference_steps"],
            "warnings": made["warnings"],
            "attempts": job.attempts,
            "inference_time_s": job.durations.get("total"),
            "stage_durations": {phase: time for phase, time in job.durations.items() if phase != "total"},
            "queue_position": self.store.position(job) if job.status == "queued" else None,
        }

    def find(self, id: str) -> Job:
        """The job of an identifier."""
        job = self.store.get(id) if len(id) < 100 else None
        if job is None:
            raise Refused(404, f"there is no video {id!r:.80}", "video_id")
        return job

    def file(self, job: Job) -> Path:
        """The video of a job that is done."""
        if job.status == "failed":
            raise Refused(404, f"the video failed: {job.error_message}", "video_id", "video_failed")
        if job.file is None:
            raise Refused(404, "Generation is still in-progress", "video_id", "not_ready")
        file = self.config.data / "videos" / job.file
        if not file.is_file():
            raise Refused(410, "the video has expired", "video_id")
        return file

    def delete(self, id: str) -> None:
        """Cancels a job and forgets it with all that belongs to it."""
        # On a full disk the store can be changed once there is room.
        remove_files(self.config, id)
        self.store.delete(id)
        # What its worker wrote meanwhile.
        remove_files(self.config, id)


def create_app(config: Config, dispatch: Optional[Callable[[Service], Any]] = None) -> FastAPI:
    """The application over an engine directory. ``dispatch`` starts what gives jobs to workers elsewhere, and gives what ends it."""
    config = identified(config)
    service = Service(config)
    trouble = Trouble(LOG)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if config.in_process and dispatch is None:
            service.begin()
        ended = dispatch(service) if dispatch is not None else None
        sweeping = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeping.cancel()
            if ended is not None:
                ended()
            await run_in_threadpool(service.drain)

    app = FastAPI(title="v2l", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Guard, config=config)

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "5"} if error.status in (429, 503) else {}
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(Refused(error.status_code, str(error.detail)).body(), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(place) for place in first["loc"][1:])[:80]
        return await refused(request, Refused(400, f"{name}: {first['msg']}"[:300], name))

    @app.exception_handler(OSError)
    async def no_room(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
            return await unexpected(request, error)
        LOG.error("uploads cannot be kept: %s", error)
        return await refused(request, Refused(503, "the server has no room for uploads now; try again later"))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, _error: Exception) -> JSONResponse:
        return await refused(request, Refused(500, "the server failed; its log says why"))

    async def lost(_request: Request, error: Exception) -> JSONResponse:
        trouble.failed("the jobs cannot be read or written", error)
        told = Refused(503, "the jobs cannot be read or written now, and are kept; try again later")
        return JSONResponse(told.body(), 503, {"Retry-After": "5"})

    for kind in service.store.errors:
        app.add_exception_handler(kind, lost)

    @app.get("/health")
    def health() -> JSONResponse:
        """200 while requests are taken; 503 while the server ends, or while its jobs cannot be read or written."""
        service.store.statuses()
        draining = service.draining
        if not draining and not service.health.is_well():
            raise Refused(503, "jobs and videos cannot be written now, or could not ten seconds ago; try again later")
        return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    @app.get("/metrics")
    def measured() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(metrics.rendered(service.store), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    def models() -> Dict[str, Any]:
        """The one model of this server."""
        return {"object": "list", "data": [{"id": config.model, "object": "model", "created": 0, "owned_by": "v2l"}]}

    body = {"application/json": {"schema": fields.VideoRequest.model_json_schema()}}

    @app.post("/v1/videos", openapi_extra={"requestBody": {"content": body, "required": True}})
    async def create(request: Request) -> Dict[str, Any]:
        """Takes a video to make; answers at once."""
        job = await service.create(request)
        return await run_in_threadpool(service.shown, job)

    @app.post("/v1/videos/sync", openapi_extra={"requestBody": {"content": body, "required": True}})
    async def create_and_wait(request: Request) -> Response:
        """Makes a video and answers with it. A client that goes away cancels it."""
        job = await service.create(request)
        id = job.id
        gone = asyncio.create_task(_gone(request))
        changed, wake = watch(service.store)
        try:
            job = await run_in_threadpool(service.find, id)
            while job.status in ("queued", "in_progress"):
                if gone.done():
                    raise Refused(499, "the client went away")
                if job.status == "queued" and service.draining:
                    raise Refused(503, "the server is shutting down; send this to another server, or again later")
                await waited(changed, _POLL)
                job = await run_in_threadpool(service.find, id)
        except BaseException:
            await run_in_threadpool(service.delete, id)
            raise
        finally:
            gone.cancel()
            service.store.watchers.remove(wake)
        if job.error_code is not None:
            raise Refused(_OF_JOBS.get(job.error_code, 500), job.error_message or "", None, job.error_code)
        headers = {"X-Request-Id": id, "X-Model": job.model, "X-Inference-Time-S": f"{job.durations.get('total', 0.0):.3f}"}
        return FileResponse(await run_in_threadpool(service.file, job), media_type="video/mp4", headers=headers)

    @app.get("/v1/videos")
    def videos(limit: int = 20, after: Optional[str] = None, order: str = "desc") -> Dict[str, Any]:
        """The videos, newest first unless ``order`` is ``asc``."""
        if not 1 <= limit <= 100 or order not in ("asc", "desc"):
            raise Refused(400, "limit is 1 to 100, order asc or desc", "limit")
        try:
            found = service.store.list(limit + 1, after, order == "asc")
        except NoSuchJob:
            raise Refused(404, f"there is no video {after!r:.80}, and none was deleted lately; list from the beginning", "after") from None
        data = [service.shown(job) for job in found[:limit]]
        ids = [video["id"] for video in data]
        first, last = (ids[0], ids[-1]) if ids else (None, None)
        return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(found) > limit}

    @app.get("/v1/videos/{id}")
    def video(id: str) -> Dict[str, Any]:
        """A video, and how far it is."""
        return service.shown(service.find(id))

    @app.get("/v1/videos/{id}/content")
    def content(id: str, variant: str = "video") -> FileResponse:
        """The mp4 of a video that is done."""
        if variant != "video":
            raise Refused(400, f"variant is {variant!r:.40}; expected video", "variant")
        file = service.file(service.find(id))
        return FileResponse(file, media_type="video/mp4", filename=f"{id}.mp4")

    @app.delete("/v1/videos/{id}")
    def delete(id: str) -> Dict[str, Any]:
        """Cancels a video that is not done, and forgets it."""
        service.find(id)
        service.delete(id)
        return {"id": id, "object": "video.deleted", "deleted": True}

    @app.post("/v1/set_lora")
    async def set_lora(request: Request) -> Dict[str, Any]:
        """Sets the adapters of later requests that name none."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body is not JSON; send it with Content-Type: application/json")
        given = fields.parsed(await request.body(), "the body")
        stack = await run_in_threadpool(_stack_of, service, given)
        await run_in_threadpool(service.store.set_state, "lora", {"stack": stack, "active": True})
        return {"status": "success", "adapters": [{key: entry[key] for key in ("nickname", "strength")} for entry in stack]}

    def switch(active: bool) -> Dict[str, Any]:
        state = service.store.state("lora") or {"stack": []}
        service.store.set_state("lora", {**state, "active": active})
        return {"status": "success"}

    @app.post("/v1/merge_lora_weights")
    def merge() -> Dict[str, Any]:
        """Takes the adapters of ``set_lora`` into use again."""
        return switch(True)

    @app.post("/v1/unmerge_lora_weights")
    def unmerge() -> Dict[str, Any]:
        """Leaves the adapters of ``set_lora`` out, until they are merged again."""
        return switch(False)

    @app.get("/v1/list_loras")
    def list_loras() -> Dict[str, Any]:
        """Adapters that there are, and those in use for requests that name none."""
        state = service.store.state("lora") or {"stack": [], "active": False}
        active: Dict[str, List[Dict[str, Any]]] = {"all": []}
        for entry in state["stack"] if state["active"] else []:
            shown = {"nickname": entry["nickname"], "strength": entry["strength"], "merged": True}
            active.setdefault(TARGET_NAMES[entry["target"]], []).append(shown)
        known = [{"nickname": name, "path": f"{name}.safetensors"} for name in service.adapters.names()]
        return {"loaded_adapters": known, "active": active}

    # HTTP asks for HEAD wherever GET is.
    for route in app.routes[:]:
        if isinstance(route, APIRoute) and route.methods == {"GET"}:
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    return app


def _stack_of(service: Service, given: Any) -> List[Dict[str, Any]]:
    """What ``set_lora`` says: names, paths, targets and strengths, each one or a list of them."""
    if not isinstance(given, dict):
        raise Refused(400, "the body is not a JSON object; expected one with the fields of a request")
    unknown = sorted(set(given) - {"lora_nickname", "lora_path", "target", "strength"})
    if unknown:
        raise Refused(400, f"{unknown[0]!r:.40} is not a field of set_lora; leave it out", unknown[0][:40])

    def listed(value: Any) -> List[Any]:
        return value if isinstance(value, list) else [value]

    names, paths = listed(given.get("lora_nickname")), listed(given.get("lora_path"))
    targets, strengths = listed(given.get("target")), listed(given.get("strength", 1.0))
    count = max(len(names), len(paths))
    if count > MOST:
        raise Refused(400, f"lora_nickname has {count} adapters; expected at most {MOST}", "lora_nickname")
    if any(len(values) not in (1, count) for values in (names, paths, targets, strengths)):
        raise Refused(400, f"lists of different lengths; expected {count} of each, or one", "lora_nickname")
    stack: List[Dict[str, Any]] = []
    for place in range(count):
        given_here = [values[place] if len(values) > 1 else values[0] for values in (names, paths, strengths, targets)]
        name, path, strength, target = given_here
        ((file, scale, experts),) = service.adapters.resolve([{"name": name, "path": path, "scale": strength, "target": target}])
        stack.append({"nickname": name or Path(file).stem, "path": file, "strength": scale, "target": experts})
    service.checker.check([(str(entry["path"]), 1.0, entry["target"]) for entry in stack])
    return stack


def watch(store: Store) -> Tuple[asyncio.Event, Callable[[], object]]:
    """An event that is set when the store changes in this process, and what sets it: to be removed from the store's watchers."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        # The server may be at its end.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(changed.set)

    store.watchers.append(wake)
    return changed, wake


async def waited(changed: asyncio.Event, seconds: float) -> None:
    """Waits for a change, which others may make unseen: so not for long."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(changed.wait(), seconds)
    changed.clear()


async def _gone(request: Request) -> None:
    """Ends when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _sweep(service: Service) -> None:
    while True:
        try:
            await run_in_threadpool(sweep, service.store, service.config)
        except service.unwritten as error:
            LOG.error("what is too old could not be removed: %s", error)
        except Exception:
            LOG.exception("what is too old could not be removed")
        await asyncio.sleep(_SWEEP)
