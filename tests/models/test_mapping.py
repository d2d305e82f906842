from collections import defaultdict

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from aftershock.errors import InputError
from aftershock.models import ARCHITECTURES, COMPONENTS, component_map, output_tensor
from tiny_models import FAMILIES, tiny_model

IDS = torch.arange(3, 13).reshape(2, 5)


def record(module):
    """Inputs and outputs of every submodule in one pass."""
    inputs, outputs = {}, {}

    def hook(name):
        def keep(_module, arguments, output):
            inputs[name] = arguments[0] if arguments else None
            outputs[name] = output_tensor(output)

        return keep

    hooks = [part.register_forward_hook(hook(name)) for name, part in module.named_modules()]
    positions = torch.arange(IDS.shape[1]).expand_as(IDS)
    with torch.inference_mode():
        module(input_ids=IDS, attention_mask=torch.ones_like(IDS), position_ids=positions, use_cache=False)
    for handle in hooks:
        handle.remove()
    return inputs, outputs


def per_token(site, output):
    """The site's values, shape (tokens, features), tokens ordered by row of the batch."""
    if site.layout == "bhtc":
        output = output.transpose(1, 2)
    channels = output.reshape(IDS.numel(), site.channels)
    return channels[:, torch.from_numpy(site.rows.locate(np.arange(site.features)))]


def share(module, site):
    """The site's share of its stored parameter."""
    offsets = torch.from_numpy(site.locate(np.arange(site.numel)))
    return module.get_parameter(site.name).reshape(-1)[offsets].reshape(site.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_tells_how_many_values_it_has(family):
    components = component_map(tiny_model(family))
    for site in (*components.parameters, *components.outputs, *components.cached, *components.heads):
        assert site.numel == np.zeros(site.shape).size


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_partition_every_parameter(family):
    module = tiny_model(family)
    covered = defaultdict(list)
    for site in component_map(module).parameters:
        covered[site.name].append(site.locate(np.arange(site.numel)))
    stored = dict(module.named_parameters())
    assert covered.keys() == stored.keys()
    for name, positions in covered.items():
        assert np.array_equal(np.sort(np.concatenate(positions)), np.arange(stored[name].numel()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_has_a_known_component_and_the_layer_of_its_name(family):
    components = component_map(tiny_model(family))
    assert components.layers == 2
    for name, site in [(s.name, s) for s in components.parameters] + [(s.module, s) for s in components.outputs]:
        assert site.component in COMPONENTS
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        assert numbers[:1] == ([] if site.layer is None else [site.layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_map_embedding_norm_and_layer_has_an_output_site(family):
    module = tiny_model(family)
    kinds = ("Linear", "Conv1D", "Embedding", "Norm", "Experts", "Router", "DecoderLayer", "Block", "NeoXLayer")
    wanted = {
        name
        for name, part in module.named_modules()
        if any(kind in type(part).__name__ for kind in kinds)
        and not any(word in type(part).__name__ for word in ("Rotary", "SparseMoe"))
    }
    assert {site.module for site in component_map(module).outputs} == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_output_shares_come_from_the_parameter_shares_of_the_same_component(family):
    module = tiny_model(family)
    components = component_map(module)
    inputs, outputs = record(module)
    linear = (torch.nn.Linear, Conv1D)
    sites = [site for site in components.outputs if isinstance(module.get_submodule(site.module), linear)]
    assert sites
    for site in sites:
        values = {
            parameter.name.rpartition(".")[2]: share(module, parameter)
            for parameter in components.parameters
            if parameter.name.rpartition(".")[0] == site.module and parameter.component == site.component
        }
        weight = values.get("weight")
        if weight is None:  # a tied head: its parameter stands under the embedding's name
            weight = module.get_submodule(site.module).weight
        if isinstance(module.get_submodule(site.module), Conv1D):
            weight = weight.T
        expected = inputs[site.module].reshape(IDS.numel(), -1) @ weight.T + values.get("bias", 0)
        torch.testing.assert_close(per_token(site, outputs[site.module]), expected)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "gpt_neox"])
def test_rows_of_fused_projections_are_the_q_k_v_that_attention_uses(family, monkeypatch):
    module = tiny_model(family)
    attention = torch.nn.functional.scaled_dot_product_attention
    used = []

    def recorder(query, key, value, *arguments, **options):
        used.append({"q": query, "k": key, "v": value})
        return attention(query, key, value, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorder)
    _, outputs = record(module)
    monkeypatch.undo()
    sites = [site for site in component_map(module).outputs if site.component in ("q", "k", "v")]
    assert len(sites) == 6
    for site in sites:
        heads = used[site.layer][site.component]
        head_dim = heads.shape[-1]
        # Attention may repeat key and value heads, once for each query head of their group.
        heads = heads[:, :: heads.shape[1] * head_dim // site.features]
        expected = heads.transpose(1, 2).flatten(2)
        found = per_token(site, outputs[site.module]).reshape(expected.shape)
        # Rotary embedding leaves the first token as it is, and values everywhere.
        tokens = slice(None) if site.component == "v" or family == "gpt2" else slice(0, 1)
        assert torch.equal(found[:, tokens], expected[:, tokens])


def test_rows_of_a_fused_gate_are_the_gate_that_the_block_uses():
    module = tiny_model("phi3")
    inputs, outputs = record(module)
    sites = {s.component: s for s in component_map(module).outputs if s.module.endswith("0.mlp.gate_up_proj")}
    gate, up = (per_token(sites[name], outputs[sites[name].module]) for name in ("gate", "up"))
    product = inputs["model.layers.0.mlp.down_proj"].reshape(IDS.numel(), -1)
    torch.testing.assert_close(product, up * torch.nn.functional.silu(gate))


def test_a_tied_tensor_is_one_parameter_and_two_outputs():
    tied, untied = component_map(tiny_model("llama")), component_map(tiny_model("mistral"))

    def ends(sites):
        return [site.component for site in sites if "embed" in site.component or "head" in site.component]

    assert ends(tied.parameters) == ["embedding+lm_head"]
    assert ends(untied.parameters) == ends(untied.outputs) == ends(tied.outputs) == ["embedding", "lm_head"]


def test_tensors_tied_in_another_way_are_refused():
    module = tiny_model("llama")
    attention = module.model.layers[0].self_attn
    attention.v_proj.weight = attention.k_proj.weight
    with pytest.raises(InputError, match=r"no component for \S+k_proj\.weight = \S+v_proj\.weight\)"):
        component_map(module)


def test_projections_around_narrow_embeddings_are_mapped():
    module = tiny_model("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    words = {site.name: site.component for site in component_map(module).parameters}
    assert words["model.decoder.project_in.weight"] == "embedding"
    assert words["model.decoder.project_out.weight"] == "lm_head"


def test_dense_and_expert_layers_are_told_apart():
    outputs = component_map(tiny_model("qwen2_moe", mlp_only_layers=[0])).outputs
    words = {layer: {site.component for site in outputs if site.layer == layer} for layer in (0, 1)}
    assert {"gate", "up", "down"} <= words[0]
    assert not words[0] & {"router", "expert"}
    assert {"router", "expert"} <= words[1]
    assert not words[1] & {"gate", "up", "down"}


@pytest.mark.parametrize("heads", [2, 3, 4, 5])
@pytest.mark.parametrize(("family", "layout"), [("qwen3", "bthc"), ("gemma3", "bhtc")])
def test_split_heads_are_told_from_tokens_whatever_their_number(family, layout, heads):
    module = tiny_model(family, hidden_size=60, num_attention_heads=heads, num_key_value_heads=heads)
    norms = [site for site in component_map(module).outputs if site.component == "qk_norm"]
    assert len(norms) == 4
    assert {(site.layout, site.features) for site in norms} == {(layout, heads * module.config.head_dim)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_map_does_not_depend_on_the_dtype_and_leaves_no_trace(family, dtype):
    module = tiny_model(family, dtype)
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        found = component_map(module)
    assert found == component_map(tiny_model(family))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_hooks_go_when_the_pass_fails():
    module = tiny_model("llama")
    with pytest.raises(RuntimeError, match="broken"):
        failing_pass(module)
    assert not any(part._forward_hooks for part in module.modules())


def failing_pass(module):
    def fail(*_):
        raise RuntimeError("broken")

    handle = module.model.norm.register_forward_pre_hook(fail)
    try:
        component_map(module)
    finally:
        handle.remove()


class NovelForCausalLM(LlamaForCausalLM):
    pass


def novel(extra):
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        module = NovelForCausalLM(config)
        for index in range(extra):
            module.model.layers[0].register_module(f"mixer{index}", torch.nn.Linear(2, 2, bias=False))
    return module


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (0, r"NovelForCausalLM .*class is not known"),
        (2, r"NovelForCausalLM .*no component for model.layers.0.mixer0.weight, model.layers.0.mixer1.weight\)"),
        (13, r"NovelForCausalLM .*mixer9.weight and 3 more\)"),
    ],
)
def test_an_unknown_architecture_is_named_with_what_could_not_be_mapped(extra, says):
    with pytest.raises(InputError, match=says) as caught:
        component_map(novel(extra))
    assert "\n" not in str(caught.value)


def test_a_known_class_with_an_unknown_parameter_is_refused():
    module = tiny_model("llama")
    module.model.register_parameter("memory", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(InputError, match=r"LlamaForCausalLM .*no component for model.memory"):
        component_map(module)


def test_every_architecture_of_the_list_is_tested_here():
    assert {type(tiny_model(family)).__name__ for family in FAMILIES} == set(ARCHITECTURES)
