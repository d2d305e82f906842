"""Llama's decoder layers run so that the steps between their products check them (`run_block`)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    eager_attention_forward,
)

from aftershock.detect import linear_checksum, rounding_of
from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.protect.configs import FusedChecksum
from aftershock.protect.fused.decoder_block import (
    Block,
    BlockGuards,
    Guard,
    Steps,
    Stream,
    finish,
    guard,
    run_block,
    steps_on,
)
from aftershock.protect.tally import Counts, Site

GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""A layer's products; those that read the same input are checked as one."""


class FusedTally:
    """Counts places of a guard's strains, of which every row has one, modulo their number: those where a row was
    checked, and those where one was wrong. Nothing is added up on the way, so calls are not counted. Products that are
    checked as one have one site, at the first one's module."""

    def __init__(self, sites: tuple[Site, ...], protection: str, own: Guard) -> None:
        self.site = Site(sites[0].module, "+".join(site.component for site in sites), sites[0].layer)
        self.sites, self.protection, self._guard = sites, protection, own

    def reset(self) -> None:
        """Begin anew."""
        self._guard.reset()

    def read(self) -> Counts:
        """What was seen: `checked` and `wrong` are places."""
        strains = self._guard.bound.strains
        checked, wrong = int((strains >= 0).sum()), int((strains > 1).sum())
        return Counts(self.site, self.protection, 0, checked, wrong, 0)


def fuse(model: LoadedModel, protection: FusedChecksum, sites: tuple[Site, ...], undo: ExitStack) -> list[FusedTally]:
    """Let a model's layers and its last norm check what is asked for, until it is undone; a tally for each guard.

    Raises InputError for models whose layers don't compute what Llama's do, and as `guard` and `rounding_of` do; in a
    pass of which hidden states or attentions are asked, too.
    """
    _require_known_steps(model)
    decoder: Any = model.module.model
    steps = steps_on(model.device.type)
    known = {site.module: site for site in sites}
    rounding = rounding_of(model.dtype, model.device.type)
    tallies: list[FusedTally] = []
    for place, layer in enumerate(decoder.layers):
        guards: dict[str, Guard] = {}
        for name, paths in GROUPS.items():
            own = [known.get(f"model.layers.{place}.{path}") for path in paths]
            there = tuple(site for site in own if site is not None)
            if not {part for site in there for part in site.components} & set(protection.components):
                continue
            parts = [layer.get_submodule(path) for path in paths]
            # Together, since which rows are nearly equal is judged over all that are added up.
            weights = torch.cat([part.weight for part in parts])
            biases = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
            guards[name] = guard(linear_checksum(weights, biases), rounding)
            tallies.append(FusedTally(there, type(protection).__name__, guards[name]))
        _replace(layer, _layer_forward(layer, steps, BlockGuards(**guards)), undo)
    _replace(decoder.norm, _norm_forward(decoder.norm, steps), undo)
    undo.callback(decoder.register_forward_pre_hook(_refuse_inner_outputs, with_kwargs=True).remove)
    return tallies


def _require_known_steps(model: LoadedModel) -> None:
    if not isinstance(model.module, LlamaForCausalLM):
        raise InputError(
            f"the steps of {model.components.architecture} are not known: FusedChecksum is for LlamaForCausalLM, "
            "Checksum for any model"
        )
    activation = model.module.config.hidden_act
    if activation not in ("silu", "swish"):
        raise InputError(f"the model's gates use {activation}, FusedChecksum's silu: take Checksum, for any model")
    for layer in model.module.model.layers:
        kinds = {type(part) for part in (layer, layer.self_attn, layer.mlp)}
        if other := kinds - {LlamaDecoderLayer, LlamaAttention, LlamaMLP}:
            names = ", ".join(sorted(one.__name__ for one in other))
            raise InputError(f"the steps of {names} are not known to FusedChecksum: take Checksum, for any model")


def _replace(module: Any, forward: Callable[..., Any], undo: ExitStack) -> None:
    if "forward" in vars(module):
        undo.callback(setattr, module, "forward", module.forward)
    else:
        undo.callback(delattr, module, "forward")
    module.forward = forward


def _refuse_inner_outputs(module: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """As a forward pre-hook, with keywords: layers pass a `Stream` on, and attention is not run as a module."""
    for name in ("output_hidden_states", "output_attentions"):
        if keywords.get(name, getattr(module.config, name, False)):
            raise InputError(f"{name} is not to be had under FusedChecksum: leave it out, or take Checksum")


def _layer_forward(layer: Any, steps: Steps, guards: BlockGuards) -> Callable[..., Stream]:
    """As `LlamaDecoderLayer.forward`, but that what goes from layer to layer is a `Stream`."""
    attention, mlp = layer.self_attn, layer.mlp
    block = Block(
        layer.input_layernorm.weight,
        layer.post_attention_layernorm.weight,
        layer.input_layernorm.variance_epsilon,
        attention.head_dim,
        lambda normed: (attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)),
        attention.o_proj,
        lambda normed: (mlp.gate_proj(normed), mlp.up_proj(normed)),
        mlp.down_proj,
    )

    def forward(
        hidden_states: torch.Tensor | Stream,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: Any = None,
        **keywords: Any,
    ) -> Stream:
        def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            if past_key_values is not None:
                keys, values = past_key_values.update(keys, values, attention.layer_idx)
            run = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
            made, _ = run(
                attention, queries, keys, values, attention_mask, dropout=0.0, scaling=attention.scaling, **keywords
            )
            attended: torch.Tensor = made.reshape(*made.shape[:2], -1).contiguous()
            return attended

        stream = hidden_states if isinstance(hidden_states, Stream) else Stream(hidden_states)
        return run_block(steps, block, guards, stream, position_embeddings, None, attend)

    return forward


def _norm_forward(norm: Any, steps: Steps) -> Callable[[Stream], torch.Tensor]:
    return lambda stream: finish(steps, norm.weight, norm.variance_epsilon, stream, None)[0]
