"""ONNX's own backend tests through v2l-compile and v2l-run, against ONNX Runtime on the untouched model.

Run: python tests/checks/peers/onnx_backend.py [--work DIR] [--tools DIR] [--only WORD]... [--limit SECONDS]
In a virtual environment of tests/reference/requirements.txt, or of newer packages; builds the release binaries with cargo, or
takes those in `--tools`. Two cases run at a time; all take about ten minutes. The reference is the ONNX Runtime of the virtual
environment; v2l uses the one that it finds, which V2L_ORT_LIB names.

The cases are the `onnx` package's node, PyTorch and simple ones, with their own inputs. Every tool runs in a process of its
own, with a limit of time and of address space. A case counts once. Where ONNX Runtime does not load or run the model:

- own results: every output of v2l-run lies within the case's tolerance of the case's own outputs;
- refused by both: v2l-compile or v2l-run ends with exit code 4;
- not run: v2l passes on that ONNX Runtime has no implementation, or has no tensors to give;
- failed: v2l-run gives something else.

Where it runs the model:

- same bits: every output of v2l-run holds ONNX Runtime's bytes;
- close: every output lies within the case's own tolerance (for 16-bit floats at least one unit in the last place);
- drawn: the operator draws at random; type and shape agree;
- refused: v2l-compile or v2l-run ends with exit code 4;
- failed: anything else, a process that was stopped at its limit among them.

Prints the counts, the reasons of what was refused, and every failed case; exits with 1 if one failed. `--json` prints one
event per line.
"""

import argparse
import collections
import json
import multiprocessing
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests

ROOT = Path(__file__).resolve().parents[3]
ADDRESS_SPACE = 16 << 30
SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip
NUMPY = {name: np.dtype(getattr(ml_dtypes, dtype, None) or dtype) for dtype, name in SAFETENSORS.items()}
# The least relative tolerance for results of a type: rounding once more, or in another order.
ROUNDING = {"float16": 2e-3, "bfloat16": 2e-2}
RANDOM = {"Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Dropout"}


class Case:
    def __init__(self, case):
        self.name, self.rtol, self.atol = case.name, case.rtol or 1e-3, case.atol or 1e-7
        self.case = case

    def model(self):
        return self.case.model or onnx.load(Path(self.case.model_dir) / "model.onnx")

    def inputs(self, model):
        """Values by input name; None for one that is no tensor."""
        given = {name.name for name in model.graph.initializer}
        ports = [port for port in model.graph.input if port.name not in given]
        if self.case.model is not None:
            values = self.case.data_sets[0][0]
        else:
            files = sorted(Path(self.case.model_dir).glob("test_data_set_0/input_*.pb"), key=lambda f: int(f.stem[6:]))
            values = [file.read_bytes() for file in files]
            ports = list(model.graph.input)[: len(values)]
        return {port.name: tensor(value, port) for port, value in zip(ports, values, strict=False)}


    def outputs(self, model):
        """The case's own results by output name; `None` if one is no tensor."""
        if self.case.model is not None:
            values = self.case.data_sets[0][1]
        else:
            files = sorted(Path(self.case.model_dir).glob("test_data_set_0/output_*.pb"), key=lambda f: int(f.stem[7:]))
            values = [file.read_bytes() for file in files]
        ports = model.graph.output
        found = {port.name: tensor(value, port) for port, value in zip(ports, values, strict=False)}
        return None if any(value is None for value in found.values()) else found


def tensor(value, port):
    if isinstance(value, bytes):
        if not port.type.HasField("tensor_type"):
            return None
        proto = TensorProto()
        proto.ParseFromString(value)
        return numpy_helper.to_array(proto)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, (np.ndarray, np.generic, int, float)) else None


def write(path: Path, tensors):
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": SAFETENSORS[array.dtype.name], "shape": array.shape, "data_offsets": [offset, offset + array.nbytes],
        }  # fmt: skip
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def read(path: Path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    array = lambda t: np.frombuffer(body[slice(*t["data_offsets"])], NUMPY[t["dtype"]]).reshape(t["shape"])  # noqa: E731
    return {name: array(described) for name, described in header.items()}


def reference(path: Path, model, inputs):
    """What ONNX Runtime gives; a reason if it does not run the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        types = {port.name: port.type.tensor_type.elem_type for port in model.graph.input}
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(value), types[name])
            if value.dtype.kind == "V" or value.dtype.name == "bfloat16"
            else ort.OrtValue.ortvalue_from_numpy(value)
            for name, value in inputs.items()
        }
        names = [output.name for output in session.get_outputs()]
        outputs = session.run_with_ort_values(names, values)
        return {name: array_of(value) for name, value in zip(names, outputs, strict=True)}, None
    except Exception as error:  # noqa: BLE001
        return None, str(error).splitlines()[0]


def array_of(value):
    if not value.is_tensor():
        return None
    if value.element_type() == TensorProto.BFLOAT16:
        import torch

        bits = torch.from_dlpack(value._ortvalue.to_dlpack()).view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    return value.numpy()


def draws(graph):
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return any(node.op_type in RANDOM for node in graph.node) or any(map(draws, bodies))


def same_bits(found, expected):
    return all(
        name in found and (found[name].dtype, found[name].shape) == (a.dtype, a.shape) and found[name].tobytes() == a.tobytes()
        for name, a in expected.items()
    )


def close(case, found, expected):
    """Empty if every output lies within the tolerance; else what does not."""
    for name, want in expected.items():
        if name not in found or found[name].shape != want.shape:
            return f"`{name}`: expected {want.shape}, found {found[name].shape if name in found else None}"
        rtol = max(case.rtol, ROUNDING.get(want.dtype.name, 0))
        have, want = found[name].astype(np.float64), want.astype(np.float64)
        # Beyond a 16-bit type's range v2l, in f32, is finite.
        far = ~np.isclose(have, want, rtol=rtol, atol=case.atol, equal_nan=True)
        if far.any():
            at = tuple(int(i) for i in np.argwhere(far)[0])
            return f"`{name}`: {int(far.sum())} of {far.size} differ, first at {at}: expected {want[at]}, found {have[at]}"
    return ""


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tool(limit, *command):
    """Exit code and last words; no code if it was stopped."""
    child = subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=limited, text=True,
        errors="replace",
    )  # fmt: skip
    try:
        words = child.communicate(timeout=limit)[1]
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return None, f"stopped after {limit} s"
    return child.returncode, words.strip()


def outcome(case, work: Path, tools: Path, limit):
    """What became of a case, and why."""
    warnings.simplefilter("ignore")
    model = case.model()
    inputs = case.inputs(model)
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        source, engine = folder / "model.onnx", folder / "model.engine"
        given, results = folder / "in.safetensors", folder / "out.safetensors"
        onnx.save(model, source)
        if any(value is None for value in inputs.values()):
            expected, reason = None, None
        else:
            expected, reason = reference(source, model, inputs)
        alone = reason is not None
        if alone:
            expected = case.outputs(model)
        code, words = tool(limit, tools / "v2l-compile", source, "-o", engine, "--quiet")
        if code == 4:
            return ("refused by both" if alone else "refused"), words
        if alone and (code != 0 or expected is None or any(v.dtype.name not in SAFETENSORS for v in inputs.values())):
            return "not run", reason
        if expected is None:
            return ("no tensors", words) if code == 0 else ("failed", f"inputs are no tensors; v2l-compile: {code}: {words}")
        if code != 0:
            return "failed", f"v2l-compile: {code}: {words}"
        if any(value.dtype.name not in SAFETENSORS for value in inputs.values()):
            return "failed", "v2l-compile took inputs of a type that safetensors files do not hold"
        write(given, inputs)
        code, words = tool(limit, tools / "v2l-run", "--engine", engine, "--inputs", given, "--outputs", results, "--quiet")
        if code == 4:
            return ("refused by both" if alone else "refused"), words
        if alone and code != 0:
            return "not run", reason
        if code != 0:
            return "failed", f"v2l-run: {code}: {words}"
        found = read(results)
        if alone:
            far = close(case, found, expected)
            if far and draws(model.graph):
                return "not run", reason
            return ("failed", far) if far else ("own results", reason)
        if same_bits(found, expected):
            return "same bits", ""
        if draws(model.graph) and all((found[n].dtype, found[n].shape) == (a.dtype, a.shape) for n, a in expected.items()):
            return "drawn", ""
        far = close(case, found, expected)
        return ("failed", far) if far else ("close", "")
    except Exception as error:  # noqa: BLE001
        return "failed", f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def collect(words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = list(collect_testcases(None))
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        cases += load_model_tests(kind=kind)
    return [Case(case) for case in cases if not words or any(word in case.name for word in words)]


def find_tools(given):
    if given is not None:
        return given.resolve()
    subprocess.run(["cargo", "build", "--release", "--locked", "--bins"], cwd=ROOT, check=True)
    metadata = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    found = subprocess.run(metadata, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return Path(json.loads(found)["target_directory"]) / "release"


def run_case(job):
    index, work, tools, limit = job
    return index, *outcome(CASES[index], work, tools, limit)


def gist(words):
    """The reason without the names in it."""
    return re.sub(r"`[^`]*`", "`…`", re.sub(r"^.*model\.onnx: ", "", words.splitlines()[-1] if words else ""))


def main():
    global CASES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--tools", type=Path, help="folder of built binaries")
    parser.add_argument("--only", action="append", help="cases whose names contain this word")
    parser.add_argument("--limit", type=float, default=60, help="seconds that one tool may take")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    tools, CASES = find_tools(a.tools), collect(a.only)
    counts, refused, not_run, failed = collections.Counter(), collections.Counter(), collections.Counter(), []
    with tempfile.TemporaryDirectory(dir=a.work) as work:
        jobs = [(index, Path(work), tools, a.limit) for index in range(len(CASES))]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for done, (index, result, words) in enumerate(pool.imap_unordered(run_case, jobs), 1):
                name = CASES[index].name
                counts[result] += 1
                if a.json:
                    print(json.dumps({"case": name, "result": result, "words": words}), flush=True)
                elif sys.stderr.isatty():
                    print(f"\r{done} of {len(jobs)}", end="", file=sys.stderr)
                if result in ("refused", "refused by both"):
                    refused[gist(words)] += 1
                elif result == "not run":
                    not_run[gist(words)[:120]] += 1
                elif result == "failed":
                    failed.append((name, words))
    if a.json:
        print(json.dumps({"counts": counts}))
    else:
        alone = counts["not run"] + counts["own results"] + counts["refused by both"]
        library = os.environ.get("V2L_ORT_LIB") or "the library that v2l finds"
        print(f"\n{sum(counts.values())} cases of onnx {onnx.__version__}; v2l on {library}")
        print(f"ONNX Runtime {ort.__version__} runs {sum(counts.values()) - alone}, of them")
        for result in ("same bits", "close", "drawn", "no tensors", "refused"):
            print(f"  {counts[result]:5} {result}")
        print(f"it does not run {alone}, of them")
        for result in ("own results", "refused by both", "not run"):
            print(f"  {counts[result]:5} {result}")
        print(f"  {counts['failed']:5} failed")
        for words, count in refused.most_common():
            print(f"  {count:5} refused: {words}")
        for words, count in not_run.most_common():
            print(f"  {count:5} not run: {words}")
        for name, words in sorted(failed):
            print(f"failed: {name}: {words}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
