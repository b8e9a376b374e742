"""Adapters of models with two transformers: the module and the server give the bytes of `v2l-run --lora PATH@…`."""

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest

import v2l
from conftest import command
from recipes import WAN, write_wan, write_weights
from test_serve import Server

REQUEST: Dict[str, Any] = {"prompt": "a cat", "num_frames": 5, "num_inference_steps": 4, "seed": 3, "width": 32, "height": 16}
FLAGS = ["--prompt", "a cat", "--num-frames", 5, "--steps", 4, "--seed", 3, "--width", 32, "--height", 16]


class Model(NamedTuple):
    engines: Path
    loras: Path

    def by_command(self, out: Path, *loras: str) -> bytes:
        words: List[object] = ["v2l-run", "--engine", self.engines, *FLAGS, "-o", out]
        for lora in loras:
            words += ["--lora", self.loras / lora]
        made = command(*words)
        assert made.returncode == 0, made.stderr
        return out.read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("experts")
    write_wan("experts", folder / "model")
    for name, recipe in (("a_high_noise", "effect_high_noise"), ("a_low_noise", "effect_low_noise"), ("plain", "effect_high_noise")):
        write_weights(WAN / f"pipeline/{recipe}.safetensors.recipe.json", folder / f"loras/{name}.safetensors")
    with v2l.Pipeline.from_pretrained(folder / "model", cache=folder / "cache") as pipeline:
        return Model(pipeline.directory, folder / "loras")


@pytest.fixture(scope="module")
def server(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(model.engines, tmp_path_factory.mktemp("served") / "data", "--lora-folder", model.loras)
    yield running
    assert running.stop() == 0


#: What requests say, and what the command does.
STACKS: List[Tuple[List[Dict[str, Any]], List[str]]] = [
    ([], []),
    ([{"name": "a_high_noise", "scale": 3}, {"name": "a_low_noise", "scale": 2}], ["a_high_noise.safetensors=3", "a_low_noise.safetensors=2"]),
    ([{"name": "plain", "scale": 3, "target": "transformer"}], ["plain.safetensors@high=3"]),
    ([{"name": "plain", "scale": 3, "target": "transformer_2"}], ["plain.safetensors@low=3"]),
    ([{"name": "plain", "scale": 3, "target": "all"}], ["plain.safetensors@both=3"]),
    ([{"name": "a_high_noise", "scale": 2, "target": "all"}], ["a_high_noise.safetensors@both=2"]),
]


def test_lora_with_a_target_gives_the_bytes_of_the_command(server: Server, model: Model, tmp_path: Path) -> None:
    expected = [model.by_command(tmp_path / "out.mp4", *flags) for _, flags in STACKS]
    assert len(set(expected)) == len(STACKS)
    # Forth and back: no stack leaves anything of another.
    for at in [*range(len(STACKS)), *reversed(range(len(STACKS)))]:
        answer = server.client.post("/v1/videos/sync", json={**REQUEST, "lora": STACKS[at][0]})
        assert answer.status_code == 200, answer.text
        assert answer.content == expected[at], STACKS[at]
    # Without a target and without words in its name a file is for both.
    answer = server.client.post("/v1/videos/sync", json={**REQUEST, "lora": {"name": "plain", "scale": 3}})
    assert answer.content == expected[4]


def test_set_lora_takes_a_target_for_each(server: Server, model: Model, tmp_path: Path) -> None:
    expected = model.by_command(tmp_path / "out.mp4", "plain.safetensors@low=3", "a_low_noise.safetensors@high=2")
    body = {"lora_nickname": ["plain", "a_low_noise"], "lora_path": ["plain", "a_low_noise"], "strength": [3, 2]}
    targets = ["transformer_2", "transformer"]
    answer = server.client.post("/v1/set_lora", json={**body, "target": targets})
    assert answer.status_code == 200, answer.text
    active = server.client.get("/v1/list_loras").json()["active"]
    assert {name: [one["nickname"] for one in entries] for name, entries in active.items()} == {
        "all": [], "transformer": ["a_low_noise"], "transformer_2": ["plain"],
    }
    answer = server.client.post("/v1/videos/sync", json=REQUEST)
    assert answer.content == expected
    assert server.client.post("/v1/set_lora", json={**body, "target": "critic"}).status_code == 400
    assert server.client.post("/v1/unmerge_lora_weights").status_code == 200


def test_what_is_for_no_transformer_is_refused(server: Server) -> None:
    for target in ("critic", "transformer_3", 1, ["transformer"]):
        answer = server.client.post("/v1/videos", json={**REQUEST, "lora": {"name": "plain", "target": target}})
        assert answer.status_code == 400 and "transformer_2" in answer.text, answer.text


def test_module_loads_adapters_for_one_or_both(model: Model, tmp_path: Path) -> None:
    expected = model.by_command(tmp_path / "out.mp4", "plain.safetensors@low=3")
    with v2l.Pipeline(model.engines) as pipeline:
        file = model.loras / "plain.safetensors"
        low, both = pipeline.adapter(file, experts=v2l.Experts.LOW), pipeline.adapter(file)
        assert {layer.slot.startswith("transformer_2.") for layer in low.layers} == {True}
        assert 2 * low.coverage.slots_covered == both.coverage.slots_covered
        request = {key: value for key, value in REQUEST.items() if key != "prompt"}
        pipeline.generate(REQUEST["prompt"], adapters=[(low, 3.0)], file=tmp_path / "out.mp4", **request)
        assert (tmp_path / "out.mp4").read_bytes() == expected
        low.save(tmp_path / "low.safetensors", v2l.Format.DIFFUSERS)
        again = pipeline.adapter(tmp_path / "low.safetensors")
        assert [layer.slot for layer in again.layers] == [layer.slot for layer in low.layers]
        with pytest.raises(v2l.Error) as refused:
            v2l.Adapter(pipeline.engine("transformer"), file, experts=v2l.Experts.LOW)
        assert refused.value.name == "V2L_ERROR_INVALID_ARGUMENT" and "second" in str(refused.value)
        with pytest.raises(v2l.Error):
            pipeline.adapter(file, experts=7)  # type: ignore[arg-type]


def test_lora_in_a_form_has_a_target(server: Server, model: Model, tmp_path: Path) -> None:
    expected = model.by_command(tmp_path / "out.mp4", "plain.safetensors@high=3")
    form = {key: str(value) for key, value in REQUEST.items()}
    lora = json.dumps({"name": "plain", "scale": 3, "target": "high"})
    assert server.client.post("/v1/videos/sync", data={**form, "lora": lora}).content == expected
    members = {"lora[name]": "plain", "lora[scale]": "3", "lora[target]": "transformer"}
    assert server.client.post("/v1/videos/sync", data={**form, **members}).content == expected
