"""What a request may say: the fields of `/v1/videos`, from JSON or from a form, checked before a job is made of them."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import Config
from .errors import Refused

_MOST_SEED = 2**64 - 1


class VideoRequest(BaseModel):
    """A video to make. What is not given is as the engine directory says."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(max_length=20_000, description="What to show.")
    model: Optional[str] = Field(None, max_length=256, description="The server's model; any other is 404.")
    negative_prompt: Optional[str] = Field(None, max_length=20_000)
    size: Optional[str] = Field(None, pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT; wins over width and height.")
    width: Optional[int] = Field(None, ge=1)
    height: Optional[int] = Field(None, ge=1)
    seconds: Optional[float] = Field(None, gt=0, le=3600, description="Length; num_frames wins over it.")
    num_frames: Optional[int] = Field(None, ge=1)
    fps: Optional[float] = Field(None, gt=0, le=240)
    num_inference_steps: Optional[int] = Field(None, ge=1)
    guidance_scale: Optional[float] = Field(None, ge=0, le=100)
    guidance_scale_2: Optional[float] = Field(None, ge=0, le=100, description="Of the transformer for high noise, where there are two.")
    boundary_ratio: Optional[float] = Field(None, ge=0, le=1, description="Where the second of two transformers takes over.")
    controls: Optional[Dict[str, float]] = Field(None, max_length=64, description="Numbers for the model's controls, by name.")
    flow_shift: Optional[float] = Field(None, gt=0, le=1000)
    scheduler: Optional[str] = Field(None, max_length=64)
    seed: Optional[int] = Field(None, ge=0, le=_MOST_SEED, description="One is drawn, and said, if none is given.")
    user: Optional[str] = Field(None, max_length=256)
    lora: Optional[Any] = Field(None, description="An adapter {name or path, scale}, or a list of such.")
    image_reference: Optional[Dict[str, str]] = Field(None, description="{image_url}: the first frame, as a data: URL.")
    video_reference: Optional[Dict[str, str]] = Field(None, description="{video_url}: what the predictor reads, as a data: URL.")
    effect_reference: Optional[Dict[str, str]] = Field(None, description="The same as video_reference.")
    reference_strength: Optional[float] = Field(None, ge=-100, le=100)
    reference_range: Optional[str] = Field(None, pattern="^(unit|signed)$")
    effect: Optional[str] = Field(None, max_length=20_000, description="A prompt for a predictor that reads one.")
    effect_strength: Optional[float] = Field(None, ge=-100, le=100)
    extra_params: Optional[Dict[str, Any]] = Field(None, description="The fields below `lora`, under another roof.")


#: Fields of files in forms, and what they become.
FILES = {
    "input_reference": "image",
    "last_image": "last_image",
    "reference_video": "reference",
    "effect_reference": "reference",
}
_URLS = {"image_reference": ("image_url", "image"), "video_reference": ("video_url", "reference"), "effect_reference": ("video_url", "reference")}
_EXTRA = {"reference_strength", "reference_range", "effect", "effect_strength", "effect_reference", "scheduler", "flow_shift", "guidance_scale_2", "boundary_ratio", "controls"}
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


def form_fields(items: List[Tuple[str, str]]) -> Dict[str, Any]:
    """The text fields of a form; objects are JSON, or come one member a field, as `lora[name]`."""
    fields: Dict[str, Any] = {}
    for name, text in items:
        member = re.fullmatch(r"(\w+)\[(\w+)\]", name)
        whole = re.fullmatch(r"(\w+)(?:\[\])?\[(\w+)\]", name)
        if member is not None:
            inside = fields.setdefault(member.group(1), {})
        elif whole is not None:
            # A list of objects: each begins where a member comes again.
            entries = fields.setdefault(whole.group(1), [{}])
            if not isinstance(entries, list):
                raise Refused(400, f"{whole.group(1)} is given twice", whole.group(1))
            if whole.group(2) in entries[-1]:
                entries.append({})
            inside = entries[-1]
        else:
            if name in fields:
                raise Refused(400, f"{name} is given twice", name)
            structured = name in ("lora", "extra_params", "controls", *_URLS) and text[:1] in ("{", "[")
            fields[name] = parsed(text.encode(), name) if structured else text
            continue
        if not isinstance(inside, dict) or len(inside) > 32:
            raise Refused(400, f"{name} does not fit the fields before it", name)
        inside[(member or whole).group(2)] = text  # type: ignore[union-attr]
    return fields


def parsed(text: bytes, what: str) -> Any:
    """JSON, without what only Python takes for it; depth is bounded by the interpreter."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise Refused(400, f"{what} is nested too deeply", what) from None
    except ValueError:
        raise Refused(400, f"{what} is not JSON", what) from None


def checked(fields: Dict[str, Any]) -> VideoRequest:
    """The request that fields make; refuses by name what is missing, unknown or out of range."""
    for name in [*fields]:
        if name in _WITHOUT or name.startswith(("control_", "audio_", "rollout_", "frame_interpolation_")):
            value = fields.pop(name)
            if value is not None and value != "" and value not in _WITHOUT.get(name, ()):
                raise Refused(400, f"{name} is not supported by this server; leave it out", name, "unsupported")
    try:
        request = VideoRequest.model_validate(fields)
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


def urls(request: VideoRequest) -> Dict[str, Tuple[str, str]]:
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


class Defaults:
    """What the engine directory says of requests that say nothing."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        defaults = description.get("defaults") or {}
        vae = description.get("vae") or {}
        self.fps = float(defaults.get("fps") or 8)
        self.num_frames = int(defaults.get("num_frames") or 49)
        self.num_inference_steps = int(defaults.get("num_inference_steps") or 50)
        self.width: Optional[int] = defaults.get("width") or vae.get("sample_width")
        self.height: Optional[int] = defaults.get("height") or vae.get("sample_height")
        #: Frames that one latent frame stands for, but for the first.
        self.ratio = int(vae.get("temporal_compression_ratio") or 4)
        self.predicts = "hypernetwork" in (description.get("components") or {})

    def frames(self, seconds: float, fps: float) -> int:
        """The number of frames that lasts about so long and that the model makes."""
        return self.ratio * max(0, round(seconds * fps / self.ratio)) + 1


def plain(request: VideoRequest, config: Config, defaults: Defaults) -> Dict[str, Any]:
    """The numbers of a request, within the server's limits, as a job keeps them."""
    if request.model is not None and request.model != config.model:
        raise Refused(404, f"there is no model {request.model!r:.100}; this server has {config.model!r}", "model", "model_not_found")
    width, height = request.width, request.height
    if request.size is not None:
        width, height = (int(side) for side in request.size.split("x"))
    for name, side in (("width", width), ("height", height)):
        if side is not None and not 1 <= side <= config.max_side:
            raise Refused(400, f"{name} is {side}; expected 1 to {config.max_side}", "size" if request.size else name)
    if (width is None) != (height is None):
        raise Refused(400, "width and height belong together; give both, or size", "width" if width is None else "height")
    fps = request.fps
    frames = request.num_frames
    if frames is None and request.seconds is not None:
        frames = defaults.frames(request.seconds, fps or defaults.fps)
    for field, number, most in (
        ("num_frames", frames, config.max_frames),
        ("num_inference_steps", request.num_inference_steps, config.max_steps),
    ):
        if number is not None and number > most:
            raise Refused(400, f"{field} is {number}; expected at most {most}", field)
    values = request.model_dump(
        include={
            "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "guidance_scale_2", "flow_shift",
            "scheduler", "seed", "boundary_ratio", "controls", "reference_strength", "reference_range", "effect", "effect_strength",
        },
        exclude_none=True,
    )
    if "\0" in values["prompt"] or "\0" in values.get("negative_prompt", "") or "\0" in values.get("effect", ""):
        raise Refused(400, "a prompt has the character NUL", "prompt")
    for name, value in (("width", width), ("height", height), ("num_frames", frames), ("fps", fps)):
        if value is not None:
            values[name] = value
    return values
