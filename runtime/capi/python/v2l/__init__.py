"""The v2l runtime: predict LoRA adapters from a reference, apply them to a video diffusion transformer, generate video.

Arrays go in without a copy if they are C-contiguous and have the graph's type; PyTorch's tensors and Pillow's images will do, too. What comes
out is copied once, into arrays of your own.
Every handle may be used from any thread; calls release the interpreter's lock. See ``v2l.h`` for what each call costs and refuses.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import math
import os
import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

import v2l_tools as _libraries

from . import _native
from ._arrays import NUMPY as _NUMPY, array_of as _array_of, frames_of as _frames_of, is_path as _is_path
from ._control import Cancel, Control as _Control, Phase, Progress as Progress
from ._handles import STOPS as _STOPS, Handle as _Handle, Owner as _Owner
from ._library import LIBRARY as _lib, Error
from ._native import call as _call, initial as _initial, made as _made
from ._request import FIELDS as FIELDS, PICTURES as _PICTURES, TENSORS as _TENSORS, Request as Request
from ._values import array as _array, json_of as _json_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Adapter", "AdapterKey", "AdapterLayer", "AdapterMode", "AdapterReport", "AdapterSet", "Arithmetic", "Backend", "Cancel", "Coverage", "Engine", "Error", "Experts", "FIELDS", "Format", "Frames",
    "Latent", "LogLevel", "OpenVinoPrecision", "Phase", "Pipeline", "Port", "Predictor", "Range", "Request", "Resize", "Session", "Slot", "Weights", "images", "resolve", "set_log", "version",
]

Path = Union[str, "os.PathLike[str]"]
#: Frames: uint8 ``[frames, height, width, 3]`` in RGB or float32 ``[1, 3, frames, height, width]`` in [-1, 1], an array or a PyTorch tensor; one
#: image, uint8 ``[height, width, 3]`` or Pillow's; or a sequence of images.
Frames = Any
#: Adapters to apply, with their strengths; none is the base model.
AdapterSet = Sequence[Tuple["Adapter", float]]


class Weights(enum.IntEnum):
    """How weights that are stored in 16 bits are held."""

    AUTO = 0
    F32 = 1
    STORED = 2


class Arithmetic(enum.IntEnum):
    """In which types graphs compute."""

    FP32 = 0
    PLAN = 1


class AdapterMode(enum.IntEnum):
    """How a pipeline applies adapters."""

    AUTO = 0
    FUSE = 1
    BRANCH = 2


class Backend(enum.IntEnum):
    """What runs engines."""

    COMPILED = 0
    ORT = 1
    TENSORRT_RTX = 2
    TENSORRT = 3
    OPENVINO = 4


class OpenVinoPrecision(enum.IntEnum):
    """In which type graphs compute on OpenVINO."""

    AUTO = 0
    F32 = 1
    BF16 = 2
    INT8 = 3


class Format(enum.IntEnum):
    """How an adapter's file spells its keys."""

    PEFT = 1
    DIFFUSERS = 2
    KOHYA = 3
    VIDEOX_FUN = 4
    COMFY = 5
    BARE = 6
    LIGHT = 7
    LIGHT_FULL = 8


class Experts(enum.IntEnum):
    """Which transformers an adapter is for, of a model with two."""

    #: Those that the file's keys or its name say; both if they say nothing.
    AUTO = 0
    #: ``transformer``, which makes the first steps, of high noise.
    HIGH = 1
    #: ``transformer_2``, which makes the last steps, of low noise.
    LOW = 2
    BOTH = 3


class Range(enum.IntEnum):
    """Range of a reference's pixels."""

    DEFAULT = 0
    UNIT = 1
    SIGNED = 2


class Resize(enum.IntEnum):
    """How a reference is brought to the size of the video."""

    DEFAULT = 0
    STRETCH = 1
    COVER_CROP = 2
    NONE = 3


class Latent(enum.IntEnum):
    """Which latent of a reference the predictor gets."""

    DEFAULT = 0
    MEAN = 1
    SAMPLE = 2


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; a free extent is its name."""

    name: str
    dtype: "np.dtype[Any]"
    shape: Tuple[Union[int, str], ...]


@dataclass(frozen=True)
class Slot:
    """A linear layer that adapters may change."""

    name: str
    tensor: str
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Coverage:
    """What became of an adapter's file."""

    keys: int
    applied: int
    ignored: int
    slots_covered: int
    slots_total: int
    parameters_covered: int


@dataclass(frozen=True)
class AdapterKey:
    """What became of a key of an adapter's file; ``detail`` is the slot that it changes, or why it changes none."""

    key: str
    detail: str
    applied: bool


@dataclass(frozen=True)
class AdapterLayer:
    """One slot's update, ``alpha / rank * up @ down``: float32 ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``.

    Of a full difference ``down`` is None, and ``up`` ``[out, in]`` is the update.
    """

    slot: str
    down: Optional[NDArray[Any]]
    up: NDArray[Any]
    alpha: float


@dataclass(frozen=True)
class AdapterReport:
    """What became of adapters when they were applied; ``survived`` is the part of the update that rounding leaves."""

    slots: int
    survived: float
    relative_error: float
    unchanged: float


class LogLevel(enum.IntEnum):
    """How much a message matters."""

    WARNING = 1
    INFO = 2


#: The log's function as C sees it; it lives as long as it is the log's.
_LOG: List[object] = []


def set_log(log: Optional[Callable[[LogLevel, str], None]]) -> None:
    """Sends the library's messages to ``log``, on whichever thread works; ``None`` to nobody. What it raises is lost."""
    if log is not None and not callable(log):
        raise TypeError(f"log is a {type(log).__name__}; expected a function, or None")

    def on_message(_user: object, level: int, message: bytes) -> None:
        try:
            assert log is not None
            log(LogLevel(level), message.decode(errors="replace"))
        except Exception:  # there is no caller to tell
            pass

    callback = _native.LOG_CALLBACK(on_message) if log is not None else _native.LOG_CALLBACK()
    # Before the call: Ctrl-C may come between it and what follows.
    _LOG.append(callback)
    _call("v2l_set_log", callback, None)
    del _LOG[:-1]


def _end_log() -> None:
    """When this returns, no thread is inside the log's function, and none will be."""
    _lib.v2l_set_log(_native.LOG_CALLBACK(), None)


_STOPS.append(_end_log)


def images(frames: NDArray[Any]) -> List[Any]:
    """Frames, uint8 ``[frames, height, width, 3]``, as images of Pillow, which must be installed."""
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def version() -> str:
    """The library's version."""
    text: bytes = _lib.v2l_version()
    return text.decode()


def _path(path: Path) -> bytes:
    return os.fsencode(path)


def _tensor(value: Any, name: Optional[str] = None) -> _native.Tensor:
    """A view of an array, which it keeps alive."""
    array, number = _array_of(value)
    tensor = _native.Tensor()
    tensor.name = name
    tensor.data = array.ctypes.data
    tensor.keep("data", array)
    tensor.dtype, tensor.rank = number, array.ndim
    tensor.shape = _array(ctypes.c_int64, array.shape, "shape")
    tensor.strides = _array(ctypes.c_int64, array.strides, "strides")
    return tensor


def _copied(tensor: _native.Tensor) -> NDArray[Any]:
    """A copy of one of the library's tensors."""
    shape = tuple(tensor.shape[: tensor.rank])
    kind = np.dtype(_NUMPY[tensor.dtype])
    data = ctypes.string_at(tensor.data, math.prod(shape) * kind.itemsize) if math.prod(shape) else b""
    array: NDArray[Any] = np.frombuffer(data, kind).reshape(shape).copy()
    return array


class _Tensors(_Handle):
    """What the library gives out."""

    _kind = "tensors"

    def arrays(self) -> Dict[str, NDArray[Any]]:
        """Copies of the tensors."""
        with self._in_use():
            count = ctypes.c_size_t()
            _call("v2l_tensors_count", self, ctypes.byref(count))
            arrays = {}
            for index in range(count.value):
                tensor = _native.Tensor()
                _call("v2l_tensors_get", self, index, ctypes.byref(tensor))
                arrays[tensor.name.decode()] = _copied(tensor)
            return arrays


def _weighted(adapters: AdapterSet) -> Tuple[ctypes.Array[Any], int]:
    """A set of adapters for C, and how many they are."""
    set_of = []
    for at, pair in enumerate(adapters):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"adapters[{at}] is a {type(pair).__name__}; expected an adapter and its strength")
        weighted = _native.WeightedAdapter()
        weighted.adapter, weighted.strength = pair
        if pair[0] is None:
            raise TypeError(f"adapters[{at}] is None; expected an Adapter")
        set_of.append(weighted)
    return _array(_native.WeightedAdapter, set_of, "adapters"), len(set_of)


def _open_options(
    ort_library: Optional[Path] = None,
    ffmpeg: Optional[Path] = None,
    memory_limit: int = 0,
    threads: int = 0,
    weights: Weights = Weights.AUTO,
    arithmetic: Arithmetic = Arithmetic.FP32,
    adapter_mode: AdapterMode = AdapterMode.AUTO,
    verify_hashes: bool = False,
    backend: Backend = Backend.COMPILED,
    device: int = 0,
    trt_library: Optional[Path] = None,
    provider: Optional[str] = None,
    prediction_cache: Optional[Path] = None,
    prediction_cache_size: int = 0,
    fused_cache: Optional[Path] = None,
    fused_cache_size: int = 0,
    vae_tiling: Optional[bool] = None,
    verify: bool = True,
    openvino_library: Optional[Path] = None,
    openvino_precision: OpenVinoPrecision = OpenVinoPrecision.AUTO,
) -> ctypes.Structure:
    """``v2l_open_options``: the keyword arguments of :class:`Engine`, :class:`Predictor` and :class:`Pipeline`."""
    options = _initial(_native.OpenOptions)
    # Those that other wheels bring, unless the caller or the environment names some.
    others = _libraries.libraries()
    ort_library = ort_library or others.get("V2L_ORT_LIB")
    openvino_library = openvino_library or others.get("V2L_OPENVINO_LIB")
    ffmpeg = ffmpeg or others.get("V2L_FFMPEG")
    options.ort_library = None if ort_library is None else _path(ort_library)
    options.ffmpeg = None if ffmpeg is None else _path(ffmpeg)
    options.memory_limit, options.threads = memory_limit, threads
    options.weights, options.arithmetic, options.adapter_mode = weights, arithmetic, adapter_mode
    options.verify_hashes = int(verify_hashes)
    options.backend, options.device, options.no_verify = backend, device, int(not verify)
    options.trt_library = None if trt_library is None else _path(trt_library)
    options.openvino_library = None if openvino_library is None else _path(openvino_library)
    options.openvino_precision = openvino_precision
    options.provider = provider
    options.prediction_cache = None if prediction_cache is None else _path(prediction_cache)
    options.prediction_cache_size = prediction_cache_size
    options.fused_cache = None if fused_cache is None else _path(fused_cache)
    options.fused_cache_size = fused_cache_size
    options.vae_tiling = 0 if vae_tiling is None else 1 if vae_tiling else 2
    return options


class Engine(_Handle):
    """An engine file."""

    _kind = "engine"

    def __init__(self, file: Path, **options: object) -> None:
        given = _open_options(**options)  # type: ignore[arg-type]
        super().__init__(_made("engine", "v2l_engine_new", _path(file), ctypes.byref(given)))

    def _count(self, function: str, *arguments: object) -> int:
        count = ctypes.c_size_t()
        _call(function, self, *arguments, ctypes.byref(count))
        return count.value

    @property
    def component(self) -> str:
        """What the engine is: ``transformer``, …"""
        with self._in_use():
            name = ctypes.c_char_p()
            _call("v2l_engine_component", self, ctypes.byref(name))
            return (name.value or b"").decode()

    @property
    def graphs(self) -> List[str]:
        """Names of the graphs."""
        with self._in_use():
            names = []
            for index in range(self._count("v2l_engine_graph_count")):
                name = ctypes.c_char_p()
                _call("v2l_engine_graph", self, index, ctypes.byref(name))
                names.append((name.value or b"").decode())
            return names

    @property
    def slots(self) -> List[Slot]:
        """What adapters may change, in the order of the model's traversal."""
        with self._in_use():
            slots = []
            for index in range(self._count("v2l_engine_slot_count")):
                slot = _initial(_native.Slot)
                _call("v2l_engine_slot", self, index, ctypes.byref(slot))
                slots.append(Slot(slot.name.decode(), slot.tensor.decode(), slot.out_features, slot.in_features))
            return slots

    def _ports(self, graph: str, count: str, port: str) -> List[Port]:
        with self._in_use():
            ports = []
            for index in range(self._count(count, graph)):
                found = _initial(_native.Port)
                _call(port, self, graph, index, ctypes.byref(found))
                extents = ((found.shape[axis], found.symbols[axis]) for axis in range(found.rank))
                shape = tuple(symbol.decode() if symbol else extent for extent, symbol in extents)
                ports.append(Port(found.name.decode(), np.dtype(_NUMPY[found.dtype]), shape))
            return ports

    def inputs(self, graph: str) -> List[Port]:
        """Inputs of a graph, in graph order."""
        return self._ports(graph, "v2l_engine_input_count", "v2l_engine_input")

    def outputs(self, graph: str) -> List[Port]:
        """Outputs of a graph, in graph order."""
        return self._ports(graph, "v2l_engine_output_count", "v2l_engine_output")


class Adapter(_Handle):
    """Low-rank updates of some slots of an engine; with ``second``, of the two transformers of a model. See :meth:`Pipeline.adapter`."""

    _kind = "adapter"

    def __init__(
        self,
        engine: Engine,
        file: Path,
        *,
        predictor: Optional["Predictor"] = None,
        allow_partial: bool = False,
        second: Optional[Engine] = None,
        experts: Experts = Experts.AUTO,
    ) -> None:
        options = _initial(_native.AdapterOptions)
        options.predictor, options.second = predictor, second
        options.allow_partial = int(allow_partial)
        options.experts = experts
        super().__init__(_made("adapter", "v2l_adapter_new", engine, _path(file), ctypes.byref(options)))

    @property
    def coverage(self) -> Coverage:
        """What became of the file; a predicted adapter has no keys."""
        found = _initial(_native.Coverage)
        _call("v2l_adapter_coverage", self, ctypes.byref(found))
        counts = found.keys, found.applied, found.ignored, found.slots_covered, found.slots_total
        return Coverage(*counts, found.parameters_covered)

    @property
    def keys(self) -> List[AdapterKey]:
        """What became of each key of the file, in its order; none for a predicted adapter."""
        with self._in_use():
            keys = []
            for index in range(self.coverage.keys):
                found = _initial(_native.AdapterKey)
                _call("v2l_adapter_key_at", self, index, ctypes.byref(found))
                keys.append(AdapterKey(found.key.decode(), found.detail.decode(), found.outcome == 1))
            return keys

    @property
    def layers(self) -> List[AdapterLayer]:
        """Copies of the updates, slot by slot."""
        with self._in_use():
            count = ctypes.c_size_t()
            _call("v2l_adapter_layer_count", self, ctypes.byref(count))
            layers = []
            for index in range(count.value):
                found = _initial(_native.AdapterLayer)
                _call("v2l_adapter_layer_at", self, index, ctypes.byref(found))
                down = _copied(found.down) if found.down.data else None
                layers.append(AdapterLayer(found.slot.decode(), down, _copied(found.up), found.alpha))
            return layers

    def save(self, file: Path, format: Format = Format.PEFT) -> None:
        """Writes the adapter, whole or not at all."""
        _call("v2l_adapter_save", self, _path(file), format)


def _report(found: ctypes.Structure) -> AdapterReport:
    return AdapterReport(found.slots, found.survived, found.relative_error, found.unchanged)


class Session(_Handle):
    """A graph of an engine, with its adapters."""

    _kind = "session"

    def __init__(self, engine: Engine, graph: str) -> None:
        super().__init__(_made("session", "v2l_session_new", engine, graph))

    def set_adapters(self, adapters: AdapterSet, *, cancel: Optional[Cancel] = None) -> AdapterReport:
        """Replaces the adapters; if that fails, all is as it was."""
        report, (weighted, count) = _initial(_native.AdapterReport), _weighted(adapters)
        _Control(None, cancel).give_to(
            lambda control: _call("v2l_session_set_adapters", self, weighted, count, control, ctypes.byref(report))
        )
        return _report(report)

    def run(
        self, inputs: Mapping[str, Any], adapters: Optional[AdapterSet] = None, *, cancel: Optional[Cancel] = None
    ) -> Dict[str, NDArray[Any]]:
        """Runs the graph; with ``adapters``, these are set first and nothing comes between. ``cancel`` ends a fuse."""
        tensors = [_tensor(array, name) for name, array in inputs.items()]
        given = _array(_native.Tensor, tensors, "inputs")
        options = _initial(_native.RunOptions)
        arguments = given, len(tensors), ctypes.byref(options)
        if adapters is None:
            # Nothing in it can be stopped.
            return _Tensors(_made("tensors", "v2l_session_run", self, *arguments)).arrays()
        options.adapters, options.adapter_count = _weighted(adapters)

        def call(control: Any) -> _Owner:
            options.control = ctypes.cast(control, ctypes.POINTER(_native.Control))
            return _made("tensors", "v2l_session_run", self, *arguments)

        return _Tensors(_Control(None, cancel).give_to(call)).arrays()


class Predictor(_Handle):
    """The predictor of an engine directory: a reference becomes an adapter. Or any graph with a map: named arrays do."""

    _kind = "predictor"

    def __init__(self, directory: Path, **options: object) -> None:
        given = _open_options(**options)  # type: ignore[arg-type]
        super().__init__(_made("predictor", "v2l_predictor_new", _path(directory), ctypes.byref(given)))

    @classmethod
    def mapped(cls, engine: Path, map: Path, model: Engine, **options: object) -> "Predictor":
        """A predictor that v2l does not know by name: its engine, and the map from its outputs to the slots of ``model``."""
        given = _open_options(**options)  # type: ignore[arg-type]
        return cls._of(
            _made("predictor", "v2l_predictor_new_mapped", _path(engine), _path(map), model, ctypes.byref(given))
        )

    def predict(
        self,
        reference: Union[Path, Frames, None] = None,
        *,
        prompt: Optional[str] = None,
        tensors: Optional[Mapping[str, Any]] = None,
        fps: float = 0.0,
        width: int = 0,
        height: int = 0,
        seed: Optional[int] = None,
        range: Range = Range.DEFAULT,
        resize: Resize = Resize.DEFAULT,
        latent: Latent = Latent.DEFAULT,
        frame_count: int = 0,
        image: Union[Path, Frames, None] = None,
        progress: Optional[Progress] = None,
        cancel: Optional[Cancel] = None,
    ) -> Adapter:
        """Predicts from a file, or from :data:`Frames`.

        A predictor made by :meth:`mapped` predicts from ``tensors`` alone, those that its graphs read. One that reads a prompt takes
        ``prompt`` or, in its place, the ``tensors`` ``text_hidden`` and ``text_attention_mask``.
        ``image`` is the first frame of the video to generate, which may say its size.
        """
        given = _initial(_native.Reference)
        if _is_path(reference):
            given.file = _path(reference)
        elif reference is not None:
            given.frames = ctypes.pointer(_tensor(_frames_of(reference)))
        given.prompt = prompt
        if tensors is not None:
            named = [_tensor(array, name) for name, array in tensors.items()]
            given.tensors, given.tensor_count = _array(_native.Tensor, named, "tensors"), len(named)
        if _is_path(image):
            given.image_file = _path(image)
        elif image is not None:
            given.image = ctypes.pointer(_tensor(_frames_of(image)))
        given.fps, given.width, given.height, given.frame_count = fps, width, height, frame_count
        given.range, given.resize, given.latent = range, resize, latent
        if seed is not None:
            given.seed = seed
        return Adapter._of(
            _Control(progress, cancel).give_to(
                lambda control: _made("adapter", "v2l_predictor_predict", self, ctypes.byref(given), control)
            )
        )


class Pipeline(_Handle):
    """An engine directory: from a prompt, an image and adapters to a video."""

    _kind = "pipeline"

    def __init__(self, directory: Path, **options: object) -> None:
        given = _open_options(**options)  # type: ignore[arg-type]
        super().__init__(_made("pipeline", "v2l_pipeline_new", _path(directory), ctypes.byref(given)))
        self._directory = pathlib.Path(directory)

    @property
    def directory(self) -> pathlib.Path:
        """The engine directory."""
        return self._directory

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        cache: Optional[Path] = None,
        export: Optional[Mapping[str, Any]] = None,
        compile: Optional[Mapping[str, Any]] = None,
        progress: Optional[Callable[[Dict[str, Any]], None]] = None,
        cancel: Optional[Cancel] = None,
        **options: object,
    ) -> "Pipeline":
        """Opens a model's folder: exports and compiles it on first use, and finds the engines in ``cache`` after that.

        ``export`` and ``compile`` are flags of ``v2l-export`` and ``v2l-compile``, such as ``export={"hypernetwork": FILE, "light_lora": FILE}`` and
        ``compile={"precision": "bf16"}`` (see :mod:`v2l.tools`), ``progress`` is given their events. ``options`` are those of :class:`Pipeline`.
        An engine directory is opened as it is. ``cache`` is ``$V2L_CACHE``, or ``v2l/engines`` in the user's cache folder, if it is not given.
        """
        from . import _cache

        return cls(_cache.engines(folder, cache, export or {}, compile or {}, progress, cancel), **options)

    def engine(self, component: str) -> Engine:
        """The engine of a component, to load adapters for its slots."""
        return Engine._of(_made("engine", "v2l_pipeline_engine", self, component))

    def adapter(
        self,
        file: Path,
        *,
        experts: Experts = Experts.AUTO,
        predictor: Optional[Predictor] = None,
        allow_partial: bool = False,
    ) -> Adapter:
        """Loads an adapter for the transformer, or for those of the two that ``experts`` says, of a model with two."""
        described = json.loads((pathlib.Path(self.directory) / "pipeline.json").read_text(encoding="utf-8"))
        with contextlib.ExitStack() as opened:
            first = opened.enter_context(self.engine("transformer"))
            two = "transformer_2" in described["components"]
            second = opened.enter_context(self.engine("transformer_2")) if two else None
            return Adapter(first, file, predictor=predictor, allow_partial=allow_partial, second=second, experts=experts)

    def set_adapters(
        self, adapters: AdapterSet, *, cancel: Optional[Cancel] = None
    ) -> AdapterReport:
        """Replaces the adapters; if that fails, all is as it was."""
        report, (weighted, count) = _initial(_native.AdapterReport), _weighted(adapters)
        _Control(None, cancel).give_to(
            lambda control: _call("v2l_pipeline_set_adapters", self, weighted, count, control, ctypes.byref(report))
        )
        return _report(report)

    @property
    def schema(self) -> Dict[str, Any]:
        """What requests may say, as a JSON schema: the keywords of :meth:`generate` that this model has, with its defaults."""
        return _json_text(self, "v2l_pipeline_schema")

    def _job(self, prompt: str, adapters: Optional[AdapterSet], keywords: Mapping[str, Any]) -> "Callable[[], _Job]":
        """What makes the job of a request; its keywords are checked at once."""
        request = _request_of(prompt, adapters, keywords)
        return lambda: _Job(_made("job", "v2l_job_new", self, ctypes.byref(request)))

    def resolve(self, prompt: str = "", **request: "Unpack[Request]") -> Dict[str, Any]:
        """What :meth:`generate` would make of a request, as :func:`resolve` says it."""
        with self._job(prompt, None, request)() as job:
            return _json_text(job, "v2l_job_resolved")

    def generate(
        self,
        prompt: str = "",
        *,
        adapters: Optional[AdapterSet] = None,
        file: Optional[Path] = None,
        progress: Optional[Progress] = None,
        cancel: Optional[Cancel] = None,
        **request: "Unpack[Request]",
    ) -> Optional[Dict[str, NDArray[Any]]]:
        """Generates a video: ``frames`` uint8 ``[frames, height, width, 3]`` and ``latents``, or with ``file`` a file and nothing else.

        The other keywords are those of :class:`Request`; what is ``None`` or absent is as the engine directory says, and so is 0 where 0 means
        nothing. Pictures are paths or :data:`Frames`. See :func:`resolve` for what a request comes to.
        """
        job, control = self._job(prompt, adapters, request), _Control(progress, cancel)
        path = None if file is None else _path(file)

        def work(c: Any) -> Optional[_Owner]:
            with job() as made:
                if path is None:
                    return _made("tensors", "v2l_job_run", made, c)
                _call("v2l_job_save", made, c, path)
                return None

        results = control.give_to(work)
        return None if results is None else _Tensors(results).arrays()


class _Job(_Handle):
    """A request that a pipeline can carry out."""

    _kind = "job"


def _json_text(handle: _Handle, function: str) -> Dict[str, Any]:
    """An object that the library gives out as JSON."""
    with handle._in_use():
        text = ctypes.c_char_p()
        _call(function, handle, ctypes.byref(text))
        made: Dict[str, Any] = json.loads(text.value or b"{}")
        return made


def _input(name: str, value: Any) -> _native.Input:
    """A picture or an array that stands beside a request's fields."""
    given = _native.Input()
    given.name = name
    if name in _PICTURES and _is_path(value):
        given.file = _path(value)
    else:
        given.tensor = ctypes.pointer(_tensor(_frames_of(value) if name in _PICTURES else value))
    return given


def _request_of(prompt: str, adapters: Optional[AdapterSet], keywords: Mapping[str, Any]) -> _native.Request:
    """``v2l_request``, which keeps alive what it points to."""
    fields, inputs = {"prompt": _json_of(prompt, "prompt")}, []
    for name, value in keywords.items():
        if name in _PICTURES or name in _TENSORS:
            inputs += [] if value is None else [_input(name, value)]
        elif name not in FIELDS:
            raise TypeError(f"there is no keyword {name!r}; expected {', '.join([*FIELDS, *_PICTURES, *_TENSORS])}")
        else:
            found = _json_of(value, name)
            # As it always was: 0 frames are as many as the engine directory says.
            if found != 0 or FIELDS[name].get("minimum", 0) <= 0:
                fields[name] = found
    request = _initial(_native.Request)
    request.json = json.dumps(fields)
    request.inputs, request.input_count = _array(_native.Input, inputs, "inputs"), len(inputs)
    if adapters is not None:
        request.adapters, request.adapter_count = _weighted(adapters)
    return request


def resolve(
    directory: Path, prompt: str = "", *, ffmpeg: Optional[Path] = None, **request: "Unpack[Request]"
) -> Dict[str, Any]:
    """What :meth:`Pipeline.generate` would make of a request over an engine directory, or the error that it would raise, as far as neither
    depends on memory or on weights. Loads nothing. :meth:`Pipeline.resolve` is faster for several requests.

    ``request`` are the keyword arguments of :meth:`Pipeline.generate`. What comes back has ``width``, ``height``, ``num_frames``,
    ``num_inference_steps``, ``fps``, ``seed``, … with every default filled in; ``seconds``, the length of the video; ``own``, the ``width``, ``height``
    and ``num_frames`` of a request that says nothing; and ``warnings``, what the video will not have of what is asked for.
    """
    with Pipeline(directory, ffmpeg=ffmpeg) as pipeline:
        return pipeline.resolve(prompt, **request)
