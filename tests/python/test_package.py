"""The installed package: commands, module, what goes in and comes out, cancelling, the cache of `from_pretrained`."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest

import v2l
import v2l.tools
import v2l_tools
from conftest import COMMANDS, FIXTURES, IMAGE, MINIATURE, PREDICTOR, PROMPT, REQUEST, command


def test_commands_are_the_tools_with_their_exit_codes() -> None:
    for tool in ("v2l-export", "v2l-compile", "v2l-run", "v2l-inspect"):
        shown = command(tool, "--version")
        assert (shown.returncode, shown.stdout) == (0, f"{tool} {v2l.version()}\n")
    missing = command("v2l-inspect", "/nowhere")
    assert missing.returncode == 9
    assert "/nowhere" in missing.stderr
    assert command("v2l", "inspect", "/nowhere").returncode == 9
    assert command("v2l", "nonsense").returncode == 2


def test_import_loads_no_other_package_than_numpy() -> None:
    program = "import sys, v2l; print(sorted({'torch', 'PIL', 'onnxruntime', 'openvino', 'imageio_ffmpeg'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


def test_libraries_come_from_the_wheels_unless_the_environment_names_some(monkeypatch: pytest.MonkeyPatch) -> None:
    found = v2l_tools.libraries()
    assert "onnxruntime/capi/libonnxruntime.so" in found["V2L_ORT_LIB"]
    assert "imageio_ffmpeg/binaries/ffmpeg" in found["V2L_FFMPEG"]
    monkeypatch.setenv("ORT_DYLIB_PATH", "/elsewhere")
    assert "V2L_ORT_LIB" not in v2l_tools.libraries()


def test_enumerations_are_those_of_the_header() -> None:
    header = (FIXTURES.parents[1] / "runtime/capi/include/v2l.h").read_text()
    kinds = {
        "PHASE": v2l.Phase, "BACKEND": v2l.Backend, "OPENVINO": v2l.OpenVinoPrecision, "FORMAT": v2l.Format, "EXPERTS": v2l.Experts,
        "RANGE": v2l.Range, "RESIZE": v2l.Resize, "LATENT": v2l.Latent, "WEIGHTS": v2l.Weights, "ARITHMETIC": v2l.Arithmetic,
        "ADAPTERS": v2l.AdapterMode,
    }
    for prefix, kind in kinds.items():
        defined = {name: int(value) for name, value in re.findall(rf"#define V2L_{prefix}_(\w+) (\d+)\n", header)}
        assert defined, prefix
        assert defined.items() <= {name: int(value) for name, value in kind.__members__.items()}.items(), prefix


def test_types_hold(tmp_path: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "-p", "v2l", "-p", "v2l_tools"],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_module_writes_the_bytes_of_the_command(engines: Path, video: bytes, tmp_path: Path) -> None:
    with v2l.Pipeline(engines) as pipeline:
        pipeline.generate(PROMPT, image=IMAGE, file=tmp_path / "out.mp4", **REQUEST)
    assert (tmp_path / "out.mp4").read_bytes() == video


def test_images_and_frames_go_in_as_files_do(engines: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with v2l.Pipeline(engines) as pipeline:

        def frames(given: Any) -> np.ndarray:
            made = pipeline.generate(PROMPT, image=given, **REQUEST)
            assert made is not None
            return made["frames"]

        expected = frames(IMAGE)
        assert expected.shape == (9, 48, 48, 3) and expected.dtype == np.uint8
        opened = image.open(IMAGE)
        assert (frames(opened) == expected).all()
        assert (frames(np.asarray(opened.convert("RGB"))) == expected).all()
        with pytest.raises(v2l.Error) as refused:
            frames(np.zeros((2, 2), np.uint8))
        assert refused.value.name == "V2L_ERROR_TENSOR"
    assert [one.size for one in v2l.images(expected)] == [(48, 48)] * 9


def test_torch_tensors_go_in_without_loss(engines: Path) -> None:
    torch = pytest.importorskip("torch")
    engine = v2l.Engine(engines / "text_encoder.engine")
    with v2l.Session(engine, "encode") as session:
        ids = np.arange(16)[None]
        expected = session.run({"input_ids": ids})
        found = session.run({"input_ids": torch.arange(16)[None]})
        assert (found["last_hidden_state"] == expected["last_hidden_state"]).all()
    from v2l._arrays import array_of

    halves, number = array_of(torch.tensor([1.0, -2.5], dtype=torch.bfloat16, requires_grad=True))
    assert (number, halves.tolist()) == (3, [0x3F80, 0xC020])


def test_inputs_of_another_type_go_in_where_no_number_is_lost(engines: Path) -> None:
    with v2l.Session(v2l.Engine(engines / "text_encoder.engine"), "encode") as session:
        expected = session.run({"input_ids": np.arange(16, dtype=np.int64)[None]})
        for dtype in (np.float32, np.float64, np.float16, np.int32, np.uint8):
            found = session.run({"input_ids": np.arange(16, dtype=dtype)[None]})
            assert (found["last_hidden_state"] == expected["last_hidden_state"]).all(), dtype
        with pytest.raises(v2l.Error, match=r"with 0\.5 at \[0, 0\], which i64 does not hold"):
            session.run({"input_ids": np.full((1, 16), 0.5, np.float32)})


def test_prediction_from_frames_is_that_from_the_folder(engines: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    reference = MINIATURE / "references/squash"
    with v2l.Predictor(engines) as predictor:
        adapter = predictor.predict(reference, range=v2l.Range.SIGNED)
        frames = [image.open(file) for file in sorted(reference.glob("*.png"))]
        again = predictor.predict(frames, range=v2l.Range.SIGNED)
    layers = adapter.layers
    assert len(layers) == adapter.coverage.slots_covered == 37
    for layer, other in zip(layers, again.layers):
        assert layer.slot == other.slot
        assert (layer.down == other.down).all() and (layer.up == other.up).all()

    adapter.save(tmp_path / "effect.safetensors")
    kept = v2l.Adapter(v2l.Engine(engines / "transformer.engine"), tmp_path / "effect.safetensors")
    assert [key.applied for key in kept.keys] == [True] * 74
    assert {key.detail for key in kept.keys} == {layer.slot for layer in layers}

    with v2l.Pipeline(engines) as pipeline:
        base = pipeline.generate(PROMPT, image=IMAGE, **REQUEST)
        steered = pipeline.generate(PROMPT, image=IMAGE, adapters=[(kept, 1.0)], **REQUEST)
        same = pipeline.generate(PROMPT, image=IMAGE, adapters=[(adapter, 1.0)], **REQUEST)
    assert base is not None and steered is not None and same is not None
    assert (base["frames"] != steered["frames"]).any()
    assert (same["frames"] == steered["frames"]).all()


def test_progress_and_cancel(engines: Path) -> None:
    seen: List[Any] = []
    cancel = v2l.Cancel()
    with v2l.Pipeline(engines) as pipeline:
        pipeline.generate(PROMPT, image=IMAGE, progress=lambda *event: seen.append(event), **REQUEST)
        assert (v2l.Phase.DENOISE, 4, 4) in seen

        def stop(phase: v2l.Phase, done: int, _total: int) -> None:
            if phase == v2l.Phase.DENOISE and done == 1:
                cancel.request()

        with pytest.raises(v2l.Error) as stopped:
            pipeline.generate(PROMPT, image=IMAGE, progress=stop, cancel=cancel, **REQUEST)
        assert stopped.value.name == "V2L_ERROR_CANCELLED"
        assert cancel.requested
        cancel.reset()
        assert pipeline.generate(PROMPT, image=IMAGE, cancel=cancel, **REQUEST) is not None


def test_log_says_what_was_done(engines: Path, tmp_path: Path) -> None:
    with v2l.Predictor(engines) as predictor:
        predictor.predict(MINIATURE / "references/squash", range=v2l.Range.SIGNED).save(tmp_path / "effect.safetensors")
    messages: List[str] = []
    v2l.set_log(lambda level, message: messages.append(f"{level.name} {message}"))
    try:
        v2l.Adapter(v2l.Engine(engines / "transformer.engine"), tmp_path / "effect.safetensors")
    finally:
        v2l.set_log(None)
    assert any(message.startswith("INFO") and "74 keys applied" in message for message in messages)


def test_tools_raise_the_error_of_the_command() -> None:
    with pytest.raises(v2l.Error) as missing:
        v2l.tools.inspect("/nowhere")
    assert (missing.value.status, missing.value.name) == (9, "V2L_ERROR_IO")
    assert "/nowhere" in str(missing.value)


def test_engine_directory_is_made_once_however_many_ask(tmp_path: Path) -> None:
    stages: List[Dict[str, Any]] = []

    def open_one() -> None:
        v2l.Pipeline.from_pretrained(MINIATURE, cache=tmp_path, export=PREDICTOR, progress=stages.append).close()

    threads = [threading.Thread(target=open_one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event["event"] for event in stages].count("bundle") == 1
    (made,) = tmp_path.glob("*/engines")
    with v2l.Pipeline.from_pretrained(made) as pipeline:
        assert pipeline.directory == made
    with pytest.raises(FileNotFoundError):
        v2l.Pipeline.from_pretrained("somebody/something")


def test_cancelled_export_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    cancel = v2l.Cancel()

    def stop(_event: Dict[str, Any]) -> None:
        cancel.request()
        time.sleep(0.2)

    with pytest.raises(v2l.Error) as stopped:
        v2l.Pipeline.from_pretrained(MINIATURE, cache=tmp_path, progress=stop, cancel=cancel)
    assert stopped.value.name == "V2L_ERROR_CANCELLED"
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    v2l.Pipeline.from_pretrained(MINIATURE, cache=tmp_path).close()


def test_commands_lie_where_pip_put_them() -> None:
    assert (COMMANDS / "v2l-run").is_file()
    assert v2l_tools.find() != str(COMMANDS / "v2l")
