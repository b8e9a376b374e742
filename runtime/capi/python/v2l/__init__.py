"""The v2l runtime: predict LoRA adapters from a reference, apply them to a video diffusion transformer, generate video.

Arrays go in without a copy if they are C-contiguous and have the graph's type; PyTorch's tensors and Pillow's images will do, too. What comes
out is copied once, into arrays of your own.
Every handle may be used from any thread; calls release the interpreter's lock. See ``v2l.h`` for what each call costs and refuses.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import enum
import json
import math
import os
import pathlib
import threading
from dataclasses import dataclass
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

import v2l_tools as _libraries

from . import _native
from ._arrays import NUMPY as _NUMPY, array_of as _array_of, frames_of as _frames_of, is_path as _is_path
from ._native import LIBRARY as _lib
from ._native import Error, check as _check

__all__ = [
    "Adapter", "AdapterKey", "AdapterLayer", "AdapterMode", "AdapterReport", "AdapterSet", "Arithmetic", "Backend", "Cancel", "Coverage", "Engine", "Error", "Experts", "Format", "Frames",
    "Latent", "LogLevel", "OpenVinoPrecision", "Phase", "Pipeline", "Port", "Predictor", "Range", "Resize", "Session", "Slot", "Stage", "Weights", "images", "set_log", "version",
]

Path = Union[str, "os.PathLike[str]"]
#: Frames: uint8 ``[frames, height, width, 3]`` in RGB or float32 ``[1, 3, frames, height, width]`` in [-1, 1], an array or a PyTorch tensor; one
#: image, uint8 ``[height, width, 3]`` or Pillow's; or a sequence of images.
Frames = Any
#: Adapters to apply, with their strengths; none is the base model.
AdapterSet = Sequence[Tuple["Adapter", float]]
#: Called with the phase, the steps done and all steps of the phase.
Progress = Callable[["Phase", int, int], None]
_Structure = TypeVar("_Structure", bound=ctypes.Structure)
_Self = TypeVar("_Self")


class Phase(enum.IntEnum):
    """A phase of the work."""

    ENCODE_TEXT = 1
    ENCODE_REFERENCE = 2
    ENCODE_CONDITION = 3
    DENOISE = 4
    DECODE = 5
    ENCODE_VIDEO = 6
    PREDICT = 7


Stage = Phase  # The earlier name.


class Weights(enum.IntEnum):
    """How weights that are stored in 16 bits are held."""

    AUTO = 0
    F32 = 1
    STORED = 2
    WIDENED = 1  # The earlier name of F32.
    LAZY = 2  # The earlier name of STORED.


class Arithmetic(enum.IntEnum):
    """In which types graphs compute."""

    FP32 = 0
    PLAN = 1


class AdapterMode(enum.IntEnum):
    """How a pipeline applies adapters."""

    AUTO = 0
    FUSE = 1
    BRANCH = 2
    SIDE = 2  # The earlier name of BRANCH.


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
    """One slot's update, ``alpha / rank * up @ down``: float32 ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``."""

    slot: str
    down: NDArray[Any]
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

    def on_message(_user: object, level: int, message: bytes) -> None:
        try:
            assert log is not None
            log(LogLevel(level), message.decode(errors="replace"))
        except Exception:  # there is no caller to tell
            pass

    callback = _native.LOG_CALLBACK(on_message) if log is not None else _native.LOG_CALLBACK()
    _check(_lib.v2l_set_log(callback, None))
    _LOG[:] = [callback]


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


def _sized(kind: Type[_Structure]) -> _Structure:
    value = kind()
    setattr(value, "size", ctypes.sizeof(kind))
    return value


def _initial(kind: Type[_Structure], init: Callable[..., int]) -> _Structure:
    value = kind()
    _check(init(ctypes.byref(value), ctypes.sizeof(kind)))
    return value


def _tensor(value: Any, name: Optional[str] = None) -> _native.Tensor:
    """A view of an array, which it keeps alive."""
    array, number = _array_of(value)
    tensor = _native.Tensor()
    tensor.name = None if name is None else name.encode()
    tensor.data = array.ctypes.data
    tensor.dtype, tensor.rank = number, array.ndim
    tensor.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor.strides = (ctypes.c_int64 * array.ndim)(*array.strides)
    tensor.array = array
    return tensor


def _copied(tensor: _native.Tensor) -> NDArray[Any]:
    """A copy of one of the library's tensors."""
    shape = tuple(tensor.shape[: tensor.rank])
    kind = np.dtype(_NUMPY[tensor.dtype])
    data = ctypes.string_at(tensor.data, math.prod(shape) * kind.itemsize) if math.prod(shape) else b""
    array: NDArray[Any] = np.frombuffer(data, kind).reshape(shape).copy()
    return array


def _arrays(handle: ctypes.c_void_p) -> Dict[str, NDArray[Any]]:
    """Copies of the library's tensors, which are freed."""
    try:
        count = ctypes.c_size_t()
        _check(_lib.v2l_tensors_count(handle, ctypes.byref(count)))
        arrays = {}
        for index in range(count.value):
            tensor = _native.Tensor()
            _check(_lib.v2l_tensors_get(handle, index, ctypes.byref(tensor)))
            arrays[tensor.name.decode()] = _copied(tensor)
        return arrays
    finally:
        _free("tensors", handle)


#: Handles that were given up inside a callback, where the library frees nothing: kinds and handles.
_GIVEN_UP: Deque[Tuple[str, ctypes.c_void_p]] = collections.deque()
_PROBE = _native.Control()


def _in_callback() -> bool:
    """True if this thread is inside a callback of the library, also before the callback's first line."""
    status: int = _lib.v2l_control_init(ctypes.byref(_PROBE), ctypes.sizeof(_PROBE))
    return status != 0


def _free(kind: str, handle: ctypes.c_void_p) -> None:
    """Frees a handle and those given up before; inside a callback they wait until it has returned."""
    _GIVEN_UP.append((kind, handle))
    _free_given_up()


def _free_given_up() -> None:
    # The collector may come here in the midst of itself: each handle is taken by one.
    while _GIVEN_UP and not _in_callback():
        try:
            kind, handle = _GIVEN_UP.popleft()
        except IndexError:
            return
        getattr(_lib, f"v2l_{kind}_free")(handle)


class _Handle:
    """Owns a handle of the library."""

    _kind: str

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle: Optional[ctypes.c_void_p] = handle

    def close(self) -> None:
        """Frees the handle, inside a progress function as soon as the call has returned; it must not be used again."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle:
            _free(self._kind, handle)

    def __del__(self) -> None:
        self.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _made(function: Callable[..., int], *arguments: object) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(function(*arguments, ctypes.byref(handle)))
    return handle


class Cancel(_Handle):
    """A request to stop; any thread may make it."""

    _kind = "cancel"

    def __init__(self) -> None:
        super().__init__(_made(_lib.v2l_cancel_new))
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        """True from :meth:`request` to :meth:`reset`."""
        return self._requested.is_set()

    def request(self) -> None:
        """Asks every call that was given this to stop, until :meth:`reset`."""
        self._requested.set()
        _check(_lib.v2l_cancel_request(self._handle))

    def reset(self) -> None:
        """Takes the request back."""
        _check(_lib.v2l_cancel_reset(self._handle))
        self._requested.clear()


class _Control:
    """A call's progress and cancellation. What the progress function raises stops the call and comes out of it."""

    def __init__(self, progress: Optional[Progress], cancel: Optional[Cancel]) -> None:
        self._raised: Optional[BaseException] = None
        self._structure = _initial(_native.Control, _lib.v2l_control_init)
        self._structure.cancel = cancel._handle if cancel is not None else None

        def on_progress(_user: object, phase: int, done: int, total: int) -> None:
            try:
                assert progress is not None
                progress(Phase(phase), done, total)
            except BaseException as raised:  # raised again by `run`
                self._raised = raised

        if progress is not None:
            self._structure.progress = _native.PROGRESS_CALLBACK(on_progress)
            self._structure.cancelled = _native.CANCELLED_CALLBACK(lambda _user: int(self._raised is not None))

    def run(self, call: Callable[..., int]) -> None:
        status = call(ctypes.byref(self._structure))
        if _GIVEN_UP:
            # The message of what failed is the thread's last; freeing leaves it alone.
            _free_given_up()
        if self._raised is not None:
            raise self._raised
        _check(status)


def _weighted(adapters: AdapterSet) -> ctypes.Array[Any]:
    array = (_native.WeightedAdapter * max(len(adapters), 1))()
    for place, (adapter, strength) in zip(array, adapters):
        place.adapter, place.strength = adapter._handle, strength
    return array


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
    options = _initial(_native.OpenOptions, _lib.v2l_open_options_init)
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
    options.provider = None if provider is None else provider.encode()
    options.prediction_cache = None if prediction_cache is None else _path(prediction_cache)
    options.prediction_cache_size = prediction_cache_size
    options.fused_cache = None if fused_cache is None else _path(fused_cache)
    options.fused_cache_size = fused_cache_size
    options.vae_tiling = {None: 0, True: 1, False: 2}[vae_tiling]
    return options


class Engine(_Handle):
    """An engine file."""

    _kind = "engine"

    def __init__(self, file: Path, **options: object) -> None:
        given = _open_options(**options)  # type: ignore[arg-type]
        super().__init__(_made(_lib.v2l_engine_new, _path(file), ctypes.byref(given)))

    @classmethod
    def _of(cls, handle: ctypes.c_void_p) -> "Engine":
        engine = cls.__new__(cls)
        _Handle.__init__(engine, handle)
        return engine

    def _count(self, function: Callable[..., int], *arguments: object) -> int:
        count = ctypes.c_size_t()
        _check(function(self._handle, *arguments, ctypes.byref(count)))
        return count.value

    @property
    def component(self) -> str:
        """What the engine is: ``transformer``, …"""
        name = ctypes.c_char_p()
        _check(_lib.v2l_engine_component(self._handle, ctypes.byref(name)))
        return (name.value or b"").decode()

    @property
    def graphs(self) -> List[str]:
        """Names of the graphs."""
        names = []
        for index in range(self._count(_lib.v2l_engine_graph_count)):
            name = ctypes.c_char_p()
            _check(_lib.v2l_engine_graph(self._handle, index, ctypes.byref(name)))
            names.append((name.value or b"").decode())
        return names

    @property
    def slots(self) -> List[Slot]:
        """What adapters may change, in the order of the model's traversal."""
        slots = []
        for index in range(self._count(_lib.v2l_engine_slot_count)):
            slot = _sized(_native.Slot)
            _check(_lib.v2l_engine_slot(self._handle, index, ctypes.byref(slot)))
            slots.append(Slot(slot.name.decode(), slot.tensor.decode(), slot.out_features, slot.in_features))
        return slots

    def _ports(self, graph: str, count: Callable[..., int], port: Callable[..., int]) -> List[Port]:
        name, ports = graph.encode(), []
        for index in range(self._count(count, name)):
            found = _sized(_native.Port)
            _check(port(self._handle, name, index, ctypes.byref(found)))
            extents = ((found.shape[axis], found.symbols[axis]) for axis in range(found.rank))
            shape = tuple(symbol.decode() if symbol else extent for extent, symbol in extents)
            ports.append(Port(found.name.decode(), np.dtype(_NUMPY[found.dtype]), shape))
        return ports

    def inputs(self, graph: str) -> List[Port]:
        """Inputs of a graph, in graph order."""
        return self._ports(graph, _lib.v2l_engine_input_count, _lib.v2l_engine_input)

    def outputs(self, graph: str) -> List[Port]:
        """Outputs of a graph, in graph order."""
        return self._ports(graph, _lib.v2l_engine_output_count, _lib.v2l_engine_output)


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
        options = _initial(_native.AdapterOptions, _lib.v2l_adapter_options_init)
        options.predictor = predictor._handle if predictor is not None else None
        options.allow_partial = int(allow_partial)
        options.second = second._handle if second is not None else None
        options.experts = experts
        super().__init__(_made(_lib.v2l_adapter_new, engine._handle, _path(file), ctypes.byref(options)))

    @property
    def coverage(self) -> Coverage:
        """What became of the file; a predicted adapter has no keys."""
        found = _sized(_native.Coverage)
        _check(_lib.v2l_adapter_coverage(self._handle, ctypes.byref(found)))
        counts = found.keys, found.applied, found.ignored, found.slots_covered, found.slots_total
        return Coverage(*counts, found.parameters_covered)

    @property
    def keys(self) -> List[AdapterKey]:
        """What became of each key of the file, in its order; none for a predicted adapter."""
        keys = []
        for index in range(self.coverage.keys):
            found = _sized(_native.AdapterKey)
            _check(_lib.v2l_adapter_key_at(self._handle, index, ctypes.byref(found)))
            keys.append(AdapterKey(found.key.decode(), found.detail.decode(), found.outcome == 1))
        return keys

    @property
    def layers(self) -> List[AdapterLayer]:
        """Copies of the updates, slot by slot."""
        count = ctypes.c_size_t()
        _check(_lib.v2l_adapter_layer_count(self._handle, ctypes.byref(count)))
        layers = []
        for index in range(count.value):
            found = _sized(_native.AdapterLayer)
            _check(_lib.v2l_adapter_layer_at(self._handle, index, ctypes.byref(found)))
            layers.append(AdapterLayer(found.slot.decode(), _copied(found.down), _copied(found.up), found.alpha))
        return layers

    def save(self, file: Path, format: Format = Format.PEFT) -> None:
        """Writes the adapter, whole or not at all."""
        _check(_lib.v2l_adapter_save(self._handle, _path(file), format))


def _report(found: ctypes.Structure) -> AdapterReport:
    return AdapterReport(found.slots, found.survived, found.relative_error, found.unchanged)


class Session(_Handle):
    """A graph of an engine, with its adapters."""

    _kind = "session"

    def __init__(self, engine: Engine, graph: str) -> None:
        super().__init__(_made(_lib.v2l_session_new, engine._handle, graph.encode()))

    def set_adapters(self, adapters: AdapterSet, *, cancel: Optional[Cancel] = None) -> AdapterReport:
        """Replaces the adapters; if that fails, all is as it was."""
        report, weighted = _sized(_native.AdapterReport), _weighted(adapters)
        _Control(None, cancel).run(
            lambda control: _lib.v2l_session_set_adapters(
                self._handle, weighted, len(adapters), control, ctypes.byref(report)
            )
        )
        return _report(report)

    def run(
        self, inputs: Mapping[str, Any], adapters: Optional[AdapterSet] = None, *, cancel: Optional[Cancel] = None
    ) -> Dict[str, NDArray[Any]]:
        """Runs the graph; with ``adapters``, these are set first and nothing comes between. ``cancel`` ends a fuse."""
        tensors = [_tensor(array, name) for name, array in inputs.items()]
        options = _initial(_native.RunOptions, _lib.v2l_run_options_init)
        if adapters is not None:
            options.adapters, options.adapter_count = _weighted(adapters), len(adapters)
        given = (_native.Tensor * len(tensors))(*tensors)
        handle = ctypes.c_void_p()

        def call(control: Any) -> int:
            options.control = ctypes.cast(control, ctypes.POINTER(_native.Control))
            status: int = _lib.v2l_session_run(
                self._handle, given, len(tensors), ctypes.byref(options), ctypes.byref(handle)
            )
            return status

        _Control(None, cancel).run(call)
        return _arrays(handle)


class Predictor(_Handle):
    """The predictor of an engine directory: a reference becomes an adapter. Or any graph with a map: named arrays do."""

    _kind = "predictor"

    def __init__(self, directory: Path, **options: object) -> None:
        given = _open_options(**options)  # type: ignore[arg-type]
        super().__init__(_made(_lib.v2l_predictor_new, _path(directory), ctypes.byref(given)))

    @classmethod
    def mapped(cls, engine: Path, map: Path, model: Engine, **options: object) -> "Predictor":
        """A predictor that v2l does not know by name: its engine, and the map from its outputs to the slots of ``model``."""
        given = _open_options(**options)  # type: ignore[arg-type]
        predictor = cls.__new__(cls)
        handle = _made(
            _lib.v2l_predictor_new_mapped, _path(engine), _path(map), model._handle, ctypes.byref(given)
        )
        _Handle.__init__(predictor, handle)
        return predictor

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
        given = _initial(_native.Reference, _lib.v2l_reference_init)
        if _is_path(reference):
            given.file = _path(reference)
        elif reference is not None:
            tensor = _tensor(_frames_of(reference))
            given.frames = ctypes.pointer(tensor)
        if prompt is not None:
            given.prompt = prompt.encode()
        if tensors is not None:
            named = [_tensor(array, name) for name, array in tensors.items()]
            given.tensors, given.tensor_count = (_native.Tensor * len(named))(*named), len(named)
        if _is_path(image):
            given.image_file = _path(image)
        elif image is not None:
            first = _tensor(_frames_of(image))
            given.image = ctypes.pointer(first)
        given.fps, given.width, given.height, given.frame_count = fps, width, height, frame_count
        given.range, given.resize, given.latent = range, resize, latent
        if seed is not None:
            given.seed = seed
        handle = ctypes.c_void_p()
        _Control(progress, cancel).run(
            lambda control: _lib.v2l_predictor_predict(
                self._handle, ctypes.byref(given), control, ctypes.byref(handle)
            )
        )
        adapter = Adapter.__new__(Adapter)
        _Handle.__init__(adapter, handle)
        return adapter


class Pipeline(_Handle):
    """An engine directory: from a prompt, an image and adapters to a video."""

    _kind = "pipeline"

    def __init__(self, directory: Path, **options: object) -> None:
        given = _open_options(**options)  # type: ignore[arg-type]
        super().__init__(_made(_lib.v2l_pipeline_new, _path(directory), ctypes.byref(given)))
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
        return Engine._of(_made(_lib.v2l_pipeline_engine, self._handle, component.encode()))

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
        report, weighted = _sized(_native.AdapterReport), _weighted(adapters)
        _Control(None, cancel).run(
            lambda control: _lib.v2l_pipeline_set_adapters(
                self._handle, weighted, len(adapters), control, ctypes.byref(report)
            )
        )
        return _report(report)

    def generate(
        self,
        prompt: str = "",
        *,
        negative_prompt: Optional[str] = None,
        image: Union[Path, Frames, None] = None,
        initial_noise: Optional[Any] = None,
        adapters: Optional[AdapterSet] = None,
        width: int = 0,
        height: int = 0,
        num_frames: int = 0,
        num_inference_steps: int = 0,
        guidance_scale: Optional[float] = None,
        fps: float = 0.0,
        noise_aug_strength: Optional[float] = None,
        seed: Optional[int] = None,
        scheduler: Optional[str] = None,
        shift: Optional[float] = None,
        guidance_scale_2: Optional[float] = None,
        last_image: Union[Path, Frames, None] = None,
        prompt_embeds: Optional[Any] = None,
        negative_prompt_embeds: Optional[Any] = None,
        boundary_ratio: Optional[float] = None,
        controls: Optional[Mapping[str, float]] = None,
        file: Optional[Path] = None,
        progress: Optional[Progress] = None,
        cancel: Optional[Cancel] = None,
    ) -> Optional[Dict[str, NDArray[Any]]]:
        """Generates a video: ``frames`` uint8 ``[frames, height, width, 3]`` and ``latents``, or with ``file`` a file and nothing else."""
        options = _initial(_native.GenerateOptions, _lib.v2l_generate_options_init)
        options.prompt = prompt.encode()
        options.negative_prompt = None if negative_prompt is None else negative_prompt.encode()
        held = []
        for name, frame in (("image", image), ("last_image", last_image)):
            if _is_path(frame):
                setattr(options, f"{name}_file", _path(frame))
            elif frame is not None:
                held.append(_tensor(_frames_of(frame)))
                setattr(options, name, ctypes.pointer(held[-1]))
        for name, array in (
            ("initial_noise", initial_noise),
            ("prompt_embeds", prompt_embeds),
            ("negative_prompt_embeds", negative_prompt_embeds),
        ):
            if array is not None:
                held.append(_tensor(array))
                setattr(options, name, ctypes.pointer(held[-1]))
        if adapters is not None:
            options.adapters, options.adapter_count = _weighted(adapters), len(adapters)
        options.width, options.height = width, height
        options.num_frames, options.num_inference_steps, options.fps = num_frames, num_inference_steps, fps
        if guidance_scale is not None:
            options.guidance_scale = guidance_scale
        if guidance_scale_2 is not None:
            options.guidance_scale_2 = guidance_scale_2
        if boundary_ratio is not None:
            options.boundary_ratio = boundary_ratio
        if controls:
            options.control_count = len(controls)
            options.control_names = (ctypes.c_char_p * len(controls))(*(name.encode() for name in controls))
            options.control_values = (ctypes.c_float * len(controls))(*controls.values())
        if noise_aug_strength is not None:
            options.noise_aug_strength = noise_aug_strength
        if seed is not None:
            options.seed, options.has_seed = seed, 1
        if scheduler is not None:
            options.scheduler = scheduler.encode()
        if shift is not None:
            options.shift = shift
        control = _Control(progress, cancel)
        if file is not None:
            control.run(
                lambda c: _lib.v2l_pipeline_generate_file(self._handle, ctypes.byref(options), c, _path(file))
            )
            return None
        handle = ctypes.c_void_p()
        control.run(
            lambda c: _lib.v2l_pipeline_generate(self._handle, ctypes.byref(options), c, ctypes.byref(handle))
        )
        return _arrays(handle)
