"""One number for every stored word of a model."""

import hashlib
from itertools import chain

import torch

_CHUNK = 1 << 26


def model_hash(module: torch.nn.Module) -> str:
    """Hash of the names, types, shapes and words of all parameters and buffers, as 64 hexadecimal digits.

    Equal hashes mean equal words: NaN payloads and the sign of zero count. A tied tensor is read once.
    A model on the CPU is read in place, one on a device in chunks of 64 MiB.
    """
    digest = hashlib.sha256()
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for chunk in torch.split(tensor.detach().reshape(-1).view(torch.uint8), _CHUNK):
            digest.update(chunk.cpu().numpy().data)
    return digest.hexdigest()
