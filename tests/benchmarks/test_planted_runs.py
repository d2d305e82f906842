"""What engines are asked, and what is done to the files and modules that they run."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from benchmarks.plants import in_files, in_graphs, in_vllm
from benchmarks.plants.building import clean_target, planted_target
from benchmarks.plants.cases import FOLDER, Case, Expected, Plant, Prompts, read_case
from benchmarks.plants.places import modules_at, places
from benchmarks.plants.rotation import by_halves, inverse_frequencies, table_of
from benchmarks.plants.running import logits_of
from benchmarks.plants.runs import clean_request, suspect_request
from benchmarks.tiny_serving import tiny_module
from safetensors.torch import load_file


def case_of(engine: Any, *plants: Plant, **fields: Any) -> Case:
    expected = Expected(component=frozenset({"q"}), causes=frozenset({"unknown"}))
    given = {"model": "tiny:llama", "dtype": "float32", "prompts": Prompts(lengths=(5,)), "expected": expected}
    return Case(name="a", author="builder", engine=engine, why="", plant=plants, **{**given, **fields})


@pytest.mark.parametrize("name", ["llama-interleaved-rope", "gemma2-no-softcap", "gqa-keys-permuted"])
def test_the_plug_in_for_transformers_does_what_is_planted_here(tmp_path: Path, name: str) -> None:
    case = read_case(FOLDER / f"{name}.toml")
    request = suspect_request(case, tmp_path)
    clean = clean_target(case)
    runpy.run_path(request.options["plugin"])["change"](clean.module)
    assert all(map(torch.equal, logits_of(clean), logits_of(planted_target(clean_target(case), case.plant))))
    assert request.prompts == clean.prompts
    assert "plugin" not in clean_request(case, tmp_path).options


def test_engines_that_pack_weights_are_given_a_folder_with_the_error(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    case = case_of("vllm", Plant(operation="weight", tensor=name, edit="fill", value=1.0))
    clean, suspect = clean_request(case, tmp_path), suspect_request(case, tmp_path)
    assert clean.model != suspect.model
    assert "plugin" not in suspect.options
    right, wrong = (load_file(Path(one.model) / "model.safetensors") for one in (clean, suspect))
    assert [key for key in right if not torch.equal(right[key], wrong[key])] == [name]


def test_a_configuration_is_overridden_or_saved_as_the_engine_wants_it(tmp_path: Path) -> None:
    plant = Plant(operation="config", settings={"rope_parameters": {"rope_theta": 5.0}})
    overridden = suspect_request(case_of("vllm", plant), tmp_path / "a")
    assert overridden.options["hf_overrides"] == {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}
    saved = suspect_request(case_of("onnxruntime", plant), tmp_path / "b")
    assert "hf_overrides" not in saved.options
    config = json.loads((Path(saved.model) / "config.json").read_text(encoding="utf-8"))
    assert config["rope_parameters"]["rope_theta"] == 5.0


def test_sampling_is_told_in_the_words_of_the_engine(tmp_path: Path) -> None:
    plant = Plant(operation="sample_with", temperature=0.5, top_k=3, presence_penalty=1.0, stop_ids=[9])
    vllm = suspect_request(case_of("vllm", plant), tmp_path / "a").options["sampling"]
    assert {"temperature": 0.5, "top_k": 3, "presence_penalty": 1.0, "stop_token_ids": [9]}.items() <= vllm.items()
    asked = suspect_request(case_of("transformers", plant), tmp_path / "b").options
    assert {"do_sample": True, "temperature": 0.5, "eos_token_id": [9]}.items() <= asked["sampling"].items()
    assert "choice" in Path(asked["plugin"]).read_text(encoding="utf-8")


def test_an_operation_is_refused_where_an_engine_has_none() -> None:
    with pytest.raises(ValueError, match="no operation 'set_attribute' in vllm"):
        case_of("vllm", Plant(operation="set_attribute", node="a", attribute="b", value=1, layers="all"))


def gguf_file(path: Path) -> Path:
    """Two layers with a packed and a plain tensor, and some metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_rope_freq_base(10000.0)
    writer.add_add_bos_token(True)
    values = np.linspace(-1, 2, 64 * 64, dtype=np.float32).reshape(64, 64)
    for layer in range(2):
        packed = gguf.quants.quantize(values + layer, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"blk.{layer}.up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"blk.{layer}.norm.weight", np.full(64, 2.0 + layer, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(path: Path) -> dict[str, Any]:
    found = gguf.GGUFReader(path).tensors
    return {one.name: gguf.quants.dequantize(one.data, one.tensor_type).copy() for one in found}


@pytest.mark.parametrize(
    ("operation", "parameters", "names"),
    [
        ("edit_blocks", {"tensor": "blk.{layer}.up.weight", "layers": [1], "steps": 1.0}, ["blk.1.up.weight"]),
        ("edit_blocks", {"tensor": "blk.{layer}.up.weight", "layers": [0], "factor": 1.5}, ["blk.0.up.weight"]),
        ("swap_tensors", {"tensor": "blk.{layer}.up.weight", "layers": [0, 1]}, ["blk.0.up.weight", "blk.1.up.weight"]),
        (
            "edit_tensor",
            {"tensor": "blk.{layer}.up.weight", "edit": "to_halves", "heads": 2, "layers": [0]},
            ["blk.0.up.weight"],
        ),
        (
            "edit_tensor",
            {"tensor": "blk.{layer}.norm.weight", "edit": "fill", "value": 1.0},
            ["blk.0.norm.weight", "blk.1.norm.weight"],
        ),
        ("set_metadata", {"key": "llama.rope.freq_base", "value": 5.0}, []),
    ],
)
def test_a_gguf_file_is_changed_where_it_is_said(
    tmp_path: Path, operation: str, parameters: dict[str, Any], names: list[str]
) -> None:
    path = gguf_file(tmp_path / "a.gguf")
    before, words = tensors_of(path), path.read_bytes()
    reader = gguf.GGUFReader(path, "r+")
    in_files.OPERATIONS[operation](reader, **parameters)
    reader.data.flush()
    after = tensors_of(path)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == names
    assert path.read_bytes() != words
    if operation == "edit_blocks" and "factor" in parameters:
        assert np.allclose(after[names[0]], before[names[0]] * 1.5, rtol=2e-3)
    if operation == "set_metadata":
        assert gguf.GGUFReader(path).fields["llama.rope.freq_base"].contents() == 5.0


def test_values_of_a_packed_tensor_are_not_edited_as_bytes(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(gguf_file(tmp_path / "a.gguf"), "r+")
    with pytest.raises(ValueError, match="is packed"):
        in_files.edit_tensor(reader, "blk.0.up.weight", "fill", value=1.0)


def test_nodes_of_a_graph_are_found_by_layer() -> None:
    nodes = [
        SimpleNamespace(name=f"/model/layers.{layer}/mlp/act_fn/Sigmoid", op_type="Sigmoid", input=["a", "b"])
        for layer in range(3)
    ]
    graph = SimpleNamespace(node=nodes)
    in_graphs.set_operator(graph, "act_fn/Sigmoid", "HardSigmoid", [1])
    in_graphs.take_other(graph, "act_fn/Sigmoid", 1, "w{previous}{layer}", [2])
    assert [node.op_type for node in nodes] == ["Sigmoid", "HardSigmoid", "Sigmoid"]
    assert [node.input for node in nodes] == [["a", "b"], ["a", "b"], ["a", "w12"]]
    with pytest.raises(ValueError, match="no node act_fn/Tanh"):
        in_graphs.set_operator(graph, "act_fn/Tanh", "HardSigmoid", [1])


def test_the_rotation_of_flat_tokens_is_that_of_rows_of_tokens() -> None:
    angles = torch.arange(8)[:, None] * inverse_frequencies(10000.0, 4)
    right = SimpleNamespace(head_size=4, cos_sin_cache=torch.cat((angles.cos(), angles.sin()), -1))
    model = SimpleNamespace(model=SimpleNamespace(layers=[torch.nn.Module()]), config=None)
    model.model.layers[0].self_attn = torch.nn.Module()
    model.model.layers[0].self_attn.rotary_emb = right
    in_vllm.change_turn(model, "enlarged", factor=1.0)
    query, key = torch.linspace(-1, 1, 48).view(6, 8), torch.linspace(1, 2, 24).view(6, 4)
    positions = torch.tensor([0, 1, 2, 0, 1, 7])
    turned = model.model.layers[0].self_attn.rotary_emb(positions, query, key)
    table = table_of(positions[None], inverse_frequencies(10000.0, 4), query)
    expected = by_halves(query.view(6, 2, 4).transpose(0, 1)[None], table)[0].transpose(0, 1).flatten(1)
    assert torch.allclose(turned[0], expected)
    assert turned[1].shape == key.shape


@pytest.mark.parametrize("half", ["attention", "mlp"])
def test_a_stream_in_two_parts_is_joined_as_one(half: Any) -> None:
    class Norm(torch.nn.Module):
        def forward(self, made: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return 2 * (made + residual), made + residual

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = torch.nn.Module()
            self.post_attention_layernorm = Norm()

        def forward(self, positions: torch.Tensor, made: torch.Tensor, residual: torch.Tensor) -> Any:
            return self.post_attention_layernorm(made, residual)

    model = SimpleNamespace(model=SimpleNamespace(layers=[Layer()]), config=None)
    in_vllm.change_join(model, half, "scaled", factor=3.0)
    made, residual = model.model.layers[0](torch.arange(2), torch.ones(2, 1), torch.full((2, 1), 10.0))
    # Attention: 10 + 3 * 1, normed to 26; MLP: the stream 11 and what was made of it, 22, three times.
    assert float((made + residual)[0]) == {"attention": 2 * 13.0 + 13.0, "mlp": 11.0 + 3 * 22.0}[half]


def test_parts_of_fused_projections_are_found() -> None:
    model: Any = tiny_module("phi3")
    values = torch.zeros(1, 256)
    changed = {
        point: places(model, point, [0])[0].replaced(values, lambda part: part + 1).nonzero()[:, 1].tolist()
        for point in ("q", "k", "v")
    }
    assert changed == {"q": list(range(128)), "k": list(range(128, 192)), "v": list(range(192, 256))}
    assert modules_at(model, "gate", [0]) == modules_at(model, "up", [0])
