"""v2l.h for ctypes: structures, prototypes, and calls, which check what they are given."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Dict, List, Type, TypeVar

from . import _handles
from ._apart import Apart
from ._handles import Owner
from ._library import LIBRARY, check
from ._values import Checked, Pointer, converted, pointer_to

_Structure = TypeVar("_Structure", bound=Checked)

CANCELLED_CALLBACK = ctypes.CFUNCTYPE(c_int32, c_void_p)
LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
PROGRESS_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_uint64, c_uint64)


class Tensor(Checked):
    _fields_ = [
        ("name", c_char_p),
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_uint32),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
    ]


class Control(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("cancel", pointer_to("cancel")),
        ("cancelled", CANCELLED_CALLBACK),
        ("progress", PROGRESS_CALLBACK),
        ("user", c_void_p),
    ]


class OpenOptions(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("ort_library", c_char_p),
        ("ffmpeg", c_char_p),
        ("memory_limit", c_uint64),
        ("threads", c_uint32),
        ("weights", c_int32),
        ("arithmetic", c_int32),
        ("adapter_mode", c_int32),
        ("verify_hashes", c_int32),
        ("backend", c_int32),
        ("device", c_uint32),
        ("vae_tiling", c_int32),
        ("no_verify", c_int32),
        ("openvino_precision", c_int32),
        ("trt_library", c_char_p),
        ("provider", c_char_p),
        ("prediction_cache", c_char_p),
        ("prediction_cache_size", c_uint64),
        ("openvino_library", c_char_p),
        ("fused_cache", c_char_p),
        ("fused_cache_size", c_uint64),
    ]


class Port(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("dtype", c_int32),
        ("rank", c_uint32),
        ("shape", POINTER(c_int64)),
        ("symbols", POINTER(c_char_p)),
    ]


class Slot(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("tensor", c_char_p),
        ("out_features", c_uint64),
        ("in_features", c_uint64),
    ]


class WeightedAdapter(Checked):
    _fields_ = [("adapter", pointer_to("adapter")), ("strength", c_float)]


class AdapterReport(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("slots", c_uint64),
        ("survived", c_double),
        ("relative_error", c_double),
        ("unchanged", c_double),
    ]


class AdapterOptions(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("predictor", pointer_to("predictor")),
        ("second", pointer_to("engine")),
        ("allow_partial", c_int32),
        ("experts", c_int32),
    ]


class Coverage(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("keys", c_uint64),
        ("applied", c_uint64),
        ("ignored", c_uint64),
        ("slots_covered", c_uint64),
        ("slots_total", c_uint64),
        ("format", c_int32),
        ("reserved", c_int32),
        ("parameters_covered", c_uint64),
    ]


class AdapterKey(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("key", c_char_p),
        ("detail", c_char_p),
        ("outcome", c_int32),
        ("reserved", c_int32),
    ]


class AdapterLayer(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("slot", c_char_p),
        ("down", Tensor),
        ("up", Tensor),
        ("alpha", c_float),
        ("reserved", c_int32),
    ]


class RunOptions(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("adapters", POINTER(WeightedAdapter)),
        ("adapter_count", c_size_t),
        ("control", POINTER(Control)),
    ]


class Reference(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("file", c_char_p),
        ("frames", POINTER(Tensor)),
        ("fps", c_double),
        ("width", c_uint32),
        ("height", c_uint32),
        ("seed", c_uint64),
        ("range", c_int32),
        ("resize", c_int32),
        ("latent", c_int32),
        ("frame_count", c_int32),
        ("image_file", c_char_p),
        ("image", POINTER(Tensor)),
        ("tensors", POINTER(Tensor)),
        ("tensor_count", c_size_t),
        ("prompt", c_char_p),
    ]


class Input(Checked):
    _fields_ = [("name", c_char_p), ("file", c_char_p), ("tensor", POINTER(Tensor))]


class Request(Checked):
    _fields_ = [
        ("size", c_size_t),
        ("json", c_char_p),
        ("inputs", POINTER(Input)),
        ("input_count", c_size_t),
        ("adapters", POINTER(WeightedAdapter)),
        ("adapter_count", c_size_t),
    ]


_OUT = POINTER(c_void_p)
_COUNT = POINTER(c_size_t)
_CONTROL = POINTER(Control)
_ADAPTERS = POINTER(WeightedAdapter)

#: Parameters of every function that returns a status, as v2l.h names them.
FUNCTIONS: Dict[str, Dict[str, Any]] = {
    "v2l_open_options_init": {"options": POINTER(OpenOptions), "size": c_size_t},
    "v2l_control_init": {"control": _CONTROL, "size": c_size_t},
    "v2l_set_log": {"callback": LOG_CALLBACK, "user": c_void_p},
    "v2l_adapter_options_init": {"options": POINTER(AdapterOptions), "size": c_size_t},
    "v2l_run_options_init": {"options": POINTER(RunOptions), "size": c_size_t},
    "v2l_reference_init": {"reference": POINTER(Reference), "size": c_size_t},
    "v2l_cancel_new": {"cancel": _OUT},
    "v2l_cancel_request": {"cancel": pointer_to("cancel")},
    "v2l_cancel_reset": {"cancel": pointer_to("cancel")},
    "v2l_tensors_count": {"tensors": pointer_to("tensors"), "count": _COUNT},
    "v2l_tensors_get": {"tensors": pointer_to("tensors"), "index": c_size_t, "tensor": POINTER(Tensor)},
    "v2l_engine_new": {"file": c_char_p, "options": POINTER(OpenOptions), "engine": _OUT},
    "v2l_engine_component": {"engine": pointer_to("engine"), "component": POINTER(c_char_p)},
    "v2l_engine_graph_count": {"engine": pointer_to("engine"), "count": _COUNT},
    "v2l_engine_graph": {"engine": pointer_to("engine"), "index": c_size_t, "name": POINTER(c_char_p)},
    "v2l_engine_input_count": {"engine": pointer_to("engine"), "graph": c_char_p, "count": _COUNT},
    "v2l_engine_input": {"engine": pointer_to("engine"), "graph": c_char_p, "index": c_size_t, "input": POINTER(Port)},
    "v2l_engine_output_count": {"engine": pointer_to("engine"), "graph": c_char_p, "count": _COUNT},
    "v2l_engine_output": {"engine": pointer_to("engine"), "graph": c_char_p, "index": c_size_t, "output": POINTER(Port)},
    "v2l_engine_slot_count": {"engine": pointer_to("engine"), "count": _COUNT},
    "v2l_engine_slot": {"engine": pointer_to("engine"), "index": c_size_t, "slot": POINTER(Slot)},
    "v2l_adapter_new": {"engine": pointer_to("engine"), "file": c_char_p, "options": POINTER(AdapterOptions), "adapter": _OUT},
    "v2l_adapter_coverage": {"adapter": pointer_to("adapter"), "coverage": POINTER(Coverage)},
    "v2l_adapter_key_at": {"adapter": pointer_to("adapter"), "index": c_size_t, "key": POINTER(AdapterKey)},
    "v2l_adapter_layer_count": {"adapter": pointer_to("adapter"), "count": _COUNT},
    "v2l_adapter_layer_at": {"adapter": pointer_to("adapter"), "index": c_size_t, "layer": POINTER(AdapterLayer)},
    "v2l_adapter_save": {"adapter": pointer_to("adapter"), "file": c_char_p, "format": c_int32},
    "v2l_session_new": {"engine": pointer_to("engine"), "graph": c_char_p, "session": _OUT},
    "v2l_session_set_adapters": {"session": pointer_to("session"), "adapters": _ADAPTERS, "count": c_size_t, "control": _CONTROL, "report": POINTER(AdapterReport)},
    "v2l_session_run": {"session": pointer_to("session"), "inputs": POINTER(Tensor), "count": c_size_t, "options": POINTER(RunOptions), "outputs": _OUT},
    "v2l_predictor_new": {"directory": c_char_p, "options": POINTER(OpenOptions), "predictor": _OUT},
    "v2l_predictor_new_mapped": {"engine": c_char_p, "map": c_char_p, "model": pointer_to("engine"), "options": POINTER(OpenOptions), "predictor": _OUT},
    "v2l_predictor_predict": {"predictor": pointer_to("predictor"), "reference": POINTER(Reference), "control": _CONTROL, "adapter": _OUT},
    "v2l_pipeline_new": {"directory": c_char_p, "options": POINTER(OpenOptions), "pipeline": _OUT},
    "v2l_pipeline_engine": {"pipeline": pointer_to("pipeline"), "component": c_char_p, "engine": _OUT},
    "v2l_pipeline_set_adapters": {"pipeline": pointer_to("pipeline"), "adapters": _ADAPTERS, "count": c_size_t, "control": _CONTROL, "report": POINTER(AdapterReport)},
    "v2l_pipeline_schema": {"pipeline": pointer_to("pipeline"), "json": POINTER(c_char_p)},
    "v2l_job_new": {"pipeline": pointer_to("pipeline"), "request": POINTER(Request), "job": _OUT},
    "v2l_job_resolved": {"job": pointer_to("job"), "json": POINTER(c_char_p)},
    "v2l_job_run": {"job": pointer_to("job"), "control": _CONTROL, "results": _OUT},
    "v2l_job_save": {"job": pointer_to("job"), "control": _CONTROL, "file": c_char_p},
}

#: Kinds of handles.
KINDS = ("cancel", "tensors", "engine", "adapter", "session", "predictor", "pipeline", "job")

#: Functions that may take long, and tell the log, and cannot be stopped.
_OPENING = ("v2l_engine_new", "v2l_adapter_new", "v2l_session_new", "v2l_predictor_new", "v2l_predictor_new_mapped", "v2l_pipeline_new")

#: Functions that callbacks may call.
_ANYWHERE = ("v2l_cancel_request",)


def _declare() -> None:
    for name, parameters in FUNCTIONS.items():
        function = getattr(LIBRARY, name)
        # Which handles they are is checked by `call`.
        function.argtypes = [c_void_p if issubclass(kind, Pointer) else kind for kind in parameters.values()]
        function.restype = c_int32
    for kind in KINDS:
        free = getattr(LIBRARY, f"v2l_{kind}_free")
        free.argtypes, free.restype = [c_void_p], None


_declare()


def call(name: str, *arguments: Any) -> None:
    """Calls a function with checked arguments, and raises what it fails with. The handles that it is given live until it returns."""
    token = _handles.enter(name in _ANYWHERE)
    kept: List[object] = []
    try:
        given = []
        for (parameter, kind), argument in zip(FUNCTIONS[name].items(), arguments, strict=True):
            value, keep = converted(kind, argument, parameter)
            given.append(value)
            kept.append(keep)
        check(getattr(LIBRARY, name)(*given))
    finally:
        # Whoever keeps the error keeps this frame, but no handle with it.
        kept.clear()
        _handles.leave(token)


def made(kind: str, name: str, *arguments: Any) -> Owner:
    """Calls a function whose last parameter takes a handle, which is owned from now on."""
    _handles.use()

    def make() -> Owner:
        pointer = c_void_p()
        call(name, *arguments, ctypes.byref(pointer))
        return Owner(kind, pointer)

    return Apart().run(make) if name in _OPENING else make()


def initial(kind: Type[_Structure]) -> _Structure:
    """A structure with its defaults: those of the library where it has some."""
    value = kind()
    if kind in _INITIAL:
        call(_INITIAL[kind], ctypes.byref(value), ctypes.sizeof(kind))
    else:
        setattr(value, "size", ctypes.sizeof(kind))
    return value


_INITIAL: Dict[Any, str] = {
    OpenOptions: "v2l_open_options_init",
    Control: "v2l_control_init",
    AdapterOptions: "v2l_adapter_options_init",
    RunOptions: "v2l_run_options_init",
    Reference: "v2l_reference_init",
}
