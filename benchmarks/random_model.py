"""Models with random weights, for what no model to be had here is: one with experts, and one of a large model's shape.

    python -m benchmarks.random_model experts|billion FOLDER

`experts`: Mixtral with 8 layers of 8 experts, 2 for each token. `billion`: the shape of SmolLM2-1.7B, 1.7 billion
parameters. Both have SmolLM2's tokenizer. Their answers mean nothing, so no takeaway is tested on them (their folder's
name must hold "random"); what a fault changes can be measured all the same.
"""

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from aftershock.models import load
from aftershock.study.takeaways.cells import has_random_weights

SEED = 0


def random_model(kind: str, vocabulary: int, end: int) -> PreTrainedModel:
    """The model of a kind, in bfloat16, its weights drawn as transformers draws them."""
    common = {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end, "max_position_embeddings": 2048}
    # transformers takes no generator: torch's own is lent to it, and put back.
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        if kind == "experts":
            sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
            heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
            config = MixtralConfig(**sizes, **heads, **common, num_local_experts=8, num_experts_per_tok=2)
            return MixtralForCausalLM(config).to(torch.bfloat16)
        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 32}
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **common, tie_word_embeddings=True)).to(torch.bfloat16)


def main() -> None:
    """Write one of them as a folder of safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("experts", "billion"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if not has_random_weights(arguments.folder.name):
        parser.error(f"{arguments.folder}: name it so that it holds the word 'random', which studies know it by")
    tokenizer = load("demo:smollm2-135m").tokenizer
    made = random_model(arguments.kind, len(tokenizer), tokenizer.eos_token_id)
    made.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {sum(one.numel() for one in made.parameters()):,} parameters")


if __name__ == "__main__":
    main()
