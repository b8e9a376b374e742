"""Throws bodies at `/v1/videos`, in JSON and in forms: good ones, and good ones that were changed.

    python tests/python/fuzz_requests.py [--seconds N] [--seed N]

A good request must become a job that holds what was asked for, in whatever form it came: or, where a form does not say which member is whose, be
refused. A changed one must become a job that holds what its body says, or be refused in the documented shape; it must never be a 500.
It needs what `tests/python/check` installs, and `V2L_TEST_FIXTURES`. No video is made. A failure prints the seed, the request and its bytes.
"""

import argparse
import asyncio
import base64
import json
import logging
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import parse_qsl, urlencode

import httpx

import v2l
from conftest import IMAGE, MINIATURE, PREDICTOR
from recipes import write_wan
from v2l.serve import logs
from v2l.serve.app import create_app
from v2l.serve.config import Config

PICTURE = IMAGE.read_bytes()
URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
WORDS = ["a", "", "ÿþ☃", "two\nlines", "x" * 300, "[1]", "{", "null", "true", "1", "-", "%ff", "a&b=c", '"quoted"', "\u202e", "Ａ"]
#: What fields are replaced by: of the wrong type, beyond every range, or on its edge.
JUNK: List[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**32 + 9, 2**64, 2**70, -(2**63), 0.5, -0.0, 1e-30, 1e30, 1e308, "", "0", "-1", "1e3", "9.0", " 9 ", "９",
    "nan", "inf", "1_0", "0x10", "x", "\0", "a\0b", "../..", "/etc/passwd", "48x", "x48", "0x0", "48x48x48", "99999x99999", "48X48", "٤٨x٤٨",
    [], {}, [[]], [None], {"": ""}, {"name": None}, {"name": "effect", "scale": "much"}, [{"name": "effect"}] * 17, {"image_url": URL[:60]},
    {"image_url": "file:///etc/passwd"}, {"image_url": 3}, {"x": 1e999}, "data:,", URL, "x" * 20_001, "\u202e" * 9, "effect", "second.safetensors",
]
#: Fields that a job keeps as they are, by what they are.
TEXTS = ("prompt", "negative_prompt", "scheduler", "effect", "reference_range")
WHOLE = ("num_frames", "num_inference_steps", "seed")
REAL = ("seconds", "fps", "guidance_scale", "guidance_scale_2", "flow_shift", "boundary_ratio", "reference_strength", "effect_strength")
KNOWN = (*TEXTS, *WHOLE, *REAL)


class Model(NamedTuple):
    """An engine directory, and what requests for it may say."""

    app: Any
    image: bool
    size: str


class Part(NamedTuple):
    """A field of a form."""

    name: str
    content: bytes
    file: Optional[str] = None


class Sent(NamedTuple):
    """A request as it goes out."""

    kind: str
    body: bytes


class Wrong(Exception):
    """The server did what it must not do."""


def good(random: random.Random, model: Model) -> Dict[str, Any]:
    """A request that the model can carry out."""
    request: Dict[str, Any] = {"prompt": random.choice(WORDS)}
    for name, values in (
        ("negative_prompt", WORDS),
        ("size", [model.size]),
        ("num_frames", [1, 5, 9, 17]),
        ("seconds", [0.5, 1.0, 2.25]),
        ("fps", [8, 7.5, 0.1, 30]),
        ("num_inference_steps", [1, 4, 200]),
        ("guidance_scale", [0, 1, 6.5, 100]),
        ("seed", [0, 7, 2**53 + 1, 2**64 - 1]),
        ("user", WORDS[:1]),
        ("generator_device", ["cpu", "cuda"]),
        ("quality", ["standard"]),
        ("n", [1]),
        ("lora", LORAS),
        *((() if model.image else (("flow_shift", [1, 3.5]), ("scheduler", ["euler", "UniPCMultistepScheduler"])))),
    ):
        if random.random() < 0.35:
            request[name] = random.choice(values)
    if not model.image:
        request["size"] = model.size
    return request


LORAS: List[Any] = [
    "effect", {"name": "effect"}, {"name": "effect", "scale": 0.5}, {"path": "second.safetensors", "lora_scale": -2}, [], ["effect", "second"],
    [{"name": "effect", "scale": 0.5}, {"name": "second", "scale": 0.25}], [{"name": "second", "scale": 3}, {"name": "effect", "scale": 1}],
    [{"name": "effect", "scale": 0.5}, {"name": "second"}], [{"name": "effect"}, {"path": "second", "strength": 0.25}],
    [{"name": "effect", "target": "transformer"}, {"name": "second"}], [{"name": "effect", "scale": 1, "target": "all"}],
]


def stack(lora: Any) -> List[Tuple[str, float]]:
    """The adapters that a request means, and their strengths."""
    found = []
    for entry in lora if isinstance(lora, list) else [lora]:
        entry = {"name": entry} if isinstance(entry, str) else entry
        name = next(entry[key] for key in ("path", "local_path", "lora_path", "name", "lora_name", "adapter") if entry.get(key))
        scale = next((entry[key] for key in ("scale", "lora_scale", "strength") if entry.get(key) is not None), 1.0)
        found.append((name.removesuffix(".safetensors"), float(scale)))
    return found


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def parts_of(request: Dict[str, Any], random: random.Random) -> List[Part]:
    """A request as fields of a form: objects as JSON, or as OpenAI's client writes them, names before scales."""
    parts: List[Part] = []
    for name, value in request.items():
        brackets = random.random() < 0.6
        if isinstance(value, dict) and brackets:
            parts += [Part(f"{name}[{member}]", text_of(inner).encode()) for member, inner in value.items()]
        elif isinstance(value, list) and value and brackets and all(isinstance(entry, dict) for entry in value):
            members = dict.fromkeys(member for entry in value for member in entry)
            parts += [Part(f"{name}[][{member}]", text_of(entry[member]).encode()) for member in members for entry in value if member in entry]
        elif isinstance(value, list) and value and brackets and all(isinstance(entry, str) for entry in value):
            parts += [Part(f"{name}[]", entry.encode()) for entry in value]
        else:
            parts.append(Part(name, text_of(value).encode()))
    return parts


def multipart(parts: List[Part], boundary: bytes = b"b0undary") -> Sent:
    body = b""
    for part in parts:
        file = b"" if part.file is None else b'; filename="%s"' % part.file.encode()
        body += b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (boundary, part.name.encode(), file, part.content)
    return Sent("multipart/form-data; boundary=" + boundary.decode(), body + b"--" + boundary + b"--\r\n")


def encoded(request: Dict[str, Any], model: Model, random: random.Random) -> Tuple[Sent, bool]:
    """A request in one of the forms that it may come in, and whether a form may leave open what belongs together."""
    kind = random.choice(["json", "multipart", "multipart", "urlencoded"])
    if kind == "json":
        image = {random.choice(["input_reference", "image_reference"]): {"image_url": URL}} if model.image else {}
        return Sent("application/json", json.dumps({**request, **image}, ensure_ascii=random.random() < 0.5).encode()), False
    parts = parts_of(request, random)
    open_ended = any("[]" in part.name for part in parts)
    if kind == "urlencoded":
        parts += [Part("input_reference[image_url]", URL.encode())] if model.image else []
        return Sent("application/x-www-form-urlencoded", urlencode([(part.name, part.content) for part in parts]).encode()), open_ended
    parts += [Part("input_reference", PICTURE, "x.png")] if model.image else []
    # Members of a list keep their order; fields need none.
    if not open_ended:
        random.shuffle(parts)
    return multipart(parts), open_ended


def changed_request(request: Dict[str, Any], random: random.Random) -> Dict[str, Any]:
    """A request in which fields were replaced, dropped or added."""
    changed = dict(request)
    names = [*KNOWN, "size", "width", "height", "lora", "controls", "extra_params", "input_reference", "last_image", "video_reference", "model",
             "true_cfg_scale", "n", "quality", "generate_sound", "control_x", "nonsense", "", "lora[name]", "lora[]", "lora[][name]", "a[b][c]", "ÿ"]  # fmt: skip
    for _ in range(random.choice([1, 1, 2, 4])):
        name = random.choice([*changed, *names]) if random.random() < 0.6 else random.choice(names)
        if random.random() < 0.15:
            changed.pop(name, None)
        else:
            changed[name] = random.choice(JUNK)
    return changed


def changed_bytes(sent: Sent, random: random.Random) -> Sent:
    """A body of which bytes were changed, or that says it is something else."""
    body, kind = bytearray(sent.body), sent.kind
    for _ in range(random.choice([1, 1, 2, 8])):
        at = random.randrange(len(body) + 1)
        what = random.randrange(6)
        if what == 0 and at < len(body):
            body[at] = random.randrange(256)
        elif what == 1:
            body[at:at] = bytes(random.randrange(256) for _ in range(random.randrange(1, 5)))
        elif what == 2:
            del body[at : at + random.randrange(1, 40)]
        elif what == 3:
            del body[at:]
        elif what == 4:
            other = random.randrange(len(body) + 1)
            body[at:at] = body[other : other + random.randrange(1, 200)]
        else:
            kind = random.choice([kind, kind, "", "text/plain", "application/json", "multipart/form-data", kind + "; charset=latin-1", kind.upper()])
    return Sent(kind, bytes(body))


def said(sent: Sent) -> Dict[str, Any]:
    """The fields of a body that was taken, by readers that are not the server's. Raises ValueError for what they do not take."""
    kind = sent.kind.split(";")[0].strip().lower()
    if kind == "application/json":
        found: Dict[str, Any] = json.loads(sent.body)
        return found
    if kind == "application/x-www-form-urlencoded":
        return dict(parse_qsl(sent.body.decode(), keep_blank_values=True, errors="strict"))
    boundary = re.search(r"boundary=\"?([^;\"]+)", sent.kind, re.IGNORECASE)
    assert boundary is not None
    fields = {}
    border = rb"\r\n--" + re.escape(boundary.group(1).encode()) + rb"(?=\r\n|--)"
    for part in re.split(border, b"\r\n" + sent.body)[1:]:
        if part.startswith(b"--"):
            break
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb"\bname=\"([^\"]*)\"", head, re.IGNORECASE)
        if name is not None and b"filename=" not in head.lower():
            fields[name.group(1).decode()] = content.decode()
    return fields


def check_fields(row: Dict[str, Any], fields: Dict[str, Any]) -> None:
    """Refuses a job that holds something else than what was said."""
    extra = fields.get("extra_params")
    if isinstance(extra, str) and extra[:1] == "{":
        extra = json.loads(extra)
    fields = {**(extra if isinstance(extra, dict) else {}), **{name: value for name, value in fields.items() if value is not None}}
    for name in KNOWN:
        # The job has the runtime's names.
        value, kept = fields.get(name), row.get("shift" if name == "flow_shift" else name)
        if name == "seconds" and "num_frames" in row:
            continue
        if name == "seed" and value is None:
            continue
        if name in TEXTS or value is None or kept is None:
            same = value == kept
        elif name in WHOLE:
            same = kept == (int(value) if not isinstance(value, str) or re.fullmatch(r"\s*[+-]?\d[\d_]*\s*", value) else float(value))
        else:
            same = kept == float(value)
        if not same:
            raise Wrong(f"{name} is {kept!r} in the job, and {value!r} in the body")
    if isinstance(fields.get("size"), str):
        if [row.get("width"), row.get("height")] != [int(side) for side in fields["size"].split("x")]:
            raise Wrong(f"the size of the job is {row.get('width')}x{row.get('height')}, and {fields['size']!r} in the body")


async def tried(client: httpx.AsyncClient, model: Model, sent: Sent) -> Optional[Dict[str, Any]]:
    """What the job of a request holds; `None` if it was refused. The job is deleted."""
    answer = await client.post("/v1/videos", content=sent.body, headers={"Content-Type": sent.kind} if sent.kind else {})
    try:
        told = answer.json()
    except ValueError:
        raise Wrong(f"{answer.status_code} is no JSON: {answer.text[:200]!r}") from None
    if answer.status_code != 200:
        if answer.status_code not in (400, 404, 413, 415, 422):
            raise Wrong(f"{answer.status_code}: {answer.text[:300]}")
        error = told.get("error") if set(told) == {"error"} else None
        if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"} or not error["message"] or not error["code"]:
            raise Wrong(f"another shape than the documented one: {answer.text[:300]}")
        return None
    job = model.app.state.service.store.get(told["id"])
    resolved = job.request["resolved"]
    if (told["num_frames"], told["size"]) != (resolved["num_frames"], f"{resolved['width']}x{resolved['height']}"):
        raise Wrong(f"the answer is not what the job holds: {told}")
    if (await client.delete(f"/v1/videos/{told['id']}")).status_code != 200:
        raise Wrong("the job cannot be deleted")
    row: Dict[str, Any] = job.request
    return row


async def one(client: httpx.AsyncClient, model: Model, random: random.Random, counts: Dict[str, int]) -> Tuple[Sent, Optional[str]]:
    """A request, and what the server did wrong."""
    request = good(random, model)
    how = random.choice(["good", "fields", "fields", "bytes"])
    if how == "fields":
        request = changed_request(request, random)
    sent, open_ended = encoded(request, model, random)
    if how == "bytes":
        sent = changed_bytes(sent, random)
    try:
        row = await tried(client, model, sent)
        counts[f"{how}, {'taken' if row else 'refused'}"] = counts.get(f"{how}, {'taken' if row else 'refused'}", 0) + 1
        if row is None:
            if how == "good" and not open_ended:
                raise Wrong("a good request is refused")
        elif how == "good":
            check_fields(row, request)
            found = [(Path(file).stem, strength) for file, strength, _ in row["lora"]]
            if found != (stack(request["lora"]) if "lora" in request else []):
                raise Wrong(f"the job has the adapters {found}, and {request.get('lora')} were asked for")
        else:
            check_fields(row, said(sent))
    except Wrong as wrong:
        return sent, str(wrong)
    except Exception as error:
        return sent, f"{type(error).__name__}: {error}"
    return sent, None


async def run(models: List[Model], seconds: float, seed: int) -> int:
    """Goes on until the time is over or something is wrong; gives the exit code."""
    until, at, counts = time.monotonic() + seconds, seed, {}
    clients = [
        httpx.AsyncClient(transport=httpx.ASGITransport(model.app, raise_app_exceptions=False), base_url="http://fuzz") for model in models
    ]
    while time.monotonic() < until:
        chance = random.Random(at)
        which = chance.randrange(len(models))
        sent, wrong = await one(clients[which], models[which], chance, counts)
        if wrong is not None:
            print(f"--seed {at}: {wrong}\n{sent.kind}\n{sent.body.replace(PICTURE, b'PICTURE').replace(URL.encode(), b'URL')[:2000]!r}", file=sys.stderr)
            return 1
        at += 1
    left = [path for model in models for path in (model.app.state.service.config.data / "uploads").iterdir()]
    print(f"{at - seed} requests from --seed {seed}: {json.dumps(counts, sort_keys=True)}; {len(left)} uploads left")
    return 1 if left else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Throws bodies at /v1/videos.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logs.configure(logging.ERROR)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_wan("t2v", folder / "wan")
        models = []
        for name, source, export, size in (("miniature", MINIATURE, PREDICTOR, "48x48"), ("wan", folder / "wan", {}, "32x16")):
            with v2l.Pipeline.from_pretrained(source, cache=folder / "cache", export=export) as pipeline:
                engines = pipeline.directory
                loras = folder / f"{name} loras"
                loras.mkdir()
                slot = pipeline.engine("transformer").slots[0]
                _adapter(loras, slot)
            config = Config(engines=engines, data=folder / name, model=name, lora_folders=(loras,), in_process=False, max_queued=1 << 30, max_times=0)
            models.append(Model(create_app(config), name == "miniature", size))
        return asyncio.run(run(models, options.seconds, options.seed))


def _adapter(folder: Path, slot: v2l.Slot) -> None:
    """Two adapters of rank 1 for one slot."""
    header, data = {}, b""
    for end, shape in (("lora_A", [1, slot.in_features]), ("lora_B", [slot.out_features, 1])):
        content = b"\0\0\x80\x3c" * (shape[0] * shape[1])
        header[f"{slot.name}.{end}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    for name in ("effect", "second"):
        (folder / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


if __name__ == "__main__":
    sys.exit(main())
