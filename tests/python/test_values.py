"""What goes into C is checked: every member of every structure, every parameter of every function, every keyword of the module."""

import ctypes
import inspect
import json
import re
import struct
import threading
import typing
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pytest

import v2l
from conftest import FIXTURES, IMAGE, PROMPT, REQUEST
from v2l import _native, _values

HEADER = (FIXTURES.parents[1] / "runtime/capi/include/v2l.h").read_text()
#: The header without its comments.
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)
STRUCTURES: Dict[str, Any] = {
    "v2l_" + re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): kind
    for name, kind in vars(_native).items()
    if isinstance(kind, type) and issubclass(kind, _values.Checked) and kind is not _values.Checked
}
MEMBERS = [(name, member[0], member[1]) for name, kind in STRUCTURES.items() for member in kind._fields_]


def wrong(kind: Any) -> Iterator[Tuple[Any, type]]:
    """Values that a C type does not hold, and how they are refused."""
    if kind in _values.INTEGERS:
        low, high = _values.INTEGERS[kind]
        bits = 8 * ctypes.sizeof(kind)
        for value in (low - 1, high + 1, 2**bits, 2**bits + 9, -(2**bits) - 1, 2**20000):
            yield value, v2l.Error
        for other in (1.0, float("nan"), "1", None):
            yield other, TypeError
    elif kind in _values.NUMBERS:
        for value in (float("nan"), float("inf"), float("-inf"), np.float32("nan"), 10**400):
            yield value, v2l.Error
        for other in ("1", None, 1j):
            yield other, TypeError
        if kind is ctypes.c_float:
            yield 1e39, v2l.Error
    elif kind is ctypes.c_char_p:
        for value in ("a\0b", b"a\0b", "\0", "half \ud83d"):
            yield value, v2l.Error
        for other in (1, ["a"]):
            yield other, TypeError
    elif isinstance(kind, type) and issubclass(kind, _values.Pointer):
        for other in (1, "handle", v2l.Cancel(), object()):
            yield other, TypeError


def right(kind: Any) -> List[Any]:
    """Values that a C type holds."""
    if kind in _values.INTEGERS:
        return [*_values.INTEGERS[kind], np.int64(7), True]
    if kind in _values.NUMBERS:
        return [0, -1.5, np.float32(0.25), 2**70]
    return ["paper", b"boat", None] if kind is ctypes.c_char_p else []


@pytest.mark.parametrize(("structure", "member", "kind"), MEMBERS, ids=[f"{name}.{member}" for name, member, _ in MEMBERS])
def test_member_of_a_structure_takes_what_its_type_holds_and_nothing_else(structure: str, member: str, kind: Any) -> None:
    value = STRUCTURES[structure]()
    for given in right(kind):
        setattr(value, member, given)
        assert getattr(value, member) == (given.encode() if isinstance(given, str) else given)
    before = bytes(value)
    for given, refusal in wrong(kind):
        with pytest.raises(refusal, match=member):
            setattr(value, member, given)
        assert bytes(value) == before, f"{given!r} was written"


def test_members_of_all_structures_are_of_kinds_that_are_known() -> None:
    assert {name for name, *_ in MEMBERS} == set(STRUCTURES) and len(STRUCTURES) >= 13
    for structure, member, kind in MEMBERS:
        points = isinstance(kind, type) and issubclass(kind, (ctypes._Pointer, ctypes._CFuncPtr, _values.Checked))
        inner = kind is ctypes.c_void_p and (structure, member) in {("v2l_tensor", "data"), ("v2l_control", "user")}
        assert points or inner or any(True for _ in wrong(kind)), f"{structure}.{member} is not checked"
    with pytest.raises(AttributeError):
        _native.Control().no_such_member = 1


def members_of(body: str) -> List[Tuple[str, str]]:
    """Names of members or parameters, with their types as C spells them."""
    found = []
    for one in re.split(r"[;,]", body):
        words = re.match(r"\s*(?:const\s+)?(?:struct\s+)?(.*?)(\w+)\s*$", one, flags=re.S)
        if words and one.strip() != "void":
            found.append((words.group(2), re.sub(r"\s+|const", "", words.group(1))))
    return found


#: Types of C and of ctypes; those of the header that are numbers are 32 bits wide.
TYPES = {
    "size_t": ctypes.c_size_t, "uint64_t": ctypes.c_uint64, "uint32_t": ctypes.c_uint32, "int32_t": ctypes.c_int32,
    "double": ctypes.c_double, "float": ctypes.c_float, "char*": ctypes.c_char_p, "void*": ctypes.c_void_p,
    **{name: ctypes.c_int32 for name in re.findall(r"typedef int32_t (\w+);", CODE)},
}


def test_structures_have_the_members_of_the_header() -> None:
    bodies = dict((name, body) for body, name in re.findall(r"typedef struct v2l_\w+ \{(.*?)\} (v2l_\w+);", CODE, flags=re.S))
    assert set(bodies) == set(STRUCTURES)
    for name, body in bodies.items():
        expected = members_of(body)
        found = STRUCTURES[name]._fields_
        assert [member for member, _ in expected] == [member[0] for member in found], name
        for (member, kind), field in zip(expected, found):
            if kind in TYPES:
                assert field[1] is TYPES[kind], f"{name}.{member}"
            handle = re.fullmatch(r"(v2l_\w+)\*", kind)
            if handle and handle.group(1) not in bodies:
                assert field[1].kind == handle.group(1)[4:], f"{name}.{member}"


def test_functions_have_the_parameters_of_the_header() -> None:
    declared = dict(re.findall(r"^v2l_status (v2l_\w+)\(([^)]*)\);", CODE, flags=re.M))
    for name, parameters in _native.FUNCTIONS.items():
        expected = members_of(declared[name])
        assert [parameter for parameter, _ in expected] == list(parameters), name
        for (parameter, kind), found in zip(expected, parameters.values()):
            if kind in TYPES:
                assert found is TYPES[kind], f"{name}: {parameter}"


PARAMETERS = [(name, parameter, kind) for name, all_of in _native.FUNCTIONS.items() for parameter, kind in all_of.items()]


@pytest.mark.parametrize(("function", "parameter", "kind"), PARAMETERS, ids=[f"{name}({parameter})" for name, parameter, _ in PARAMETERS])
def test_parameter_of_a_function_takes_nothing_that_its_type_does_not_hold(function: str, parameter: str, kind: Any) -> None:
    parameters = _native.FUNCTIONS[function]
    for given, refusal in wrong(kind):
        arguments = [given if name == parameter else 0 if other in _values.INTEGERS else None for name, other in parameters.items()]
        with pytest.raises(refusal, match=parameter):
            _native.call(function, *arguments)


def keywords(function: Callable[..., Any]) -> Iterator[Tuple[str, Any]]:
    """A call's keywords, each with values that it must refuse."""
    if function is v2l.Pipeline.generate:
        refused: Dict[str, List[Any]] = {
            "integer": [2**64, 2**64 + 1, -(2**63) - 1, 2**20000, 1.5, "1"],
            "number": [float("nan"), float("inf"), 10**400, "1"],
            "string": ["ddim\0zzz", b"\xff", "half \ud83d", 1],
            "object": [{"fire": float("nan")}, {"fi\0re": 1.0}, {"fire": 1e39}, [1]],
        }
        yield from ((name, value) for name, schema in v2l.FIELDS.items() for value in refused[schema["type"]])
        return
    hints = typing.get_type_hints(function, vars(v2l))
    for name in inspect.signature(function).parameters:
        kinds = typing.get_args(hints.get(name)) or (hints.get(name),)
        if int in kinds:
            yield from ((name, value) for value in (2**64, 2**64 + 1, -(2**63) - 1))
        if float in kinds:
            yield name, float("nan")
        if str in kinds:
            yield name, "ddim\0zzz"


@pytest.fixture(scope="module")
def pipeline(engines: Path) -> Iterator[v2l.Pipeline]:
    with v2l.Pipeline(engines) as opened:
        yield opened


def test_keywords_of_every_call_refuse_what_c_would_take_for_something_else(engines: Path, pipeline: v2l.Pipeline) -> None:
    tried = set()
    with v2l.Predictor(engines) as predictor:
        calls: List[Tuple[Callable[..., Any], Callable[..., Any]]] = [
            (v2l.Pipeline.generate, pipeline.generate),
            (v2l.Predictor.predict, predictor.predict),
            (v2l._open_options, lambda **given: v2l.Pipeline(engines, **given)),
            (v2l.Pipeline.engine, pipeline.engine),
        ]
        for signature, call in calls:
            for name, value in keywords(signature):
                tried.add(name)
                with pytest.raises((v2l.Error, TypeError), match=name if call == pipeline.generate else None) as refused:
                    call(**{name: value})
                assert not isinstance(refused.value, v2l.Error) or refused.value.name == "V2L_ERROR_INVALID_ARGUMENT", name
    assert {"prompt", "width", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2", "seed", "scheduler", "shift"} <= tried
    assert {"fps", "frame_count", "threads", "memory_limit", "device", "provider", "component"} <= tried
    for given in ({"controls": {"fire": float("nan")}}, {"controls": {"fi\0re": 1.0}}, {"controls": {"fire": 1e39}}):
        with pytest.raises(v2l.Error, match="controls"):
            pipeline.generate(PROMPT, image=IMAGE, **given)  # type: ignore[arg-type]
    for path in ("a\0b", b"a\0b"):
        for name in ("image", "last_image", "file"):
            with pytest.raises(v2l.Error, match="NUL"):
                pipeline.generate(PROMPT, **{"image": IMAGE, name: path})
        with pytest.raises(v2l.Error, match="NUL"):
            v2l.Engine(path)  # type: ignore[arg-type]


def test_what_was_another_video_without_a_word_is_refused(pipeline: v2l.Pipeline) -> None:
    reviewed: List[Dict[str, Any]] = [
        {"seed": 2**64 + 1}, {"seed": -1}, {"num_frames": 2**32 + 9}, {"num_frames": -1}, {"num_inference_steps": 2**32 + 2},
        {"width": 2**32 + 48}, {"guidance_scale": float("nan")}, {"prompt": "a large cyan disc\0 and a huge red dragon"},
    ]
    for given in reviewed:
        (name,) = given
        with pytest.raises(v2l.Error, match=name) as refused:
            pipeline.generate(**{"prompt": PROMPT, "image": IMAGE, **REQUEST, **given})
        assert (refused.value.status, refused.value.name) == (2, "V2L_ERROR_INVALID_ARGUMENT")


def test_error_says_its_keyword_and_unknown_keywords_are_refused(pipeline: v2l.Pipeline) -> None:
    for given, field in (({"width": 50}, "width"), ({"fps": 5000.0}, "fps"), ({"scheduler": "nonsense"}, "scheduler")):
        with pytest.raises(v2l.Error) as refused:
            pipeline.generate(PROMPT, image=IMAGE, **given)  # type: ignore[arg-type]
        assert refused.value.field == field, refused.value
    with pytest.raises(TypeError, match="no keyword 'nonsense'; expected prompt, negative_prompt"):
        pipeline.generate(PROMPT, nonsense=1)  # type: ignore[call-arg]


def test_keywords_that_say_nothing_are_as_the_engine_directory_says(pipeline: v2l.Pipeline) -> None:
    plain = pipeline.resolve(PROMPT, image=IMAGE)
    nothing: Dict[str, Any] = {"width": 0, "height": None, "num_frames": 0, "num_inference_steps": 0, "fps": 0.0, "seed": None, "shift": None, "controls": {}}
    assert pipeline.resolve(PROMPT, image=IMAGE, last_image=None, **nothing) == plain
    assert pipeline.schema["properties"]["num_frames"]["default"] == plain["own"]["num_frames"]
    assert "boundary_ratio" in v2l.FIELDS and "boundary_ratio" not in pipeline.schema["properties"]


def test_numbers_of_numpy_and_the_largest_seed_are_taken(pipeline: v2l.Pipeline) -> None:
    request: Dict[str, Any] = {"num_frames": np.int64(1), "num_inference_steps": np.uint8(1), "guidance_scale": np.float32(1), "fps": np.float64(8)}
    assert pipeline.generate(PROMPT, image=IMAGE, seed=2**64 - 1, **request) is not None


def signed(value: float) -> np.ndarray:
    return np.full((1, 3, 1, 48, 48), value, np.float32)


def test_image_of_several_pictures_or_of_no_colours_is_refused(pipeline: v2l.Pipeline) -> None:
    picture = np.zeros((48, 48, 3), np.uint8)
    refused: List[Tuple[Any, str]] = [
        ([picture, picture + 9], "2 frames"),
        (np.stack([picture, picture]), "2 frames"),
        (np.zeros((1, 3, 2, 48, 48), np.float32), "2 frames"),
        ([np.stack([picture, picture])], "element 0"),
        ([], "empty list"),
        (signed(np.nan), "nan"),
        (signed(np.inf), "inf"),
        (signed(500), "500"),
        (signed(-1.5), "-1.5"),
        (np.zeros((48, 48, 4), np.uint8), "expected u8"),
    ]
    for given, said in refused:
        for name in ("image", "last_image"):
            with pytest.raises((v2l.Error, TypeError), match=f"(?i){said}"):
                pipeline.generate(PROMPT, **{"image": picture, name: given}, **REQUEST)
    one = pipeline.generate(PROMPT, image=[picture], **REQUEST)
    same = pipeline.generate(PROMPT, image=signed(-1), **REQUEST)
    assert one is not None and same is not None and (one["frames"] == same["frames"]).all()


def test_image_of_a_file_with_pixels_that_are_no_numbers_is_refused(pipeline: v2l.Pipeline, tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        pixels = signed(value)
        said = json.dumps({"pixels": {"dtype": "F32", "shape": pixels.shape, "data_offsets": [0, pixels.nbytes]}}).encode()
        file = tmp_path / "pixels.safetensors"
        file.write_bytes(struct.pack("<Q", len(said)) + said + pixels.tobytes())
        with pytest.raises(v2l.Error) as refused:
            pipeline.generate(PROMPT, image=file, **REQUEST)
        assert refused.value.name == "V2L_ERROR_NUMERIC", refused.value


def test_reference_and_tensors_that_are_no_numbers_are_refused(engines: Path, pipeline: v2l.Pipeline) -> None:
    with v2l.Predictor(engines) as predictor:
        for value in (np.nan, 500):
            with pytest.raises(v2l.Error, match=f"(?i){value}"):
                predictor.predict(np.repeat(signed(value), 9, axis=2))
    for name in ("initial_noise", "prompt_embeds", "negative_prompt_embeds"):
        shape = (1, 3, 16, 6, 6) if name == "initial_noise" else (1, 16, 32)
        with pytest.raises(v2l.Error) as refused:
            pipeline.generate(PROMPT, image=IMAGE, **{name: np.full(shape, np.nan, np.float32)}, **REQUEST)
        assert refused.value.name == "V2L_ERROR_NUMERIC", f"{name}: {refused.value}"


def test_picture_of_more_than_8_bits_is_refused_and_others_are_taken() -> None:
    image = pytest.importorskip("PIL.Image")
    from v2l._arrays import frames_of

    for mode in ("I", "F", "I;16"):
        with pytest.raises(TypeError, match=mode):
            frames_of(image.new(mode, (4, 2)))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert frames_of(image.new(mode, (4, 2))).shape == (1, 2, 4, 3)


def test_picture_of_a_turned_camera_is_upright_and_an_animated_one_is_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from v2l._arrays import frames_of

    exif = image.Exif()
    exif[0x0112] = 6
    image.new("RGB", (4, 2)).save(tmp_path / "turned.png", exif=exif)
    image.new("RGB", (4, 2)).save(tmp_path / "two.gif", save_all=True, append_images=[image.new("RGB", (4, 2), "red")])
    with image.open(tmp_path / "turned.png") as turned:
        assert frames_of(turned).shape == (1, 4, 2, 3)
    with image.open(tmp_path / "two.gif") as two, pytest.raises(TypeError, match="2 frames"):
        frames_of(two)


def test_call_is_made_where_there_are_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from v2l import _apart, _handles

    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def call() -> int:
        _handles.leave(_handles.enter())
        return 7

    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert _apart.Apart().run(call) == 7


def test_handles_of_another_kind_are_refused_by_name(engines: Path, pipeline: v2l.Pipeline) -> None:
    engine = pipeline.engine("transformer")
    attempts: List[Tuple[Callable[[], Any], str]] = [
        (lambda: pipeline.generate(PROMPT, adapters=[(pipeline, 1.0)]), "Pipeline; expected an Adapter"),  # type: ignore[list-item]
        (lambda: pipeline.set_adapters([(engine, 1.0)]), "Engine; expected an Adapter"),  # type: ignore[list-item]
        (lambda: pipeline.set_adapters([(None, 1.0)]), "None; expected an Adapter"),  # type: ignore[list-item]
        (lambda: pipeline.set_adapters([engine]), r"adapters\[0\]"),  # type: ignore[list-item]
        (lambda: v2l.Session(pipeline, "step"), "Pipeline; expected an Engine"),  # type: ignore[arg-type]
        (lambda: v2l.Adapter(engine, IMAGE, predictor=engine), "Engine; expected a Predictor"),  # type: ignore[arg-type]
        (lambda: v2l.Adapter(engine, IMAGE, second=pipeline), "Pipeline; expected an Engine"),  # type: ignore[arg-type]
        (lambda: pipeline.generate(PROMPT, cancel=engine), "expected a Cancel"),  # type: ignore[arg-type]
        (lambda: pipeline.generate(PROMPT, progress=7), "expected a function"),  # type: ignore[arg-type]
    ]
    for attempt, said in attempts:
        with pytest.raises(TypeError, match=said):
            attempt()
