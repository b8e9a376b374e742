"""The changes of operators that v2l knows of, against the schema history of the `onnx` package.

Run: python tests/checks/peers/onnx_history.py
In a virtual environment with the newest `onnx`. Reads `graphs/src/passes/lower_opset/history.rs`, and exits with 1 and the names if
an operator changed, or only its element types did, where the table says otherwise, or if the package knows a later operator set.
"""

import re
import sys
from pathlib import Path

import onnx
from onnx import defs

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "graphs/src/passes/lower_opset/history.rs"
FIRST = 23


def source_constant(name):
    text = (ROOT / "graphs/src/lib.rs").read_text()
    return int(re.search(rf"pub const {name}: i64 = (\d+);", text).group(1))


def table():
    """Pairs of operator set and operator: those of which only types changed, and those with a rule."""
    text = TABLE.read_text().split("#[cfg(test)]")[0]
    types_part, rules_part = text.split("type Lower")
    types = set()
    for version, names in re.findall(r"\(\s*(\d+),\s*&\[(.*?)\],?\s*\)", types_part, re.DOTALL):
        types |= {(int(version), name) for name in re.findall(r'"(\w+)"', names)}
    rules = {(int(version), name) for version, name in re.findall(r'\((\d+), "(\w+)", \w+::\w+\)', rules_part)}
    return types, rules


def history():
    """By operator, its schemas by operator set."""
    found = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, {})[schema.since_version] = schema
    return found


def shape(schema):
    """What a schema says but for the types."""
    ports = [[(p.name, str(p.option)) for p in side] for side in (schema.inputs, schema.outputs)]
    attributes = {n: (str(a.type), a.required, str(a.default_value)) for n, a in schema.attributes.items()}
    return ports, attributes


def main():
    types, rules = table()
    wrong = []
    newest = source_constant("NEWEST_OPSET")
    if defs.onnx_opset_version() > newest:
        wrong.append(f"onnx {onnx.__version__} has operator set {defs.onnx_opset_version()}; the table ends at {newest}")
    if onnx.IR_VERSION > source_constant("NEWEST_IR_VERSION"):
        wrong.append(f"onnx {onnx.__version__} has IR version {onnx.IR_VERSION}")
    changed = set()
    for name, schemas in history().items():
        versions = sorted(schemas)
        for before, version in zip(versions, versions[1:], strict=False):
            if version < FIRST:
                continue
            changed.add((version, name))
            if (version, name) in types and shape(schemas[before]) != shape(schemas[version]):
                wrong.append(f"{name} {version}: more than its types changed")
            if (version, name) not in types | rules:
                wrong.append(f"{name} {version}: it changed, and the table does not say so")
        new = {(versions[0], name)} if versions[0] >= FIRST else set()
        changed |= new & rules
    wrong += [f"{name} {version}: it did not change" for version, name in sorted((types | rules) - changed)]
    print(f"onnx {onnx.__version__}: {len(types)} changes of types, {len(rules)} rules")
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
