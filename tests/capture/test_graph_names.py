"""What names tell: nodes of exported graphs, tensors of llama.cpp's."""

from types import SimpleNamespace

import numpy as np

from ggml import Node
from ggml_graph import Reading, halves
from graphs import mapped_values
from wire import Share, Words


def node(name, kind, inputs=(), outputs=(), **attributes):
    numbers = [SimpleNamespace(name=key, i=value) for key, value in attributes.items()]
    outputs = list(outputs) or [f"{name}/output_0"]
    return SimpleNamespace(name=name, op_type=kind, input=list(inputs) or [""], output=outputs, attribute=numbers)


def graph():
    layer = "/model/layers.0"
    nodes = [
        node("/model/embed_tokens/Gather", "Gather", ["table", "ids"]),
        node(f"{layer}/input_layernorm/LayerNorm", "SimplifiedLayerNormalization", ["x", "norm.weight"]),
        node(f"{layer}/attn/qkv_proj/MatMul", "MatMul", ["normed", "qkv.weight"]),
        node(f"{layer}/attn/qkv_proj/Add", "Add", ["product", "qkv.bias"]),
        node(
            f"{layer}/attn/GroupQueryAttention",
            "GroupQueryAttention",
            outputs=["attended", "present.0.key", "present.0.value"],
            num_heads=4,
            kv_num_heads=2,
        ),
        node(f"{layer}/mlp/act_fn/Mul", "Mul"),
        node(f"{layer}/mlp/Mul", "Mul"),
        node("/model/layers.1/input_layernorm/SkipLayerNorm", "SkipSimplifiedLayerNormalization", outputs=["second"]),
        node(
            "/model/layers.1/final_norm_layernorm/SkipLayerNorm", "SkipSimplifiedLayerNormalization", outputs=["final"]
        ),
    ]
    weights = [
        SimpleNamespace(name="norm.weight", dims=[8]),
        SimpleNamespace(name="qkv.weight", dims=[8, 16]),
        SimpleNamespace(name="qkv.bias", dims=[16]),
    ]
    return SimpleNamespace(node=nodes, initializer=weights)


def test_nodes_of_a_graph_are_components():
    values = mapped_values(graph())
    shown = {name: (one.components, one.value.layer, one.value.point) for name, one in values.items()}
    assert shown == {
        "/model/embed_tokens/Gather/output_0": (("embedding",), None, "output"),
        "/model/layers.0/input_layernorm/LayerNorm/output_0": (("norm",), 0, "output"),
        "/model/layers.0/attn/qkv_proj/Add/output_0": (("q", "k", "v"), 0, "output"),
        "attended": (("sv",), 0, "output"),
        "present.0.key": (("k_rotated",), 0, "output.1"),
        "/model/layers.0/mlp/Mul/output_0": (("activation",), 0, "output"),
        "second": (("norm",), 1, "output"),
        "/model/layers.1/input_layernorm/SkipLayerNorm/output_3": (("residual",), 0, "residual"),
        "final": (("norm",), None, "output"),
        "/model/layers.1/final_norm_layernorm/SkipLayerNorm/output_3": (("residual",), 0, "residual"),
    }


def test_a_fused_projection_is_shared_by_its_heads():
    (fused,) = (one for one in mapped_values(graph()).values() if len(one.components) == 3)
    assert fused.shares(16) == (Share("q", 0, 8, 16), Share("k", 8, 4, 16), Share("v", 12, 4, 16))


def test_a_product_and_its_bias_are_one():
    fused = mapped_values(graph())["/model/layers.0/attn/qkv_proj/Add/output_0"]
    names = [(one["name"], one["role"], one["output_dim"]) for one in fused.value.parameters]
    assert names == [("qkv.weight", "weight", 1), ("qkv.bias", "bias", 0)]
    assert (fused.value.operation, fused.takes) == ("linear", "normed")


def test_a_norm_has_its_weight():
    values = mapped_values(graph())
    (own,) = values["/model/layers.0/input_layernorm/LayerNorm/output_0"].value.parameters
    assert (own["name"], own["role"], own["output_dim"]) == ("norm.weight", "weight", 0)
    assert values["/model/layers.0/input_layernorm/LayerNorm/output_0"].value.operation == "norm"


def test_sums_are_asked_of_the_graph():
    changed = graph()
    mapped_values(changed)
    assert changed.node[-1].output == ["final", "", "", "/model/layers.1/final_norm_layernorm/SkipLayerNorm/output_3"]


def seen(name, operator, shape):
    return Node(name, operator, shape), Words("F32", np.arange(np.prod(shape), dtype="f4").reshape(shape))


def test_tensors_of_llama_cpp_are_components():
    nodes = [
        seen("embd", "GET_ROWS", (1, 1, 3, 8)),
        seen("inp_scaled", "SCALE", (1, 1, 3, 8)),
        seen("Qcur-0", "MUL_MAT", (1, 1, 3, 8)),
        seen("Qcur-0", "ADD", (1, 1, 3, 8)),
        seen("Qcur-0", "ROPE", (1, 3, 2, 4)),
        seen("ffn_inp-0", "ADD", (1, 1, 3, 8)),
        seen("result_output", "MUL_MAT", (1, 1, 1, 20)),
    ]
    values = list(Reading(pairs=False).values(nodes, (3, 1)))
    shown = [(value.module, value.layer, [share.component for share in value.shares]) for value, _ in values]
    assert shown == [
        ("embd/GET_ROWS", None, []),
        ("inp_scaled/SCALE", None, ["embedding"]),
        ("Qcur-0/MUL_MAT", 0, []),
        ("Qcur-0/ADD", 0, ["q"]),
        ("Qcur-0/ROPE", 0, ["q_rotated"]),
        ("ffn_inp-0/ADD", 0, []),
        ("result_output/MUL_MAT", None, ["lm_head"]),
        ("logits", None, []),
    ]
    assert [words.array.shape for _, words in values][-3:] == [(3, 8), (1, 20), (1, 20)]


def test_one_token_is_told_from_its_heads():
    ((_, words),) = Reading(pairs=False).values([seen("Qcur-0", "ROPE", (1, 1, 9, 4))], (1, 1))
    assert words.array.shape == (1, 36)


def test_a_row_of_no_token_is_left_out():
    assert list(Reading(pairs=False).values([seen("ffn_inp-1", "ADD", (1, 1, 1, 8))], (4, 0))) == []


def test_rotated_pairs_become_halves():
    assert halves(np.array([0, 4, 1, 5, 2, 6, 3, 7])).tolist() == list(range(8))
    nodes = [seen("Kcur-0", "MUL_MAT", (1, 1, 2, 8)), seen("Kcur-0", "ROPE", (1, 2, 2, 4))]
    found = [words.array[0].tolist() for _, words in Reading(pairs=True).values(nodes, (2, 0))]
    assert found == [[0, 2, 1, 3, 4, 6, 5, 7]] * 2


def test_views_and_scores_are_not_asked_for():
    reading = Reading(pairs=False)
    product = Node("ffn_out-3", "MUL_MAT", (1, 1, 2, 8))
    assert reading.wanted(product) == product
    assert reading.wanted(Node("Qcur-0", "RESHAPE", (1, 2, 2, 4))) is None
    assert reading.wanted(Node("kq-0", "MUL_MAT", (1, 2, 2, 4))) is None


def test_an_output_projection_without_a_name_gets_one():
    reading = Reading(pairs=False)
    nodes = [Node("kqv_out-7", "CONT", (1, 1, 2, 8)), Node("node_36", "MUL_MAT", (1, 1, 2, 8))]
    assert [reading.wanted(node).name for node in nodes] == ["kqv_out-7", "attn_out-7"]
    assert reading.wanted(Node("node_37", "MUL_MAT", (1, 1, 2, 8))) is None
