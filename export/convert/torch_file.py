"""Reads files of PyTorch without PyTorch, and writes safetensors.

No code of a file is run: pickle's instructions are read one by one, and of all names that they may call only those that make a
tensor are answered. Tensors stay in the file, which is mapped, until they are written.
"""

import io
import json
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from math import prod

# torch's storages: bytes of an element and safetensors' name.
STORAGES = {
    "DoubleStorage": (8, "F64"), "FloatStorage": (4, "F32"), "HalfStorage": (2, "F16"), "BFloat16Storage": (2, "BF16"),
    "LongStorage": (8, "I64"), "IntStorage": (4, "I32"), "ShortStorage": (2, "I16"), "CharStorage": (1, "I8"),
    "ByteStorage": (1, "U8"), "BoolStorage": (1, "BOOL"),
}
LARGEST_PICKLE = 64 << 20


class Refused(Exception):
    """The file is not what it should be."""


class Storage:
    """The type of a storage."""

    def __init__(self, name):
        self.size, self.dtype = STORAGES[name]


class Tensor:
    """A tensor: its type, its extents and its bytes in row-major order."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, shape, data


class State(OrderedDict):
    """A state dict; what PyTorch notes of its version is dropped."""

    def __setstate__(self, state):
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise Refused(f"a state dict carries {sorted(state) if isinstance(state, dict) else type(state).__name__}; "
                          "expected `_metadata` alone")


def rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """torch._utils._rebuild_tensor_v2, with every number checked."""
    if not isinstance(storage, tuple) or len(storage) != 3:
        raise Refused("a tensor without a storage")
    kind, data, count = storage
    numbers = [offset, *size, *stride]
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
        raise Refused(f"a tensor of size {size} and strides {stride}")
    total = prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if total else offset
    if last >= count + (0 if total else 1) or total > count:
        raise Refused(f"a tensor of size {size} and strides {stride} from {offset} leaves its storage of {count} elements")
    plain, step = [], 1
    for n in reversed(size):
        plain.insert(0, step)
        step *= n
    wide = kind.size
    if all(n == 1 or a == b for n, a, b in zip(size, stride, plain)):
        return Tensor(kind.dtype, list(size), data[offset * wide : (offset + total) * wide])
    parts = bytearray()
    index = [0] * len(size)
    for _ in range(total):
        at = (offset + sum(i * s for i, s in zip(index, stride))) * wide
        parts += data[at : at + wide]
        for axis in reversed(range(len(size))):
            index[axis] += 1
            if index[axis] < size[axis]:
                break
            index[axis] = 0
    return Tensor(kind.dtype, list(size), bytes(parts))


class Reader(pickle.Unpickler):
    """Answers the names that tensors are made of, and no others."""

    def __init__(self, data, load):
        super().__init__(io.BytesIO(data))
        self.load_storage = load

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return State
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if module == "torch" and name in STORAGES:
            return Storage(name)
        raise Refused(f"the pickle names `{module}.{name}`; expected tensors, numbers and texts alone")

    def persistent_load(self, identity):
        if not (isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage"):
            raise Refused("a reference to something else than a storage")
        _, kind, key, _, count = identity
        if not isinstance(kind, Storage) or not isinstance(key, str) or type(count) is not int or count < 0:
            raise Refused("a storage that contradicts itself")
        return kind, self.load_storage(key, count * kind.size), count


def stored(mapped, entry):
    """The bytes of an entry that is not compressed, where they lie."""
    start = entry.header_offset
    if bytes(mapped[start : start + 4]) != b"PK\x03\x04":
        raise Refused(f"entry `{entry.filename}` does not begin where the archive says")
    name, extra = struct.unpack("<HH", mapped[start + 26 : start + 30])
    start += 30 + name + extra
    if entry.file_size != entry.compress_size or start + entry.file_size > len(mapped):
        raise Refused(f"entry `{entry.filename}` leaves the file")
    return mapped[start : start + entry.file_size]


def read_archive(path):
    """What a file of PyTorch holds."""
    with open(path, "rb") as file:
        start = file.read(2)
    if start != b"PK":
        raise Refused("not a zip archive, as PyTorch 1.6 and newer write it; save the checkpoint again with a newer PyTorch")
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            raise Refused("two entries of the archive have the same name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Refused("an entry of the archive is compressed; PyTorch stores them as they are")
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise Refused(f"expected one entry `<name>/data.pkl`, found {len(pickles)}")
        stem = pickles[0].split("/")[0]
        if f"{stem}/byteorder" in names and archive.read(f"{stem}/byteorder") != b"little":
            raise Refused("the tensors are big-endian; save the checkpoint on a little-endian machine")
        if archive.getinfo(pickles[0]).file_size > LARGEST_PICKLE:
            raise Refused(f"the pickle has more than {LARGEST_PICKLE} bytes")
        kept = {}

        def load(key, size):
            if key not in kept:
                name = f"{stem}/data/{key}"
                if name not in names:
                    raise Refused(f"there is no storage `{name}`")
                kept[key] = stored(mapped, archive.getinfo(name))
            if len(kept[key]) < size:
                raise Refused(f"storage `{key}` has {len(kept[key])} bytes, and a tensor takes {size}")
            return kept[key]

        try:
            return Reader(archive.read(pickles[0]), load).load()
        except Refused:
            raise
        except Exception as error:
            raise Refused(f"the pickle cannot be read: {type(error).__name__}: {error}") from None


def tensors_of(state):
    if not isinstance(state, dict) or not state or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise Refused("expected a state dict: names, and tensors alone")
    return dict(state)


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name in sorted(tensors):
        tensor = tensors[name]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + len(tensor.data)]}
        at += len(tensor.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name].data)
