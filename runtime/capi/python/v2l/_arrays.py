"""What callers have, as arrays: NumPy's own, PyTorch's tensors, Pillow's images. Neither of the last two is ever imported."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Optional, Tuple, TypeGuard, Union

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = 3

# bfloat16 has no type in NumPy: its bits come as uint16.
NUMPY = {
    1: np.float32,
    2: np.float16,
    BFLOAT16: np.uint16,
    4: np.int64,
    5: np.int32,
    6: np.uint8,
    7: np.bool_,
    8: np.float64,
    9: np.int8,
    10: np.int16,
    11: np.uint16,
    12: np.uint32,
    13: np.uint64,
}
_NUMBER = {np.dtype(kind): number for number, kind in NUMPY.items() if number != BFLOAT16}


def is_path(value: object) -> TypeGuard[Union[str, "os.PathLike[str]"]]:
    """True for what names a file."""
    return isinstance(value, (str, bytes, os.PathLike))


def _is_image(value: object) -> bool:
    return callable(getattr(value, "convert", None)) and hasattr(value, "getbands")


def _is_torch(value: object) -> bool:
    return type(value).__module__.split(".")[0] == "torch" and callable(getattr(value, "detach", None))


def array_of(value: Any) -> Tuple[NDArray[Any], int]:
    """An array in host memory and the number of its type; a copy only where the value is not there yet."""
    number: Optional[int] = None
    if _is_torch(value):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            # NumPy cannot take the type; it can take the bits. Whoever made the tensor has loaded PyTorch.
            value, number = value.view(sys.modules["torch"].int16).numpy().view(np.uint16), BFLOAT16
        else:
            value = value.numpy()
    array = np.asarray(value)
    number = number or _NUMBER.get(array.dtype)
    if number is None:
        raise TypeError(f"an array of {array.dtype}; expected float16 to float64, an integer of 8 to 64 bits, or bool")
    return array, number


#: Modes of Pillow's that are more than 8 bits; converting them to RGB would cut them off.
_DEEP = ("I", "F")
#: The tag of Exif that says how a camera was held.
_ORIENTATION = 0x0112


def _pixels(image: Any) -> NDArray[Any]:
    """A picture of Pillow's as uint8 ``[height, width, 3]``, upright."""
    if image.mode.split(";")[0] in _DEEP:
        raise TypeError(f"a picture of Pillow's mode {image.mode}; expected 8 bits for each channel: convert it to RGB first")
    # Telephones write a second view beside the picture.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise TypeError(f"a picture of Pillow's has {image.n_frames} frames; expected one: give a list of its frames, each converted to RGB")
    if callable(getattr(image, "getexif", None)) and image.getexif().get(_ORIENTATION, 1) != 1:
        # Whoever made the picture has loaded Pillow.
        image = importlib.import_module("PIL.ImageOps").exif_transpose(image)
    return np.asarray(image.convert("RGB"))


def _picture(value: Any, at: int) -> NDArray[Any]:
    """One of a list of pictures, ``[height, width, 3]``."""
    array = _pixels(value) if _is_image(value) else array_of(value)[0]
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise TypeError(f"element {at} of a list of pictures has the shape {list(array.shape)}; expected [height, width, 3]")
    return array


def frames_of(value: Any) -> Any:
    """Frames as the library takes them: uint8 ``[frames, height, width, 3]`` or float32 ``[1, 3, frames, height, width]``.

    Takes such an array or tensor, one image (uint8 ``[height, width, 3]`` or Pillow's), or a sequence of images.
    """
    if _is_image(value):
        value = _pixels(value)
    elif isinstance(value, (list, tuple)):
        if not value:
            raise TypeError("an empty list of pictures; expected one at least")
        return np.stack([_picture(one, at) for at, one in enumerate(value)])
    if getattr(value, "ndim", None) == 3:
        value = value[None]
    return value
