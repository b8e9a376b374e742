"""Golden files for the rule that every weight reaches ONNX Runtime as an override.

One graph with every way in which the pipeline's graphs take weights (Gemm, MatMul, Conv in 2-D and 3-D, LayerNormalization, Gather,
Unsqueeze of a weight, Add behind a Transpose, …). `f32.onnx` and `stored_<type>.onnx` name an empty external file; each case holds noise for every
weight, inputs, and the outputs of a graph that embeds the noise, run without optimisation.

    python tests/reference/ort_overrides.py [--out DIR]
"""

import ml_dtypes
import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from common import output_dir

TYPES = {
    "f32": (TensorProto.FLOAT, np.float32, 4),
    "f16": (TensorProto.FLOAT16, np.float16, 2),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, 2),
}
WEIGHTS = {
    "emb.weight": (32, 16),
    "ln.weight": (16,),
    "ln.bias": (16,),
    "up.weight": (24, 16),
    "up.bias": (24,),
    "down.weight": (16, 24),
    "down.bias": (16,),
    "mm.weight": (16, 16),
    "mm.bias": (16,),
    "scale": (16,),
    **{f"to_{p}.{k}": s for p in "qkv" for k, s in (("weight", (16, 16)), ("bias", (16,)))},
    "rms.weight": (16,),
    "c2.weight": (16, 8, 3, 3),
    "c2.bias": (16,),
    "gn.weight": (16,),
    "gn.bias": (16,),
    "c1.weight": (16, 16, 1, 1),
    "shift": (16, 1, 1),
    "c3.weight": (16, 8, 3, 3, 3),
    "c3.bias": (16,),
}


def external(name, shape, kind):
    tensor = TensorProto(name=name, dims=shape, data_type=TYPES[kind][0], data_location=TensorProto.EXTERNAL)
    length = int(np.prod(shape)) * TYPES[kind][2]
    for key, value in (("location", "v2l-weights"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


class Graph:
    """A graph under construction; `embed` gives weights to store inside, in f32."""

    def __init__(self, kind, embed=None):
        self.nodes, self.initializers, self.count, self.used = [], [], 0, {}
        for name, shape in WEIGHTS.items():
            self.used[name] = name
            if embed is not None:
                self.initializers.append(numpy_helper.from_array(embed[name].astype(np.float32), name))
                continue
            self.initializers.append(external(name, shape, kind))
            if kind != "f32":
                self.used[name] = name + ".f32"
                self.nodes.append(helper.make_node("Cast", [name], [name + ".f32"], to=TensorProto.FLOAT))

    def constant(self, value, dtype=np.int64):
        self.count += 1
        name = f"constant{self.count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op, *inputs, out=None, **attributes):
        self.count += 1
        out = out or f"value{self.count}"
        inputs = [self.used.get(name, name) for name in inputs]
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def linear(self, x, name):
        return self.node("Gemm", x, name + ".weight", name + ".bias", transB=1)

    def reshape(self, x, *shape):
        return self.node("Reshape", x, self.constant(shape))

    def silu(self, x):
        return self.node("Mul", x, self.node("Sigmoid", x))

    def build(self):
        tokens = self.node("Gather", "emb.weight", "ids")
        x = self.node("LayerNormalization", tokens, "ln.weight", "ln.bias", epsilon=1e-5)
        x = self.linear(self.silu(self.linear(x, "up")), "down")
        x = self.node("Unsqueeze", self.node("Add", x, tokens), self.constant([0]))
        x = self.node("Add", self.node("MatMul", x, "mm.weight"), "mm.bias")
        x = self.node("Mul", x, "scale")
        heads = {}
        for part in "qkv":
            y = self.reshape(self.linear(self.reshape(x, -1, 16), f"to_{part}"), 1, -1, 4, 4)
            heads[part] = self.node("Transpose", y, perm=[0, 2, 1, 3])
        scores = self.node("MatMul", heads["q"], self.node("Transpose", heads["k"], perm=[0, 1, 3, 2]))
        scores = self.node("Softmax", self.node("Mul", scores, self.constant(0.5, np.float32)), axis=-1)
        x = self.node("Transpose", self.node("MatMul", scores, heads["v"]), perm=[0, 2, 1, 3])
        x = self.reshape(x, 1, -1, 16)
        square = self.node("ReduceMean", self.node("Pow", x, self.constant(2, np.float32)), self.constant([-1]))
        root = self.node("Sqrt", self.node("Add", square, self.constant(1e-6, np.float32)))
        self.node("Mul", self.node("Div", x, root), "rms.weight", out="tokens_out")

        x = self.silu(self.node("Conv", "image", "c2.weight", "c2.bias", pads=[1, 1, 1, 1]))
        groups = self.reshape(x, 0, 4, -1)
        ones, zeros = self.constant(np.ones(4), np.float32), self.constant(np.zeros(4), np.float32)
        y = self.node("Reshape", self.node("InstanceNormalization", groups, ones, zeros), self.node("Shape", x))
        y = self.node("Mul", y, self.node("Unsqueeze", "gn.weight", self.constant([1, 2])))
        y = self.node("Add", y, self.node("Unsqueeze", "gn.bias", self.constant([1, 2])))
        y = self.node("Add", self.node("Conv", y, "c1.weight"), "shift")
        y = self.node("Relu", self.node("Add", y, x))
        y = self.node("Add", self.node("Transpose", y, perm=[0, 2, 3, 1]), "scale")
        self.node("Transpose", y, perm=[0, 3, 1, 2], out="image_out")
        self.node("Conv", "video", "c3.weight", "c3.bias", pads=[1] * 6, out="video_out")

        inputs = [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"]),
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, "height", "width"]),
            helper.make_tensor_value_info("video", TensorProto.FLOAT, ["batch", 8, "frames", "height", "width"]),
        ]
        outputs = [
            helper.make_tensor_value_info("tokens_out", TensorProto.FLOAT, [1, "tokens", 16]),
            helper.make_tensor_value_info("image_out", TensorProto.FLOAT, ["batch", 16, "height", "width"]),
            helper.make_tensor_value_info("video_out", TensorProto.FLOAT, ["batch", 16, "frames", "height", "width"]),
        ]
        graph = helper.make_graph(self.nodes, "overrides", inputs, outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return model.SerializeToString(deterministic=True)


def as_torch(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def main(folder):
    rng = np.random.default_rng(7)
    inputs = {
        "ids": np.arange(0, 30, 3, dtype=np.int64),
        "image": rng.standard_normal((1, 8, 6, 6)).astype(np.float32),
        "video": rng.standard_normal((1, 8, 3, 6, 6)).astype(np.float32),
    }
    for kind, (_, dtype, _) in TYPES.items():
        name = "f32" if kind == "f32" else f"stored_{kind}"
        (folder / f"{name}.onnx").write_bytes(Graph(kind).build())
        noise = {name: (rng.standard_normal(shape) * 0.3).astype(dtype) for name, shape in WEIGHTS.items()}
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        embedded = ort.InferenceSession(Graph("f32", noise).build(), options, providers=["CPUExecutionProvider"])
        outputs = dict(zip([o.name for o in embedded.get_outputs()], embedded.run(None, inputs)))
        tensors = {f"weight.{k}": v for k, v in noise.items()}
        tensors |= {f"input.{k}": v for k, v in inputs.items()} | {f"output.{k}": v for k, v in outputs.items()}
        save_file({k: as_torch(v) for k, v in tensors.items()}, folder / f"{kind}.safetensors")


if __name__ == "__main__":
    main(output_dir(__doc__, "ort_overrides"))
