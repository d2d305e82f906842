"""Which component every parameter and every output of a decoder language model belongs to.

One table of path patterns covers all architectures; what it cannot tell from a path (how a fused projection
is ordered) is fixed by the list of architectures, so a model outside that list is refused, not guessed.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.errors import InputError
from aftershock.models.attention import cache_sites, head_sites, product_sites
from aftershock.models.components import COMPONENTS, ComponentMap, OutputSite, ParameterSite, Rows

ARCHITECTURES: tuple[str, ...] = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "OPTForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
"""Model classes of transformers that `component_map` knows."""

Lengths = Callable[[Any, int], tuple[int, ...]]
"""(model configuration, number of output channels) -> consecutive row counts of the components."""


def _whole(config: Any, channels: int) -> tuple[int, ...]:
    return (channels,)


def _equal_parts(parts: int) -> Lengths:
    return lambda config, channels: (channels // parts,) * parts


def _grouped_query(config: Any, channels: int) -> tuple[int, ...]:
    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = channels // (heads + 2 * key_value_heads)
    return heads * head_dim, key_value_heads * head_dim, key_value_heads * head_dim


def _each_head(config: Any, channels: int) -> tuple[int, ...]:
    return (channels // config.num_attention_heads // 3,) * 3


@dataclass(frozen=True)
class _Pattern:
    """Modules whose path ends in `path` hold `components`, in blocks of `lengths` rows that repeat."""

    path: str
    components: tuple[str, ...]
    lengths: Lengths = _whole

    def shares(self, config: Any, channels: int) -> Iterator[tuple[str, Rows]]:
        """Each component with its rows among `channels`."""
        lengths = self.lengths(config, channels)
        offsets = accumulate(lengths, initial=0)
        for component, offset, length in zip(self.components, offsets, lengths, strict=False):
            yield component, Rows(offset, length, sum(lengths))


_PATTERNS: tuple[_Pattern, ...] = (
    # A projection between token embeddings and hidden states (OPT) belongs to the side it serves.
    _Pattern(r"embed_tokens|embed_in|wte|project_in", ("embedding",)),
    _Pattern(r"embed_positions|wpe", ("position",)),
    _Pattern(r"self_attn\.q_proj", ("q",)),
    _Pattern(r"self_attn\.k_proj", ("k",)),
    _Pattern(r"self_attn\.v_proj", ("v",)),
    _Pattern(r"self_attn\.qkv_proj", ("q", "k", "v"), _grouped_query),
    _Pattern(r"attn\.c_attn", ("q", "k", "v"), _equal_parts(3)),
    _Pattern(r"attention\.query_key_value", ("q", "k", "v"), _each_head),
    _Pattern(r"self_attn\.(q|k)_norm", ("qk_norm",)),
    _Pattern(r"self_attn\.(o_proj|out_proj)|attn\.c_proj|attention\.dense", ("o",)),
    _Pattern(r"mlp\.gate_proj", ("gate",)),
    _Pattern(r"mlp\.up_proj", ("up",)),
    _Pattern(r"mlp\.gate_up_proj", ("gate", "up"), _equal_parts(2)),
    _Pattern(r"mlp\.down_proj", ("down",)),
    _Pattern(r"fc1|mlp\.c_fc|mlp\.dense_h_to_4h", ("fc1",)),
    _Pattern(r"fc2|mlp\.c_proj|mlp\.dense_4h_to_h", ("fc2",)),
    _Pattern(r"mlp\.gate|mlp\.shared_expert_gate", ("router",)),
    _Pattern(r"mlp\.experts|mlp\.shared_expert\.(gate|up|down)_proj", ("expert",)),
    _Pattern(r"(input|post_attention|(pre|post)_feedforward)_layernorm", ("norm",)),
    _Pattern(r"(self_attn|final)_layer_norm|norm|ln_1|ln_2|ln_f", ("norm",)),
    _Pattern(r"(layers|h)\.\d+", ("residual",)),
    _Pattern(r"lm_head|project_out", ("lm_head",)),
)


_ATTENTION = r"(?:layers|h)\.\d+\.(?:self_attn|attn|attention)"
"""Paths of the modules that write and read the key-value cache."""


_SUMS = ".accumulator"
"""Inside a projection that is computed in integers: the module that its sums pass through."""


def component_map(module: torch.nn.Module) -> ComponentMap:
    """Map a decoder language model of transformers, in evaluation mode, to components.

    Parameters come in the order of `named_parameters`, outputs in the order in which one pass makes them
    (a forward pass over 2 x 3 tokens shows their layouts; its hooks are gone afterwards), what the cache keeps and what
    attention heads make layer by layer. A tensor that serves as embedding and as lm_head is one parameter site,
    `embedding+lm_head`, and two output sites. An output site of a module that returns a tuple (routers: their logits
    come first) refers to the first element.

    Raises InputError, naming the architecture and what could not be mapped, for a model it does not know.
    """
    architecture = type(module).__name__
    config: Any = module.config
    parameters, unmapped = _parameter_sites(module, config)
    if architecture not in ARCHITECTURES or unmapped:
        shown = ", ".join(unmapped[:10]) + (f" and {len(unmapped) - 10} more" if len(unmapped) > 10 else "")
        raise InputError(
            f"architecture {architecture} cannot be mapped to components "
            f"({f'no component for {shown}' if unmapped else 'the class is not known'}): "
            f"choose a model of {', '.join(ARCHITECTURES)}, or add the family as docs/models.md tells"
        )
    cached = cache_sites(module, [path for path, _ in module.named_modules() if _is_attention(path)])
    return ComponentMap(
        architecture,
        config.num_hidden_layers,
        tuple(parameters),
        tuple(_output_sites(module, config, "")),
        cached,
        head_sites(cached, config),
        accumulators=(*_output_sites(module, config, _SUMS), *product_sites(cached, module)),
    )


def output_tensor(output: Any) -> torch.Tensor:
    """The tensor that an output site refers to, out of what the module returned."""
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _pattern_of(path: str) -> _Pattern | None:
    return next((p for p in _PATTERNS if re.fullmatch(rf"(?:.*\.)?(?:{p.path})", path)), None)


def _is_attention(path: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{_ATTENTION})", path) is not None


def _layer_of(path: str) -> int | None:
    match = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)(?:\.|$)", path)
    return int(match[1]) if match else None


def _parameter_sites(module: torch.nn.Module, config: Any) -> tuple[list[ParameterSite], list[str]]:
    """The sites, and the names of the parameters that have none."""
    names: dict[torch.nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    sites: list[ParameterSite] = []
    unmapped: list[str] = []
    for parameter, aliases in names.items():
        paths = [name.rpartition(".")[0] for name in aliases]
        patterns = [pattern for path in paths if (pattern := _pattern_of(path))]
        components = [component for pattern in patterns for component in pattern.components]
        joined = "+".join(components)
        if len(patterns) < len(aliases) or (len(aliases) > 1 and joined not in COMPONENTS):
            unmapped.append(" = ".join(aliases))
            continue
        # Conv1D stores [in, out]: the rows of its projection are the columns of the stored tensor.
        dim = 1 if isinstance(module.get_submodule(paths[0]), Conv1D) and parameter.dim() == 2 else 0
        stored = tuple(parameter.shape)
        for component, rows in patterns[0].shares(config, stored[dim]):
            length = stored[dim] // rows.period * rows.length
            shape = (*stored[:dim], length, *stored[dim + 1 :])
            name = component if len(aliases) == 1 else joined
            sites.append(ParameterSite(aliases[0], name, _layer_of(paths[0]), shape, stored, dim, rows))
    return sites, unmapped


def _output_sites(module: torch.nn.Module, config: Any, inner: str) -> Iterator[OutputSite]:
    """Outputs of the modules that are mapped, or of those of this name inside them."""
    # The number of tokens differs from every number of heads, so the axes of a split output can be told.
    heads = (config.num_attention_heads, getattr(config, "num_key_value_heads", None))
    batch, tokens = 2, next(count for count in (3, 4, 5) if count not in heads)
    for path, shape in _output_shapes(module, batch, tokens, inner).items():
        pattern = _pattern_of(path.removesuffix(inner))
        layout, channels = _layout(shape, batch, tokens)
        if pattern is None or layout is None:
            raise InputError(
                f"output of {path} of architecture {type(module).__name__} has shape {shape} for {batch} x "
                f"{tokens} tokens, whose axes are not known: choose another model"
            )
        for component, rows in pattern.shares(config, channels):
            features = channels // rows.period * rows.length
            yield OutputSite(path, component, _layer_of(path), features, channels, rows, layout)


def _output_shapes(module: torch.nn.Module, batch: int, tokens: int, inner: str) -> dict[str, tuple[int, ...]]:
    """Shape of each output, in order of running, in a pass over `batch` x `tokens` tokens."""
    shapes: dict[str, tuple[int, ...]] = {}

    def recorder(path: str) -> Callable[..., None]:
        def record(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
            shapes[path] = tuple(output_tensor(output).shape)

        return record

    ids = torch.zeros((batch, tokens), dtype=torch.long, device=next(module.parameters()).device)
    positions = torch.arange(tokens, device=ids.device).expand_as(ids)
    with ExitStack() as hooks, torch.inference_mode():
        for path, part in module.named_modules():
            if path.endswith(inner) and _pattern_of(path.removesuffix(inner)):
                hooks.callback(part.register_forward_hook(recorder(path)).remove)
        module(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False)
    return shapes


def _layout(shape: tuple[int, ...], batch: int, tokens: int) -> tuple[str | None, int]:
    """Layout of an output of this shape (None when it is none of ours), and its channels per token."""
    layout: str | None
    match shape:
        case (rows, _) if rows == batch * tokens:
            layout = "nc"
        case (*leading, _) if leading == [batch, tokens]:
            layout = "btc"
        case (*leading, _, _) if leading == [batch, tokens]:
            layout = "bthc"
        case (rows, _, columns, _) if (rows, columns) == (batch, tokens):
            layout = "bhtc"
        case _:
            layout = None
    return layout, prod(shape) // (batch * tokens)
