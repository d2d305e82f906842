"""The loss of a model on some text, again and again: after a change in one layer only the layers from there on run."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from aftershock.errors import InputError
from aftershock.models import LoadedModel, output_tensor

LAST = 1 << 30
"""Layer number of what comes after the decoder layers: the final norm and the head."""

_SCALE = 1024.0
"""What the loss is multiplied with for its gradient, lest small ones vanish in float16."""

_LOGITS = 1 << 27
"""Logits that are looked at in one go, which bounds the memory taken."""


def text_rows(model: LoadedModel, text: str, rows: int = 16, length: int = 128) -> torch.Tensor:
    """Token ids of pieces of a text, taken at even distances over the whole of it: int64, shape (rows, length) on the
    model's device, each begun as the tokenizer begins a text.

    Raises InputError for a text with fewer tokens than that.
    """
    begin = model.tokenizer("")["input_ids"]
    end = getattr(model.tokenizer, "eos_token_id", None)
    begin = [token for token in begin if token != end or token == getattr(model.tokenizer, "bos_token_id", None)]
    # Some tenfold of what is needed is enough to tokenize, in as many places.
    size = max(1, len(text) // rows)
    body = length - len(begin)
    pieces = []
    for row in range(rows):
        tokens = model.tokenizer(text[row * size : row * size + 20 * body], add_special_tokens=False)["input_ids"]
        if len(tokens) < body:
            raise InputError(
                f"the text is too short: {rows} pieces of {body} tokens are read, piece {row + 1} has {len(tokens)}; "
                "give a text of some thousands of words"
            )
        pieces.append([*begin, *tokens[:body]])
    return torch.tensor(pieces, device=model.device)


class TextLoss:
    """Losses of rows of text under the model as it is, in nats a token.

    A token's loss is at most twice that of guessing among all tokens; logits that are not finite count as that much.
    `passes` counts forward passes over the whole text, a pass from layer l on as the share of layers that ran.
    """

    def __init__(self, model: LoadedModel, tokens: torch.Tensor) -> None:
        self._model, self._tokens = model, tokens
        names = [site.module for site in model.components.outputs if site.component == "residual"]
        self.layers = tuple(model.module.get_submodule(name) for name in names)
        self._outputs: list[Any] = [None] * len(names)
        config: Any = model.module.config
        vocabulary = int(config.vocab_size)
        self._worst = 2 * math.log(vocabulary)
        self._step = max(1, _LOGITS // (vocabulary * tokens.shape[1]))
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if tokens.is_cuda else None
        self.passes = 0.0

    @property
    def targets(self) -> int:
        """Number of tokens that are predicted."""
        return int(self._tokens[:, 1:].numel())

    def refresh(self) -> torch.Tensor:
        """Run everything, and keep what each layer gives: mean loss of each row, float64, shape (rows,), on the CPU."""

        def keep(number: int) -> Any:
            def hook(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
                if self._outputs[number] is None:
                    self._outputs[number] = output
                else:
                    output_tensor(self._outputs[number]).copy_(output_tensor(output))

            return hook

        with ExitStack() as hooks:
            for number, layer in enumerate(self.layers):
                hooks.callback(layer.register_forward_hook(keep(number)).remove)
            return self._run(0).double().cpu()

    def after_change(self, layer: int | None) -> torch.Tensor:
        """Losses with something changed in a layer since `refresh`, or before the layers (None) or behind (`LAST`)."""
        first = self._first(layer)
        with _replayed(self.layers[:first], self._outputs):
            return self._run(first).double().cpu()

    def after_flip(self, layer: int | None) -> torch.Tensor:
        """The same where nothing but words of parameters changed: on a GPU, from the second time on, kernels are
        replayed as they were recorded, without the model's own code."""
        first = self._first(layer)
        if not self._tokens.is_cuda:
            return self.after_change(layer)
        if first not in self._graphs:
            losses = self.after_change(layer)
            graph = torch.cuda.CUDAGraph()
            with _replayed(self.layers[:first], self._outputs), torch.cuda.graph(graph, pool=self._pool):
                self._graphs[first] = graph, self._run(first)
            self._count(first, -1)
            return losses
        graph, result = self._graphs[first]
        graph.replay()
        self._count(first, 1)
        return result.double().cpu()

    def _first(self, layer: int | None) -> int:
        return 0 if layer is None else min(layer, len(self.layers))

    def _count(self, first: int, times: int) -> None:
        self.passes += times * (1 - first / (len(self.layers) + 1))

    @torch.inference_mode()
    def _run(self, first: int) -> torch.Tensor:
        self._count(first, 1)
        logits = self._model.module(input_ids=self._tokens, use_cache=False).logits
        rows = [
            self.bounded(part, tokens).mean(1)
            for part, tokens in zip(torch.split(logits, self._step), torch.split(self._tokens, self._step), strict=True)
        ]
        return torch.cat(rows)

    def visit_gradients(self, names: Iterable[str], visit: Callable[[str, torch.Tensor], None]) -> None:
        """Show `visit` the gradient of the mean loss, not bounded, by each named parameter, one after the other, in the
        parameter's dtype; those that are not finite too. Counts as three passes."""
        self.passes += 3
        parameters = {name: self._model.module.get_parameter(name) for name in names}

        def hook(name: str) -> Callable[[torch.Tensor], None]:
            def seen(parameter: torch.Tensor) -> None:
                assert parameter.grad is not None
                slope, parameter.grad = parameter.grad / _SCALE, None
                visit(name, slope)

            return seen

        with ExitStack() as stack:
            for name, parameter in parameters.items():
                parameter.requires_grad_(True)
                stack.callback(parameter.requires_grad_, False)
                stack.callback(_after_gradient(parameter, hook(name)))
            with torch.enable_grad():
                logits = self._model.module(input_ids=self._tokens, use_cache=False).logits
                parts = zip(torch.split(logits, self._step), torch.split(self._tokens, self._step), strict=True)
                total = torch.stack([_losses(part, tokens).sum() for part, tokens in parts]).sum()
                torch.autograd.backward(total * (_SCALE / self._tokens[:, 1:].numel()))

    def bounded(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Loss of every token but the first of each row, float32, shape (rows, tokens - 1)."""
        return _losses(logits, tokens).nan_to_num(self._worst, self._worst).clamp(max=self._worst).view(len(tokens), -1)


def _after_gradient(parameter: torch.nn.Parameter, hook: Callable[[torch.Tensor], None]) -> Callable[[], None]:
    owner: Any = parameter  # torch gives this method no types
    remove: Callable[[], None] = owner.register_post_accumulate_grad_hook(hook).remove
    return remove


def _losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Loss of every token but the first of each row, float32, flattened."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
    )


@contextmanager
def _replayed(layers: Sequence[torch.nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """While open, these layers give kept outputs without running."""

    def giving(output: Any) -> Any:
        return lambda *_arguments, **_settings: output

    try:
        for layer, output in zip(layers, outputs, strict=False):
            layer.forward = giving(output)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
