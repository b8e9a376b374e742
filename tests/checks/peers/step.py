"""One step of a mid-size transformer against ONNX Runtime on the plainly exported graph and against PyTorch.

Run: python tests/checks/peers/step.py --work DIR [--layers 6] [--rounds 5] [--long] [--passes | --openvino | --cuda]
A random CogVideoX transformer of full width (3072), 768 latent tokens (with `--long` 3600) and 226 of text, batch 1, two threads on
either side. In a virtual environment of tests/reference/requirements.txt with onnxscript, for `--openvino` also openvino==2026.4.1;
builds the release binaries with cargo, or takes those in `--tools`. With 6 layers about 15 GB of disk and 16 GB of memory.

Every round times, one after the other: v2l's step in f32 (weights in f32; timestep table and precompute are there, as
in all steps but a generation's first), ONNX Runtime on the graph that torch.onnx exports from diffusers' model, PyTorch in f32
and PyTorch in bf16. Then both graphs run under ONNX Runtime's profiler, in turn. *Products* are MatMul, Gemm, Conv and v2l's attention operator, which holds softmax and transpositions
too; so the time outside of products is also given with what that operator takes beyond ONNX Runtime's two products charged to
v2l. Prints medians, and ratios of pairs; asserts that the outputs agree.

`--passes` compares v2l with itself instead: the time of everything but linear layers, and the weights that a step reads, without
each pass in turn; and two latents in one batch, as guidance needs them, against two runs of one.

`--openvino` compares, in rounds: v2l on OpenVINO, in bf16 and f32 over the same bf16 weights, and over matrices of 8 bits, with
rows in f32 and in 8 bits; v2l on ONNX Runtime in f32 and over 8 bits; PyTorch in f32, in bf16 and in bf16 compiled; OpenVINO on the graph
that torch.onnx exports (weights in f32 as constants, its own default of bf16); and OpenVINO on v2l's typed graph of `--precision bf16`, in
which every node has the type of the precision plan, not precomputed, with matrices as inputs. Each with its processor's seconds, by which
they are compared, and its error from PyTorch in f32; v2l also with its private memory after a step, and its largest resident set.
The tables in docs/openvino.md are of `--openvino --layers 4`, with and without `--long`. With `--model wan-1.3b` the model is Wan 2.1's
text-to-video transformer of 1.3 billion parameters, at 480 x 832 pixels and 5 frames: 3120 tokens, and 512 of text; the two of graphs
that are not v2l's engines are left out. With `--one-by-one` each is opened, run twice and closed before the next in
every round, and the second run counts: that takes the memory of one alone, about 8 GB for all 30 layers, in place of 20. With
`--profile` it says instead where a step's time goes on OpenVINO, by operator, and what the linear layers alone take as products of
PyTorch's, which are oneDNN's, as are OpenVINO's.

`--cuda` compares on an NVIDIA GPU instead: v2l on ONNX Runtime's CUDA provider, by its precision plans for fp16 and bf16, with
PyTorch in bf16, eager and compiled. The step's inputs come from host memory and its output goes there, for both; `--tools` are
built with `--features cuda`; `bin/dev/gpu-check` runs it. It has not been run on a GPU yet.
"""

import argparse
import collections
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnxruntime as ort
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

from peers import built_tools

PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "Conv", "MultiHeadAttention"}
# Frames, rows and columns of tokens.
SHORT, LONG = (3, 16, 16), (9, 20, 20)
# Those that find something in v2l's own graphs.
PASSES = ["duplicates", "rotary", "attention", "modulated-norm", "prologue", "timestep-tables"]
# As v2l's runtime has it: weights come from outside, and these optimisers would want to read them.
WEIGHT_READERS = (
    "ConstantFolding TransposeOptimizer TransposeOptimizer_CPUExecutionProvider NchwcTransformer NhwcTransformer "
    "FuseFp16InitializerToFp32NodeTransformer UnsqueezeElimination ConvAddFusion ConvMulFusion ConvBNFusion "
    "MatMul_BatchNormalization_Fusion"
).split()


def randn(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


class CogVideoX:
    """The transformer that Video2LoRA steers: 33 input channels, rotary positions given."""

    layers = 6
    network = CogVideoXTransformer3DModel
    grid = SHORT

    @staticmethod
    def config(layers):
        return {
            "num_attention_heads": 48,
            "attention_head_dim": 64,
            "num_layers": layers,
            "in_channels": 33,
            "out_channels": 16,
            "use_rotary_positional_embeddings": True,
        }

    @classmethod
    def inputs(cls):
        normal, (frames, rows, columns) = randn(), cls.grid
        cos, sin = get_3d_rotary_pos_embed(64, ((0, 0), (rows, columns)), (rows, columns), frames)
        return {
            "hidden_states": normal(1, frames, 16, 2 * rows, 2 * columns),
            "inpaint_latents": normal(1, frames, 17, 2 * rows, 2 * columns),
            "encoder_hidden_states": normal(1, 226, 4096),
            "timestep": torch.tensor([500]),
            "image_rotary_emb_cos": cos.float(),
            "image_rotary_emb_sin": sin.float(),
        }

    @staticmethod
    def forward(model, given, device="cpu"):
        cast = lambda name: given[name].to(device, model.dtype)  # noqa: E731
        pixels = torch.cat([cast("hidden_states"), cast("inpaint_latents")], 2)
        rotary = tuple(given[f"image_rotary_emb_{name}"].to(device) for name in ("cos", "sin"))
        text, timestep = cast("encoder_hidden_states"), given["timestep"].to(device)
        return model(pixels, text, timestep, image_rotary_emb=rotary, return_dict=False)[0].float()


class Wan13B:
    """Wan 2.1's text-to-video transformer of 1.3 billion parameters."""

    layers = 30
    network = WanTransformer3DModel

    @staticmethod
    def config(layers):
        return {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": layers}

    @staticmethod
    def inputs():
        """480 x 832 pixels and 5 frames."""
        normal = randn()
        latents, text = normal(1, 16, 2, 60, 104), normal(1, 512, 4096)
        return {"hidden_states": latents, "encoder_hidden_states": text, "timestep": torch.tensor([500.0])}

    @staticmethod
    def forward(model, given, device="cpu"):
        latents, text = (given[name].to(device, model.dtype) for name in ("hidden_states", "encoder_hidden_states"))
        return model(latents, given["timestep"].to(device), text, return_dict=False)[0].float()


MODELS = {"cogvideox": CogVideoX, "wan-1.3b": Wan13B}


class Plain(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, hidden_states, inpaint_latents, encoder_hidden_states, timestep, cos, sin):
        pixels = torch.cat([hidden_states, inpaint_latents], 2)
        return self.model(pixels, encoder_hidden_states, timestep, image_rotary_emb=(cos, sin), return_dict=False)[0]


def make(work: Path, tools: Path, kind, layers, engines=True):
    torch.manual_seed(0)
    model = kind.network(**kind.config(layers)).eval()
    # What modulation, norms and biases start as would hide mistakes.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(work / "transformer")
    run = lambda *command: subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)  # noqa: E731
    run(tools / "v2l-export", work / "transformer", "-o", work / "bundle", "--quiet")
    if engines:
        run(tools / "v2l-compile", work / "bundle", "-o", work / "engines", "--explain", "--quiet")


def export_plainly(work: Path, kind):
    """What torch.onnx makes of diffusers' model, for these inputs."""
    path = work / f"plain.{'x'.join(map(str, kind.grid))}.onnx"
    if path.exists():
        return path
    model = kind.network.from_pretrained(work / "transformer", torch_dtype=torch.float32).eval()
    given = {name: torch.from_numpy(value) for name, value in load_file(work / "inputs.safetensors").items()}
    order = ["hidden_states", "inpaint_latents", "encoder_hidden_states", "timestep"]
    order += ["image_rotary_emb_cos", "image_rotary_emb_sin"]
    with torch.no_grad():
        torch.onnx.export(
            Plain(model),
            tuple(given[name] for name in order),
            path,
            input_names=order,
            output_names=["sample"],
            dynamo=True,
            external_data=True,
            opset_version=20,
            verbose=False,
        )
    return path


class Worker:
    """v2l's side, one step per line."""

    def __init__(self, *arguments):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(a) for a in arguments], **pipes)

    def __call__(self):
        print(file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        self.private, self.cpu, self.peak = answer["private"], answer["cpu"], answer["peak"]
        return answer["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def beside_linear(engine: Path, inputs, rounds):
    """Milliseconds of the step graph's operators other than linear layers, and the bytes of weights that it reads, in f32."""
    step, precomputed, manifest = described(engine)
    values = dict(inputs)
    for part in precomputed:
        values |= Stored(engine, part).run(values)
    graph = Stored(engine, step, engine.parent / "profile")
    times, operators = profiled(graph.session, lambda: graph.run(values), rounds)
    return sum(value for name, value in times.items() if operators[name] != "Gemm"), weight_bytes(manifest, [step])


def compare_passes(work: Path, tools: Path, rounds, say):
    inputs = load_file(work / "inputs.safetensors")
    whole = work / "engines/transformer.engine"
    with_all, all_bytes = beside_linear(whole, inputs, rounds)
    event = {"event": "passes", "beside_linear_ms": with_all, "weight_bytes": all_bytes}
    say(event, f"all passes: {with_all:.0f} ms beside linear layers, {all_bytes / 1e9:.3f} GB of weights")
    for name in PASSES:
        engines = work / "engines.without"
        command = [tools / "v2l-compile", work / "bundle", "-o", engines, "--disable-pass", name, "--no-verify", "--quiet"]
        subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)
        without, size = beside_linear(engines / "transformer.engine", inputs, rounds)
        event = {"event": "pass", "pass": name, "beside_linear_ms": without, "weight_bytes": size}
        say(event, f"without {name}: {without:.0f} ms ({without / with_all:.2f} times), {size / 1e9:.3f} GB")
    batched = {"hidden_states", "inpaint_latents", "encoder_hidden_states", "timestep"}
    twice = {name: np.concatenate([v, v]) if name in batched else v for name, v in inputs.items()}
    save_file({name: torch.from_numpy(value) for name, value in twice.items()}, work / "batch2.safetensors")
    one, two = (Worker(tools / "peers_step", whole, work / name) for name in ("inputs.safetensors", "batch2.safetensors"))
    one(), two()
    ratio = statistics.median(two() / (one() + one()) for _ in range(rounds))
    one.close()
    two.close()
    say({"event": "batch", "over_two_runs": ratio}, f"two latents in one batch: {ratio:.3f} of two runs of one")


class Peer:
    """One way to run the step: opened by its first run, and closed to give its memory back."""

    def __init__(self, start):
        self.start, self.step = start, None
        self.seconds, self.cpu = [], []

    def open(self):
        if self.step is None:
            self.step, self.output, self.close_step = self.start()

    def measure(self, name):
        start = time.process_time()
        self.seconds.append(self.step())
        own = time.process_time() - start
        self.cpu.append(self.step.cpu if isinstance(self.step, Worker) else own)
        print(f"{name}: {self.seconds[-1]:.2f} s, {self.cpu[-1]:.2f} s of the processor", file=sys.stderr, flush=True)

    def close(self):
        self.private, self.peak = (getattr(self.step, name, None) for name in ("private", "peak"))
        self.close_step()
        self.step = None


def compile_for_openvino(work: Path, tools: Path, name, *flags):
    engines = work / name
    command = [tools / "v2l-compile", work / "bundle", "-o", engines, "--backend", "openvino", "--no-verify", "--quiet", *flags]
    subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)
    return engines / "transformer.engine"


def compare_on_openvino(work: Path, tools: Path, kind, block, rounds, one_by_one, say):
    compiled = functools.partial(compile_for_openvino, work, tools)
    stored, int8 = compiled("engines.openvino"), compiled("engines.int8", f"--int8={block}")
    given = {name: torch.from_numpy(value) for name, value in load_file(work / "inputs.safetensors").items()}

    def torch_in(dtype, compiled=False):
        model = kind.network.from_pretrained(work / "transformer", torch_dtype=dtype)
        model = torch.compile(model) if compiled else model

        def forward():
            with torch.no_grad():
                return kind.forward(model, given)

        # The first run warms up.
        return lambda: timed(forward), forward().numpy(), torch._dynamo.reset if compiled else lambda: None

    def v2l(name, engine, *flags):
        written = work / f"{name.replace(' ', '_')}.safetensors"
        arguments = [engine, work / "inputs.safetensors", "--outputs", written, *flags]
        worker = Worker(tools / "peers_step", *arguments)
        worker()
        return worker, load_file(written)["sample"], worker.close

    peers = {
        "torch float32": Peer(lambda: torch_in(torch.float32)),
        "torch bfloat16": Peer(lambda: torch_in(torch.bfloat16)),
        "torch bfloat16 compiled": Peer(lambda: torch_in(torch.bfloat16, compiled=True)),
        "v2l ort f32": Peer(lambda: v2l("v2l ort f32", stored)),
        "v2l ort int8": Peer(lambda: v2l("v2l ort int8", int8)),
        "v2l openvino f32": Peer(lambda: v2l("v2l openvino f32", stored, "--openvino", "f32")),
        "v2l openvino bf16": Peer(lambda: v2l("v2l openvino bf16", stored, "--openvino", "bf16")),
        "v2l openvino int8": Peer(lambda: v2l("v2l openvino int8", int8, "--openvino", "f32")),
        "v2l openvino int8 rows": Peer(lambda: v2l("v2l openvino int8 rows", int8, "--openvino", "int8")),
    }
    if kind is CogVideoX:
        typed = compiled("engines.typed", "--precision", "bf16", "--no-calibration")
        plain = export_plainly(work, kind)
        numbers = {name: tensor.numpy() for name, tensor in given.items()}
        peers["openvino, exported graph, bf16"] = Peer(lambda: openvino_on(str(plain), {}, numbers, "bf16"))
        peers["openvino, v2l's typed graph"] = Peer(lambda: openvino_on(*typed_graph(typed), numbers, "f32"))
    # Beside the clock, what the processor did: other programs on the machine do not count in it.
    if one_by_one:
        for _ in range(rounds):
            for name, peer in peers.items():
                peer.open()
                peer.measure(name)
                peer.close()
    else:
        for peer in peers.values():
            peer.open()
        for _ in range(rounds):
            for name, peer in peers.items():
                peer.measure(name)
        for peer in peers.values():
            peer.close()
    expected = peers["torch float32"].output
    for name, peer in peers.items():
        ratios = {
            other: statistics.median(x / y for x, y in zip(peer.cpu, peers[other].cpu))
            for other in ("torch float32", "torch bfloat16", "v2l ort f32")
        }
        error = float(np.linalg.norm(peer.output - expected) / np.linalg.norm(expected))
        seconds, cpu = statistics.median(peer.seconds), statistics.median(peer.cpu)
        event = {"event": "step", "case": name, "seconds": seconds, "cpu": cpu, "over": ratios, "relative_l2": error}
        beside = ", ".join(f"{ratio:.2f} of {other}" for other, ratio in ratios.items())
        text = f"{name}: {seconds:.2f} s, {cpu:.2f} s of the processor, {beside}; {error:.1e} from float32 (relative L2)"
        if peer.private is not None:
            event["private"] = peer.private
            event["peak"] = peer.peak
            text += f"; {peer.private / 1e6:.0f} MB private, {peer.peak / 1e6:.0f} MB resident at most"
        say(event, text)


def request_on_openvino(graph, weights, settings):
    """OpenVINO's own Python on a graph, as v2l sets it; `weights` are inputs besides, in place: they are to outlive what is given."""
    import openvino

    settings = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "PERFORMANCE_HINT": "LATENCY"} | settings
    settings |= {"ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": 2}
    core = openvino.Core()
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
    for name, (words, shape) in weights.items():
        request.set_tensor(name, openvino.Tensor(words, shape, openvino.Type.bf16))
    return request


def openvino_on(graph, weights, inputs, precision):
    """A step of OpenVINO's own Python on a graph, what it gave first, and nothing to close."""
    import openvino

    request = request_on_openvino(graph, weights, {"INFERENCE_PRECISION_HINT": precision})
    given = {name: openvino.Tensor(np.ascontiguousarray(value)) for name, value in inputs.items()}

    def step():
        for name, value in given.items():
            request.set_tensor(name, value)
        request.infer()

    step()
    # OpenVINO reads the weights where they are, and keeps no hold of them.
    return lambda held=weights: timed(step), request.get_tensor("sample").data.copy(), lambda: None


def words_of(file, name):
    """A tensor of bfloat16 as 16-bit words, and its shape."""
    stored = file.get_tensor(name)
    assert stored.dtype == torch.bfloat16, name
    return stored.contiguous().view(torch.uint16).numpy(), list(stored.shape)


def hold(value, stored):
    """Takes the data of an initializer that lies elsewhere into the graph."""
    value.ClearField("external_data")
    value.data_location = onnx.TensorProto.DEFAULT
    value.raw_data = stored.contiguous().view(torch.uint8).numpy().tobytes()


def outside(model):
    return [value for value in model.graph.initializer if value.data_location == onnx.TensorProto.EXTERNAL]


def stored_graph(engine: Path):
    """The step's form for OpenVINO, its constants in it, and the matrices that it has as inputs."""
    step, _, _ = described(engine)
    form = step["files"]["openvino"]
    with safe_open(engine, "pt") as file:
        model = onnx.load_model_from_string(bytes(file.get_tensor(form["file"]).numpy()))
        for value in outside(model):
            hold(value, file.get_tensor(value.name))
        return model.SerializeToString(), {name: words_of(file, name) for name in form["weights"]}


def profile_on_openvino(stored: Path, int8: Path, block, tokens, rounds, say):
    """Where the step's time goes, node by node, and what its linear layers alone take: as products of PyTorch's, which are oneDNN's."""
    import openvino

    step, precomputed, manifest = described(stored)
    values = load_file(stored.parents[1] / "inputs.safetensors")
    for part in precomputed:
        values |= Stored(stored, part).run(values)
    extents = [manifest["tensors"][name]["shape"] for name in step["weights"] if name.startswith("transformer_blocks.")]
    extents = [shape for shape in extents if len(shape) == 2]
    work = 2 * tokens * sum(rows * columns for rows, columns in extents)
    for name, engine, settings in (
        ("f32", stored, {"INFERENCE_PRECISION_HINT": "f32"}),
        ("bf16", stored, {"INFERENCE_PRECISION_HINT": "bf16"}),
        ("8 bits, rows too", int8, {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": min(block, 128)}),
    ):
        graph, weights = stored_graph(engine)
        request = request_on_openvino(graph, weights, settings | {"PERF_COUNT": True})
        names = {name for port in request.model_inputs for name in port.get_names()}
        for key in names & values.keys():
            # ONNX Runtime calls its integers by another of NumPy's names.
            value = np.ascontiguousarray(values[key], np.dtype(values[key].dtype.name))
            request.set_tensor(key, openvino.Tensor(value))
        runs = []
        for number in range(rounds + 1):
            request.infer()
            if number:  # the first round warms up
                times = collections.Counter()
                for node in request.profiling_info:
                    times[node.node_type] += 1e3 * node.real_time.total_seconds()
                runs.append(times)
        times = {op: statistics.median(run[op] for run in runs) for op in runs[0]}
        whole, products = sum(times.values()), sum(times.get(op, 0) for op in ("MatMul", "FullyConnected", "FullyConnectedCompressed"))
        largest = sorted(times.items(), key=lambda item: -item[1])[:6]
        rate = work / products / 1e6
        event = {"event": "nodes", "case": name, "ms": whole, "products_ms": products, "gflops": rate, "operators_ms": times}
        text = ", ".join(f"{op} {value:.0f}" for op, value in largest)
        say(event, f"{name}: {whole:.0f} ms, {products / whole:.1%} in products, {rate:.0f} GFLOP/s in them; {text}")
        del request, graph, weights
    normal = torch.Generator().manual_seed(2)
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("8 bits, whole rows", torch.int8)):
        milliseconds = 0
        for (rows, columns), times in collections.Counter(map(tuple, extents)).items():
            a, b = torch.randn(tokens, columns, generator=normal), torch.randn(rows, columns, generator=normal)
            if dtype == torch.int8:
                a, b = ((40 * matrix).clamp(-127, 127).to(dtype) for matrix in (a, b))
                product = lambda a=a, b=b: torch._int_mm(a, b.T)  # noqa: E731
            else:
                a, b = a.to(dtype), b.to(dtype)
                product = lambda a=a, b=b: torch.nn.functional.linear(a, b)  # noqa: E731
            product()
            milliseconds += 1e3 * times * statistics.median(timed(product) for _ in range(rounds))
        rate = work / milliseconds / 1e6
        event = {"event": "products", "case": name, "ms": milliseconds, "gflops": rate}
        say(event, f"linear layers of the blocks alone, PyTorch {name}: {milliseconds:.0f} ms, {rate:.0f} GFLOP/s")


def typed_graph(engine: Path):
    """The typed graph of an engine with matrices as inputs and layers as products and sums, and the matrices as 16-bit words."""
    weights = {}
    with safe_open(engine, "pt") as file:
        graph = next(g for g in json.loads(bytes(file.get_tensor("v2l/manifest").numpy()))["graphs"] if g["name"] == "step")
        model = onnx.load_model_from_string(bytes(file.get_tensor(graph["files"]["typed"]["file"]).numpy()))
        for value in outside(model):
            if len(value.dims) < 2:
                hold(value, file.get_tensor(value.name))
                continue
            weights[value.name] = words_of(file, value.name)
            model.graph.input.append(onnx.helper.make_tensor_value_info(value.name, value.data_type, value.dims))
            model.graph.initializer.remove(value)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        flags = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert flags.get("alpha", 1) == flags.get("beta", 1) == 1 and not flags.get("transA", 0), node.name
        out, matrix = node.output[0], node.input[1]
        if flags.get("transB", 0):
            nodes.append(onnx.helper.make_node("Transpose", [matrix], [f"{out}/b"], perm=[1, 0]))
            matrix = f"{out}/b"
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], matrix], [f"{out}/product"]))
        nodes.append(onnx.helper.make_node("Add", [f"{out}/product", node.input[2]], [out]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString(), weights


def compare_on_gpu(work: Path, tools: Path, rounds, say):
    device = torch.device("cuda")
    say({"event": "card", "name": torch.cuda.get_device_name(device)}, torch.cuda.get_device_name(device))
    given = {name: torch.from_numpy(value) for name, value in load_file(work / "inputs.safetensors").items()}

    def forward_of(model):
        def forward():
            with torch.no_grad():
                return CogVideoX.forward(model, given, device).cpu()

        return forward

    load = lambda dtype: CogVideoXTransformer3DModel.from_pretrained(work / "transformer", torch_dtype=dtype).to(device)  # noqa: E731
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = forward_of(load(torch.float32))().numpy()
    model = load(torch.bfloat16)
    eager, compiled = forward_of(model), forward_of(torch.compile(model))
    cases = {"torch eager": lambda: timed(eager), "torch compiled": lambda: timed(compiled)}
    outputs, workers = {"torch eager": eager().numpy(), "torch compiled": compiled().numpy()}, []
    for precision in ("fp16", "bf16"):
        engines, name = work / f"engines.{precision}", f"v2l {precision}"
        command = [tools / "v2l-compile", work / "bundle", "-o", engines, "--precision", precision]
        command += ["--no-calibration", "--no-verify", "--quiet"]
        subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)
        written = work / f"{precision}.safetensors"
        arguments = ["--plan", "--stored", "--provider", "cuda", "--outputs", written]
        worker = Worker(tools / "peers_step", engines / "transformer.engine", work / "inputs.safetensors", *arguments)
        try:
            worker()
        except (OSError, ValueError):
            say({"event": "failed", "case": name}, f"{name}: did not run; its message is above")
            continue
        workers.append(worker)
        cases[name], outputs[name] = worker, load_file(written)["sample"]
    times = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            seconds = case()
            if number:  # the first round warms up
                times[name].append(seconds)
    for worker in workers:
        worker.close()
    for name, values in times.items():
        milliseconds = 1e3 * statistics.median(values)
        ratios = {peer: statistics.median(x / y for x, y in zip(values, times[peer])) for peer in cases if "torch" in peer}
        error = float(np.linalg.norm(outputs[name] - expected) / np.linalg.norm(expected))
        event = {"event": "step", "case": name, "ms": milliseconds, "over": ratios, "relative_l2": error}
        beside = ", ".join(f"{ratio:.2f} of {peer}" for peer, ratio in ratios.items())
        say(event, f"{name}: {milliseconds:.2f} ms, {beside}; {error:.1e} from float32 (relative L2)")


def described(engine: Path):
    """The step graph of an engine, its precomputed graphs, and the manifest."""
    with safe_open(engine, "np") as file:
        manifest = json.loads(file.get_tensor("v2l/manifest").tobytes())
    step = next(graph for graph in manifest["graphs"] if graph["name"] == "step")
    precomputed = step.get("precomputed") or {}
    precompute, rows = precomputed.get("precompute"), precomputed.get("timestep_rows")
    return step, [*([precompute] if precompute else []), *([rows["graph"]] if rows else [])], manifest


def weight_bytes(manifest, graphs):
    size = {name: np.prod(t["shape"], dtype=np.int64) for name, t in manifest["tensors"].items()}
    return 4 * int(sum(size[w] for w in {w for g in graphs for w in g["weights"]}))


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def options(profile=None):
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 2
    settings.log_severity_level = 3
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    return settings


class Stored:
    """A graph of an engine, as v2l's runtime opens it with weights in f32."""

    def __init__(self, engine: Path, graph, profile=None):
        settings, self.held = options(profile), []
        with safe_open(engine, "pt") as file:
            data = file.get_tensor(graph["files"]["f32"]).numpy().tobytes()
            for name in graph["weights"]:
                weight = file.get_tensor(name)
                weight = (weight.float() if weight.is_floating_point() else weight).numpy()
                value = ort.OrtValue.ortvalue_from_numpy(weight)
                self.held.append((weight, value))
                settings.add_initializer(name, value)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "v2l-weights").touch()
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            self.session = ort.InferenceSession(
                data, settings, providers=["CPUExecutionProvider"], disabled_optimizers=WEIGHT_READERS
            )

    def run(self, values):
        given = {port.name: values[port.name] for port in self.session.get_inputs()}
        return dict(zip((o.name for o in self.session.get_outputs()), self.session.run(None, given)))


def profiled(session, run, rounds):
    """{node: median ms} and {node: operator}, If's own time without its body's."""
    for _ in range(rounds + 1):
        run()
    path = Path(session.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    first = next(e for e in events if e.get("name") == "model_run")
    times, operators = collections.defaultdict(list), {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            if event["ts"] > first["ts"] + first["dur"] and event["args"]["op_name"] != "If":
                times[event["name"]].append(event["dur"] / 1e3)
                operators[event["name"]] = event["args"]["op_name"]
    return {name: statistics.median(values) for name, values in times.items()}, operators


def shares(times, operators):
    totals = collections.Counter()
    for name, value in times.items():
        totals[operators[name]] += value
    products = sum(value for op, value in totals.items() if op in PRODUCTS)
    return totals, products, sum(totals.values()) - products


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="cogvideox", help="another one goes with --openvino")
    parser.add_argument("--layers", type=int, help="transformer blocks; 6 of CogVideoX, all 30 of Wan")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="3600 tokens of CogVideoX in place of 768")
    parser.add_argument("--passes", action="store_true", help="v2l with and without each pass, and guidance's batch")
    parser.add_argument("--openvino", action="store_true", help="on OpenVINO, against PyTorch and v2l on ONNX Runtime")
    parser.add_argument("--one-by-one", action="store_true", help="with --openvino: one after the other, in the memory of one")
    parser.add_argument("--int8", type=int, default=128, metavar="BLOCK", help="with --openvino: blocks of the matrices in 8 bits")
    parser.add_argument("--profile", action="store_true", help="with --openvino: where the time goes, in place of the comparison")
    parser.add_argument("--cuda", action="store_true", help="on an NVIDIA GPU, against PyTorch in bf16")
    parser.add_argument("--tools", type=Path, help="folder of built binaries")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    if a.model != "cogvideox" and (not a.openvino or a.profile):
        parser.error("--model goes with --openvino without --profile; the other comparisons are of CogVideoX")
    if a.profile and not a.openvino:
        parser.error("--profile goes with --openvino")
    kind = MODELS[a.model]
    if a.long:
        CogVideoX.grid = LONG
    layers = a.layers or kind.layers
    torch.set_num_threads(2)
    work, tools = a.work.resolve(), a.tools or built_tools()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / ("bundle" if a.openvino else "engines")).exists():
        make(work, tools, kind, layers, engines=not a.openvino)
    save_file({name: tensor.contiguous() for name, tensor in kind.inputs().items()}, work / "inputs.safetensors")
    say = (lambda event, text: print(json.dumps(event))) if a.json else (lambda event, text: print(text))
    machine = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
    versions = {"torch": torch.__version__, "onnxruntime": ort.__version__}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    say({"event": "machine", "cpu": machine} | versions, f"{machine}, 2 threads, {text}; {a.model}, {layers} layers")

    if a.openvino and a.profile:
        compiled = functools.partial(compile_for_openvino, work, tools)
        frames, rows, columns = kind.grid
        tokens = frames * rows * columns + 226
        engines = compiled("engines.openvino"), compiled("engines.int8", f"--int8={a.int8}")
        profile_on_openvino(*engines, a.int8, tokens, a.rounds, say)
        return
    if a.openvino:
        compare_on_openvino(work, tools, kind, a.int8, a.rounds, a.one_by_one, say)
        return
    if a.cuda:
        compare_on_gpu(work, tools, a.rounds, say)
        return
    if a.passes:
        compare_passes(work, tools, a.rounds, say)
        return
    inputs = load_file(work / "inputs.safetensors")
    engine = work / "engines/transformer.engine"
    step, precomputed, manifest = described(engine)
    before, after = weight_bytes(manifest, [step, *precomputed]), weight_bytes(manifest, [step])
    text = f"weights read by a step, in f32: {before / 1e9:.3f} GB before hoisting, {after / 1e9:.3f} GB after"
    say({"event": "weights", "before": before, "after": after}, f"{text} ({1 - after / before:.1%} less)")

    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    v2l = Worker(tools / "peers_step", engine, work / "inputs.safetensors", "--outputs", work / "v2l.safetensors")
    v2l()
    exported = str(export_plainly(work, kind))
    plain = ort.InferenceSession(exported, options(), providers=["CPUExecutionProvider"])
    cases = {"v2l": v2l, "onnxruntime": lambda: timed(lambda: plain.run(None, inputs))}
    for dtype in (torch.float32, torch.bfloat16):
        model = kind.network.from_pretrained(work / "transformer", torch_dtype=dtype)

        def forward(model=model):
            with torch.no_grad():
                kind.forward(model, tensors)

        cases["torch " + str(dtype).removeprefix("torch.")] = lambda forward=forward: timed(forward)
    times = {name: [] for name in cases}
    for number in range(a.rounds + 1):
        for name, case in cases.items():
            seconds = case()
            if number:  # the first round warms up
                times[name].append(seconds)
    v2l.close()
    cases.clear()
    for name, values in times.items():
        ratio = statistics.median(x / y for x, y in zip(values, times["v2l"]))
        event = {"event": "step", "case": name, "seconds": statistics.median(values), "over_v2l": ratio}
        say(event, f"{name}: {statistics.median(values):.3f} s, {ratio:.2f} of v2l's")
    expected, found = plain.run(None, inputs)[0], load_file(work / "v2l.safetensors")["sample"]
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    del plain

    values = dict(inputs)
    for part in precomputed:
        values |= Stored(engine, part).run(values)
    main_graph = Stored(engine, step, work / "v2l")
    ours = profiled(main_graph.session, lambda: main_graph.run(values), a.rounds)
    del main_graph
    plain = ort.InferenceSession(exported, options(work / "plain"), providers=["CPUExecutionProvider"])
    theirs = profiled(plain, lambda: plain.run(None, inputs), a.rounds)
    totals, outside = {}, {}
    for name, (nodes, operators) in (("onnxruntime", theirs), ("v2l", ours)):
        totals[name], products, outside[name] = shares(nodes, operators)
        largest = ", ".join(f"{op} {value:.1f}" for op, value in totals[name].most_common(10))
        event = {"event": "profile", "case": name, "products_ms": products, "outside_ms": outside[name]}
        text = f"{name}: {products:.0f} ms in products ({products / (products + outside[name]):.1%})"
        say(event | {"operators_ms": totals[name]}, f"{text}, {outside[name]:.0f} ms outside; {largest}")
    # What v2l's attention takes beyond the two products of the other's: softmax and transpositions.
    charged = totals["v2l"]["MultiHeadAttention"] - totals["onnxruntime"]["FusedMatMul"] - totals["onnxruntime"]["MatMul"]
    less = 1 - outside["v2l"] / outside["onnxruntime"]
    charged = 1 - (outside["v2l"] + charged) / outside["onnxruntime"]
    text = f"outside of products: {less:.0%} less time; {charged:.0%} less with the rest of attention charged to v2l"
    say({"event": "outside", "less": less, "less_charged": charged}, text)
    say({"event": "error", "relative_l2": error}, f"outputs differ by {error:.1e} (relative L2)")
    assert error < 1e-5, error


if __name__ == "__main__":
    main()
