"""How plausible a floating-point word is among those of its tensor, by its exponent."""

from dataclasses import dataclass

import torch

from aftershock.numerics import NumberFormat

_RARE = 1e-4
"""Share of a tensor's words under which a power of two does not count as in use there."""


def exponents(stored: torch.Tensor, form: NumberFormat) -> torch.Tensor:
    """Exponent fields of words (any integer dtype of the format's width), int64, same shape."""
    return (stored.long() >> form.mantissa_bits) & ((1 << form.exponent_bits) - 1)


@dataclass(frozen=True)
class Exponents:
    """The exponent fields in use in a tensor: `top` is the highest one, `log_share[e]` the logarithm of the share of
    words with field e."""

    top: int
    log_share: torch.Tensor

    def log_likelihood(self, fields: torch.Tensor) -> torch.Tensor:
        """Log-likelihood of words with these fields, nats, float32, same shape: the share of such words, and one nat
        less for every power of two above those in use."""
        share = self.log_share.to(fields.device)
        above = (fields - self.top).clamp(min=0).float()
        return share[fields.clamp(max=self.top)] - above


def exponents_in_use(stored: torch.Tensor, form: NumberFormat) -> Exponents:
    """The exponent fields of a tensor's words. Words of zero count too."""
    counts = torch.bincount(exponents(stored.flatten(), form), minlength=1 << form.exponent_bits).cpu()
    enough = counts >= max(2.0, _RARE * float(counts.sum()))
    top = int(enough.nonzero().max()) if bool(enough.any()) else int(counts.argmax())
    return Exponents(top, torch.log((counts + 0.5) / (counts.sum() + 1)))
