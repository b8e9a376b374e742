"""What a request may say: the fields of `/v1/videos`, from JSON or from a form, checked before a job is made of them."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Optional, Tuple

import v2l
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from .config import Config
from .errors import Refused

#: Fields of the runtime's requests that the dialect calls otherwise. All others have their own names.
DIALECT = {"shift": "flow_shift"}
_MOST_TEXT = 20_000
_TYPES: Dict[str, Any] = {"string": str, "integer": int, "number": float, "object": Dict[str, float]}


class Checked(BaseModel):
    """What a request may say besides the runtime's own fields."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(max_length=_MOST_TEXT, description="What to show.")
    model: Optional[str] = Field(None, max_length=256, description="The server's model; any other is 404.")
    size: Optional[str] = Field(None, pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT; wins over width and height.")
    user: Optional[str] = Field(None, max_length=256)
    lora: Optional[Any] = Field(None, description="An adapter {name or path, scale}, or a list of such; an empty list is none.")
    input_reference: Optional[Dict[str, str]] = Field(None, description="{image_url}: the first frame, as a data: URL; in forms a file.")
    image_reference: Optional[Dict[str, str]] = Field(None, description="The same as input_reference.")
    last_image: Optional[Dict[str, str]] = Field(None, description="{image_url}: the last frame, as a data: URL; in forms a file.")
    video_reference: Optional[Dict[str, str]] = Field(None, description="{video_url}: what the predictor reads, as a data: URL.")
    effect_reference: Optional[Dict[str, str]] = Field(None, description="The same as video_reference.")
    reference_strength: Optional[float] = Field(None, ge=-100, le=100)
    reference_range: Optional[str] = Field(None, pattern="^(unit|signed)$")
    effect: Optional[str] = Field(None, max_length=_MOST_TEXT, description="A prompt for a predictor that reads one.")
    effect_strength: Optional[float] = Field(None, ge=-100, le=100)
    generator_device: Optional[str] = Field(None, max_length=64, description="Taken, and changes nothing: noise does not depend on a device.")
    extra_params: Optional[Dict[str, Any]] = Field(None, description="Fields of the runtime and of references and effects, under another roof.")


def _field(schema: Dict[str, Any]) -> Tuple[Any, Any]:
    """A field of the runtime's schema. Ranges of real numbers are the runtime's to check."""
    kind = schema["type"]
    bounds: Dict[str, Dict[str, Any]] = {"string": {"max_length": _MOST_TEXT}, "integer": {"ge": schema.get("minimum")}, "object": {"max_length": 64}}
    return Optional[_TYPES[kind]], Field(None, description=schema["description"], **bounds.get(kind, {}))


#: The runtime's fields as the dialect calls them, but for the prompt.
_OWN = {DIALECT.get(name, name): schema for name, schema in v2l.FIELDS.items() if name != "prompt"}
#: A video to make. What is not given is as the engine directory says.
VideoRequest = create_model("VideoRequest", __base__=Checked, **{name: _field(schema) for name, schema in _OWN.items()})  # type: ignore[call-overload]


#: Fields of files in forms, and what they become.
FILES = {
    "input_reference": "image",
    "last_image": "last_image",
    "reference_video": "reference",
    "effect_reference": "reference",
}
_URLS = {
    "input_reference": ("image_url", "image"),
    "image_reference": ("image_url", "image"),
    "last_image": ("image_url", "last_image"),
    "video_reference": ("video_url", "reference"),
    "effect_reference": ("video_url", "reference"),
}
#: Fields that are JSON text in forms, where they begin like it.
_STRUCTURED = ("lora", "extra_params", *(name for name, schema in _OWN.items() if schema["type"] == "object"), *_URLS)
_EXTRA = {"reference_strength", "reference_range", "effect", "effect_strength", "effect_reference", *_OWN} - {"negative_prompt", "seed"}
#: Fields of the dialect that v2l does not have, and the values that change nothing.
_WITHOUT: Dict[str, Tuple[Any, ...]] = {
    "true_cfg_scale": (),
    "generate_sound": (False,),
    "enable_teacache": (False,),
    "enable_frame_interpolation": (False,),
    "frame_interpolation_exp": (),
    "frame_interpolation_scale": (),
    "diffusers_kwargs": ({},),
    "output_path": (),
    "quality": ("standard",),
    "n": (1,),
    "rollout": (False,),
}


#: Names of members of an adapter that name it. In a list of a form only one of them tells adapters apart.
_NAMING = ("name", "lora_name", "adapter", "path", "local_path", "lora_path")
_WAY_OUT = "send the list as JSON text in the field lora"
_MOST_MEMBERS = 32


def form_fields(items: List[Tuple[str, str]]) -> Dict[str, Any]:
    """The text fields of a form. Objects are JSON, or come one member a field, as `lora[name]`; lists of them as `lora[][name]`."""
    fields: Dict[str, Any] = {}
    lists: Dict[str, List[Tuple[str, str]]] = {}
    for name, text in items:
        found = re.fullmatch(r"(\w+)(\[\])?(?:\[(\w+)\])?", name, re.ASCII)
        if found is None or found.group(0) == found.group(1):
            if name in fields:
                raise Refused(400, f"{name[:80]} is given twice", name[:80])
            structured = name in _STRUCTURED and text[:1] in ("{", "[")
            fields[name] = parsed(text.encode(), name) if structured else text
        elif found.group(2):
            lists.setdefault(found.group(1), []).append((found.group(3) or "", text))
        else:
            inside = fields.setdefault(found.group(1), {})
            member = found.group(3)
            if not isinstance(inside, dict) or len(inside) >= _MOST_MEMBERS:
                raise Refused(400, f"{name[:80]} does not fit the fields before it", name[:80])
            if member in inside:
                raise Refused(400, f"{name[:80]} is given twice", name[:80])
            inside[member] = text
    for name, members in lists.items():
        if name != "lora" or name in fields:
            wrong = "is given twice" if name in fields else "is no list"
            raise Refused(400, f"{name[:80]} {wrong}", name[:80])
        fields[name] = _adapters(members)
    return fields


def _adapters(members: List[Tuple[str, str]]) -> List[Any]:
    """The adapters of a form's `lora[]` or `lora[][member]` fields.

    Clients differ in the order of these fields: OpenAI's sends all names before the first scale. So which scale is for which name is certain
    only where each adapter has every member.
    """
    columns: Dict[str, List[str]] = {}
    for member, text in members:
        columns.setdefault(member, []).append(text)
    if list(columns) == [""]:
        return list(columns[""])
    counts = {member: len(texts) for member, texts in columns.items()}
    naming = [member for member in columns if member in _NAMING]
    if "" in columns or len(naming) > 1 or len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} of lora[]{f'[{member}]' if member else ''}" for member, count in list(counts.items())[:8])
        raise Refused(400, f"the form has {shown[:200]}: which belong together is not certain; {_WAY_OUT}", "lora")
    return [dict(zip(columns, entry)) for entry in zip(*columns.values())]


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """A JSON object, in which no name comes twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(400, f"{twice!r:.80} is given twice", None if len(twice) > 80 else twice)
    return made


def parsed(text: bytes, what: str) -> Any:
    """JSON, without what only Python takes for it; depth is bounded by the interpreter."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=_object)
    except RecursionError:
        raise Refused(400, f"{what} is nested too deeply", what) from None
    except ValueError:
        raise Refused(400, f"{what} is not JSON", what) from None


def checked(fields: Dict[str, Any]) -> Checked:
    """The request that fields make; refuses by name what is missing, unknown or out of range."""
    for name in [*fields]:
        if name in _WITHOUT or name.startswith(("control_", "audio_", "rollout_", "frame_interpolation_")):
            value = fields.pop(name)
            # A form has text for everything.
            same = [other for one in _WITHOUT.get(name, ()) for other in (one, json.dumps(one), str(one))]
            if value is not None and value != "" and value not in same:
                raise Refused(400, f"{name} is not supported by this server; leave it out", name, "unsupported")
    try:
        request: Checked = VideoRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(str(place) for place in first["loc"])[:80]
        missing = first["type"] == "missing"
        raise Refused(422 if missing else 400, f"{name}: {first['msg']}"[:300], name, "missing" if missing else None) from None
    if request.extra_params:
        unknown = sorted(set(request.extra_params) - _EXTRA)
        if unknown:
            raise Refused(400, f"extra_params has {unknown[0]!r:.40}; expected {', '.join(sorted(_EXTRA))}", "extra_params")
        own = request.model_dump(exclude_none=True, exclude={"extra_params"})
        return checked({**request.extra_params, **own})
    return request


def urls(request: Checked) -> Dict[str, Tuple[str, str]]:
    """The `data:` URLs of a request: for what each is, its field and itself."""
    found: Dict[str, Tuple[str, str]] = {}
    for field, (member, what) in _URLS.items():
        value: Optional[Dict[str, str]] = getattr(request, field)
        if value is None:
            continue
        if set(value) != {member}:
            raise Refused(400, f"{field} has {', '.join(sorted(value))[:80] or 'nothing'}; expected {member}", field)
        if what in found:
            raise Refused(400, f"{field} is given together with {found[what][0]}; expected one of them", field)
        found[what] = (field, value[member])
    return found


def plain(request: Checked, config: Config) -> Dict[str, Any]:
    """What a request says, within the server's limits, as a job keeps it: the runtime's fields by the runtime's names, and what is the server's
    own. What the model makes of it is the runtime's to say."""
    if request.model is not None and request.model != config.model:
        raise Refused(404, f"there is no model {request.model!r:.100}; this server has {config.model!r}", "model", "model_not_found")
    own = {"prompt", *_OWN, "reference_strength", "reference_range", "effect", "effect_strength"}
    values = request.model_dump(include=own, exclude_none=True)
    for name, word in DIALECT.items():
        if word in values:
            values[name] = values.pop(word)
    if request.size is not None:
        values["width"], values["height"] = (int(side) for side in request.size.split("x"))
    for name in ("width", "height"):
        side = values.get(name)
        if side is not None and not 1 <= side <= config.max_side:
            raise Refused(400, f"{name} is {side}; expected 1 to {config.max_side}", "size" if request.size else name)
    if ("width" in values) != ("height" in values):
        raise Refused(400, "width and height belong together; give both, or size", "width" if "height" in values else "height")
    for field, most in (("num_frames", config.max_frames), ("num_inference_steps", config.max_steps)):
        if values.get(field, 0) > most:
            raise Refused(400, f"{field} is {values[field]}; expected at most {most}", field)
    for name, value in values.items():
        if isinstance(value, str) and "\0" in value:
            raise Refused(400, f"{name} has the character NUL", name)
        if isinstance(value, dict) and any("\0" in one for one in value):
            raise Refused(400, f"{name} has a name with the character NUL", name)
    if "num_frames" in values:
        values.pop("seconds", None)
    return values


def without_effect(values: Dict[str, Any], reference: bool) -> None:
    """Refuses numbers for a reference or an effect that the request does not have: they would change nothing."""
    for name, there, what in (
        ("reference_strength", reference, "a reference"),
        ("reference_range", reference, "a reference"),
        ("effect_strength", bool(values.get("effect")), "an effect"),
    ):
        if name in values and not there:
            raise Refused(400, f"{name} is given without {what}; leave it out", name)
