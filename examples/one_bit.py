"""What does one bit do? Ask a model the same question before, during and after a fault in one of its weights.

Run it with `python examples/one_bit.py`.
"""

from typing import Any

import torch

import aftershock

model = aftershock.load("demo:smollm2-135m")
language_model: Any = model.module
prompt = model.tokenizer("The capital of France is", return_tensors="pt")


@torch.inference_mode()
def answer() -> str:
    """Twelve tokens, greedily."""
    tokens = language_model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return str(model.tokenizer.decode(tokens[0], skip_special_tokens=True))


print(f"before: {answer()!r}")

for line in (
    "weight model.layers.11.mlp.down_proj.weight[120,7] flip 3",
    "weight model.layers.11.mlp.down_proj.weight[120,7] flip 30",
):
    with aftershock.Injection(model, [aftershock.parse_fault(line)]) as injection:
        during = answer()
    struck = injection.words[0]
    print(f"\n{line}")
    print(f"  value: {struck.old_value:g} became {struck.new_value:g}")
    print(f"  word: {struck.old_bits:08x} became {struck.new_bits:08x}")
    print(f"  during: {during!r}")

print(f"\nafter: {answer()!r}")
