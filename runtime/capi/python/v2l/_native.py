"""v2l.h for ctypes: structures, prototypes, and finding the library."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

ABI_MAJOR = 1

CANCELLED_CALLBACK = ctypes.CFUNCTYPE(c_int32, c_void_p)
LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
PROGRESS_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_uint64, c_uint64)


class Tensor(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_uint32),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
    ]


class Control(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("cancel", c_void_p),
        ("cancelled", CANCELLED_CALLBACK),
        ("progress", PROGRESS_CALLBACK),
        ("user", c_void_p),
    ]


class OpenOptions(Structure):
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
        ("reserved", c_int32),
        ("backend", c_int32),
        ("device", c_uint32),
        ("trt_library", c_char_p),
        ("provider", c_char_p),
        ("prediction_cache", c_char_p),
        ("prediction_cache_size", c_uint64),
        ("vae_tiling", c_int32),
        ("no_verify", c_int32),
        ("openvino_library", c_char_p),
        ("openvino_precision", c_int32),
        ("reserved2", c_int32),
        ("fused_cache", c_char_p),
        ("fused_cache_size", c_uint64),
    ]


class Port(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("dtype", c_int32),
        ("rank", c_uint32),
        ("shape", POINTER(c_int64)),
        ("symbols", POINTER(c_char_p)),
    ]


class Slot(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("tensor", c_char_p),
        ("out_features", c_uint64),
        ("in_features", c_uint64),
    ]


class WeightedAdapter(Structure):
    _fields_ = [("adapter", c_void_p), ("strength", c_float)]


class AdapterReport(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("slots", c_uint64),
        ("survived", c_double),
        ("relative_error", c_double),
        ("unchanged", c_double),
    ]


class AdapterOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("predictor", c_void_p),
        ("allow_partial", c_int32),
        ("reserved", c_int32),
        ("second", c_void_p),
        ("experts", c_int32),
        ("reserved2", c_int32),
    ]


class Coverage(Structure):
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


class AdapterKey(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("key", c_char_p),
        ("detail", c_char_p),
        ("outcome", c_int32),
        ("reserved", c_int32),
    ]


class AdapterLayer(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("slot", c_char_p),
        ("down", Tensor),
        ("up", Tensor),
        ("alpha", c_float),
        ("reserved", c_int32),
    ]


class RunOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("adapters", POINTER(WeightedAdapter)),
        ("adapter_count", c_size_t),
        ("control", POINTER(Control)),
    ]


class Reference(Structure):
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


class GenerateOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("prompt", c_char_p),
        ("negative_prompt", c_char_p),
        ("image_file", c_char_p),
        ("image", POINTER(Tensor)),
        ("initial_noise", POINTER(Tensor)),
        ("adapters", POINTER(WeightedAdapter)),
        ("adapter_count", c_size_t),
        ("width", c_uint32),
        ("height", c_uint32),
        ("num_frames", c_uint32),
        ("num_inference_steps", c_uint32),
        ("guidance_scale", c_double),
        ("fps", c_double),
        ("noise_aug_strength", c_double),
        ("seed", c_uint64),
        ("has_seed", c_int32),
        ("reserved", c_int32),
        ("scheduler", c_char_p),
        ("shift", c_double),
        ("guidance_scale_2", c_double),
        ("last_image_file", c_char_p),
        ("last_image", POINTER(Tensor)),
        ("prompt_embeds", POINTER(Tensor)),
        ("negative_prompt_embeds", POINTER(Tensor)),
        ("boundary_ratio", c_double),
        ("control_names", POINTER(c_char_p)),
        ("control_values", POINTER(c_float)),
        ("control_count", c_size_t),
    ]


_HANDLE = c_void_p
_OUT = POINTER(c_void_p)
_COUNT = POINTER(c_size_t)
_CONTROL = POINTER(Control)
_ADAPTERS = POINTER(WeightedAdapter)

#: Parameters of every function that returns a status.
_STATUS_FUNCTIONS = {
    "v2l_open_options_init": [POINTER(OpenOptions), c_size_t],
    "v2l_control_init": [_CONTROL, c_size_t],
    "v2l_set_log": [LOG_CALLBACK, c_void_p],
    "v2l_adapter_options_init": [POINTER(AdapterOptions), c_size_t],
    "v2l_run_options_init": [POINTER(RunOptions), c_size_t],
    "v2l_reference_init": [POINTER(Reference), c_size_t],
    "v2l_generate_options_init": [POINTER(GenerateOptions), c_size_t],
    "v2l_cancel_new": [_OUT],
    "v2l_cancel_request": [_HANDLE],
    "v2l_cancel_reset": [_HANDLE],
    "v2l_tensors_count": [_HANDLE, _COUNT],
    "v2l_tensors_get": [_HANDLE, c_size_t, POINTER(Tensor)],
    "v2l_engine_new": [c_char_p, POINTER(OpenOptions), _OUT],
    "v2l_engine_component": [_HANDLE, POINTER(c_char_p)],
    "v2l_engine_graph_count": [_HANDLE, _COUNT],
    "v2l_engine_graph": [_HANDLE, c_size_t, POINTER(c_char_p)],
    "v2l_engine_input_count": [_HANDLE, c_char_p, _COUNT],
    "v2l_engine_input": [_HANDLE, c_char_p, c_size_t, POINTER(Port)],
    "v2l_engine_output_count": [_HANDLE, c_char_p, _COUNT],
    "v2l_engine_output": [_HANDLE, c_char_p, c_size_t, POINTER(Port)],
    "v2l_engine_slot_count": [_HANDLE, _COUNT],
    "v2l_engine_slot": [_HANDLE, c_size_t, POINTER(Slot)],
    "v2l_adapter_new": [_HANDLE, c_char_p, POINTER(AdapterOptions), _OUT],
    "v2l_adapter_coverage": [_HANDLE, POINTER(Coverage)],
    "v2l_adapter_key_at": [_HANDLE, c_size_t, POINTER(AdapterKey)],
    "v2l_adapter_layer_count": [_HANDLE, _COUNT],
    "v2l_adapter_layer_at": [_HANDLE, c_size_t, POINTER(AdapterLayer)],
    "v2l_adapter_save": [_HANDLE, c_char_p, c_int32],
    "v2l_session_new": [_HANDLE, c_char_p, _OUT],
    "v2l_session_set_adapters": [_HANDLE, _ADAPTERS, c_size_t, _CONTROL, POINTER(AdapterReport)],
    "v2l_session_run": [_HANDLE, POINTER(Tensor), c_size_t, POINTER(RunOptions), _OUT],
    "v2l_predictor_new": [c_char_p, POINTER(OpenOptions), _OUT],
    "v2l_predictor_new_mapped": [c_char_p, c_char_p, _HANDLE, POINTER(OpenOptions), _OUT],
    "v2l_predictor_predict": [_HANDLE, POINTER(Reference), _CONTROL, _OUT],
    "v2l_pipeline_new": [c_char_p, POINTER(OpenOptions), _OUT],
    "v2l_pipeline_engine": [_HANDLE, c_char_p, _OUT],
    "v2l_pipeline_set_adapters": [_HANDLE, _ADAPTERS, c_size_t, _CONTROL, POINTER(AdapterReport)],
    "v2l_pipeline_generate": [_HANDLE, POINTER(GenerateOptions), _CONTROL, _OUT],
    "v2l_pipeline_generate_file": [_HANDLE, POINTER(GenerateOptions), _CONTROL, c_char_p],
}


class Error(Exception):
    """A call that failed; ``status`` is its class, ``name`` the class's name in ``v2l.h``."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name


def _find() -> str:
    named = os.environ.get("V2L_LIBRARY")
    if named:
        return named
    beside = Path(__file__).with_name("libv2l.so")
    if beside.is_file():
        return str(beside)
    found = ctypes.util.find_library("v2l")
    if found is None:
        raise ImportError(
            "libv2l.so was not found; install v2l's wheel or package, or name the library with V2L_LIBRARY "
            "(a checkout installs it with bin/install-capi)"
        )
    return found


def _load() -> ctypes.CDLL:
    # ONNX Runtime reads it when it is loaded: it neither reports to its makers nor keeps an identifier.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    library = ctypes.CDLL(_find())
    library.v2l_version.restype = c_char_p
    library.v2l_abi_version.restype = c_uint32
    library.v2l_last_error.restype = c_char_p
    library.v2l_status_name.restype = c_char_p
    library.v2l_status_name.argtypes = [c_int32]
    major = library.v2l_abi_version() >> 16
    if major != ABI_MAJOR:
        raise ImportError(f"libv2l.so has ABI {major}; expected {ABI_MAJOR}: install the v2l package of the same version")
    for name, parameters in _STATUS_FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = parameters, c_int32
    for handle in ("cancel", "tensors", "engine", "adapter", "session", "predictor", "pipeline"):
        free = getattr(library, f"v2l_{handle}_free")
        free.argtypes, free.restype = [c_void_p], None
    return library


LIBRARY = _load()


def check(status: int) -> None:
    """Raises what a call failed with."""
    if status != 0:
        name = LIBRARY.v2l_status_name(status).decode()
        raise Error(status, name, LIBRARY.v2l_last_error().decode())
