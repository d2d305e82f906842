"""When a study knows enough: the rules of `until`, read from text."""

import re
from dataclasses import dataclass

RANK_TOLERANCE = 0.01

_RULE = re.compile(r"(?P<what>sdc|rank components)(?:\s*(?:±|\+-|\+/-)\s*(?P<margin>\d*\.?\d+)\s*(?P<unit>%|points?))?")


@dataclass(frozen=True)
class Rule:
    """`sdc`: the SDC rate is known to within +- `margin`. `rank components`: of every two neighbours in the order of
    the components' SDC rates the intervals are apart, or both rates are known to within +- `margin`."""

    ranks: bool
    margin: float

    def __str__(self) -> str:
        return f"{'rank components' if self.ranks else 'sdc'} ±{100 * self.margin:g}%"


def parse_rule(text: str) -> Rule:
    """The rule that `text` states. Raises ValueError that says how to write one."""
    match = _RULE.fullmatch(text.strip())
    ranks = match is not None and match["what"] == "rank components"
    if match is None or (match["margin"] is None and not ranks):
        raise ValueError(
            f"rule {text!r} can't be read: write 'sdc ±0.5%' (+- will do; points of the rate) or 'rank components ±1%'"
        )
    margin = RANK_TOLERANCE if match["margin"] is None else float(match["margin"]) / 100
    if not 0 < margin < 0.5:
        raise ValueError(f"rule {text!r}: a margin lies between 0 and 50 %")
    return Rule(ranks, margin)
