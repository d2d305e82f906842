"""See what goes into and out of every mapped module of a live model, at the moment it does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.capture.entries import Operation, Parameter
from aftershock.errors import InputError
from aftershock.models import LoadedModel, OutputSite, output_tensor

Place = Literal["input", "output"]

See = Callable[[str, Place, torch.Tensor], None]
"""Told a module's path, and its input or output as the module has it: clone what is to be kept, since engines change
tensors in place afterwards."""

_ROLES: dict[str, Literal["weight", "bias"]] = {"weight": "weight", "bias": "bias"}

_HEADS = ("bthc", "bhtc")
"""Layouts whose channels are split in heads."""


@dataclass(frozen=True)
class Batch:
    """Requests of one length that run in one pass: `requests` are their numbers, `ids` has shape (rows, tokens)."""

    requests: tuple[int, ...]
    ids: torch.Tensor

    def rows(self, starts: Sequence[int]) -> torch.Tensor:
        """Numbers of the batch's tokens among all tokens, int64, shape (tokens of the batch,)."""
        length = self.ids.shape[1]
        return (torch.tensor([starts[number] for number in self.requests])[:, None] + torch.arange(length)).flatten()


@dataclass(frozen=True)
class Watched:
    """A mapped module: `sites` are its components' shares of the output, `parameters` the tensors of its own."""

    path: str
    part: torch.nn.Module
    sites: tuple[OutputSite, ...]
    parameters: tuple[Parameter, ...]

    @property
    def layout(self) -> str:
        """Layout of its output, and of its input."""
        return self.sites[0].layout

    @property
    def takes_input(self) -> bool:
        """Whether its input is seen: it has tensors of its own, and is no table that tokens are looked up in."""
        return bool(self.parameters) and not isinstance(self.part, torch.nn.Embedding)

    @property
    def operation(self) -> Operation:
        """How its output follows from its input."""
        if isinstance(self.part, torch.nn.Embedding):
            return "embedding"
        if isinstance(self.part, torch.nn.Linear | Conv1D) or type(self.part).__name__.endswith("TopKRouter"):
            return "linear"
        return "norm" if type(self.part).__name__.endswith("Norm") else "other"

    def flat(self, values: torch.Tensor, tokens: int) -> torch.Tensor:
        """From the module's layout to (tokens, channels) or (tokens, heads, channels): a view where possible."""
        ordered = values.transpose(1, 2) if self.layout == "bhtc" else values
        kept = 2 if self.layout in _HEADS else 1
        return ordered.reshape(tokens, *ordered.shape[-kept:])

    def unflat(self, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Back to the module's layout, shape, type and device of `like`."""
        if self.layout == "bhtc":
            rows, heads, tokens, channels = like.shape
            values = values.reshape(rows, tokens, heads, channels).transpose(1, 2)
        return values.reshape(like.shape).to(like.device, like.dtype)


def watched(model: LoadedModel) -> dict[str, Watched]:
    """The mapped modules in the order in which their calls end, by path."""
    sites: dict[str, list[OutputSite]] = {}
    for site in model.components.outputs:
        sites.setdefault(site.module, []).append(site)
    names = {id(tensor): name for name, tensor in model.module.named_parameters()}
    holders: dict[int, list[str]] = {}
    for name, tensor in model.module.named_parameters(remove_duplicate=False):
        holders.setdefault(id(tensor), []).append(name.rpartition(".")[0])

    def parameter(path: str, name: str, part: torch.nn.Module, tensor: torch.Tensor) -> Parameter:
        return Parameter(
            name=names.get(id(tensor), f"{path}.{name}"),
            shape=tuple(tensor.shape),
            role=_ROLES.get(name, "other"),
            output_dim=1 if isinstance(part, Conv1D) and tensor.dim() == 2 else 0,
            modules=tuple(holders.get(id(tensor), [path])),
        )

    found = {}
    for path, own in sites.items():
        part = model.module.get_submodule(path)
        tensors = {name: tensor for name, tensor in part.state_dict(keep_vars=True).items() if "." not in name}
        parameters = (parameter(path, name, part, tensor) for name, tensor in tensors.items())
        found[path] = Watched(path, part, tuple(own), tuple(parameters))
    return found


def batches(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[Batch, ...]:
    """The prompts by length, one batch each: no padding, so no mask, and positions from 0 on in every row, which every
    engine can give too. A prompt's words then depend on the prompts of its own length alone."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    return tuple(
        Batch(tuple(own), torch.tensor([prompts[number] for number in own], device=model.device))
        for own in by_length.values()
    )


@torch.no_grad()
def forward(model: LoadedModel, batch: Batch) -> torch.Tensor:
    """One pass over a batch: its logits, shape (tokens of the batch, vocabulary)."""
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
    mask = torch.ones_like(batch.ids)
    output = model.module(input_ids=batch.ids, attention_mask=mask, position_ids=positions, use_cache=False)
    logits: torch.Tensor = output.logits
    return logits.flatten(0, 1)


@contextmanager
def watching(modules: Mapping[str, Watched], see: See) -> Iterator[None]:
    """While open, `see` is told every input of a module that takes one just before its call, and every output just
    after it; an exception that it raises ends the pass."""

    def before(path: str) -> Callable[..., None]:
        return lambda _, inputs: see(path, "input", inputs[0])

    def after(path: str) -> Callable[..., None]:
        return lambda _, __, output: see(path, "output", output_tensor(output))

    with ExitStack() as hooks:
        for path, module in modules.items():
            if module.takes_input:
                hooks.callback(module.part.register_forward_pre_hook(before(path)).remove)
            hooks.callback(module.part.register_forward_hook(after(path)).remove)
        yield


@contextmanager
def forcing(modules: Mapping[str, Watched], give: Callable[[str], torch.Tensor]) -> Iterator[None]:
    """While open, every module that takes an input gets what `give` has for its path, shape (tokens of the pass, ...),
    in the place of its own."""

    def replace(module: Watched) -> Callable[..., Any]:
        return lambda _, inputs: (module.unflat(give(module.path), inputs[0]), *inputs[1:])

    with ExitStack() as hooks:
        for module in modules.values():
            if module.takes_input:
                hooks.callback(module.part.register_forward_pre_hook(replace(module)).remove)
        yield


def token_rows(model: LoadedModel, prompts: Sequence[str | Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The token ids of prompts that are texts, or ids already.

    Raises InputError for no prompt, an empty or too long one, and a token that the model doesn't have.
    """
    if not prompts or isinstance(prompts, str):
        raise InputError("there is no list of prompts: give one text, or one list of token ids, at least")
    if model.tokenizer is None and any(isinstance(prompt, str) for prompt in prompts):
        raise InputError("the model has no tokenizer: give token ids instead of texts")
    rows = tuple(
        tuple(model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else map(int, prompt))
        for prompt in prompts
    )
    config: Any = model.module.config
    for number, row in enumerate(rows):
        if not row or len(row) > config.max_position_embeddings:
            raise InputError(
                f"prompt {number} has {len(row)} tokens: give 1 to {config.max_position_embeddings}, "
                "as the model takes them"
            )
        if min(row) < 0 or max(row) >= config.vocab_size:
            raise InputError(
                f"prompt {number} holds a token that is not 0 to {config.vocab_size - 1}: "
                "tokenise it with the model's own tokenizer"
            )
    return rows
