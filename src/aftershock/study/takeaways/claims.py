"""The seventeen takeaways of LLMFI (arXiv 2606.02430) in our words, each with the test that it is put to."""

from collections.abc import Callable, Sequence

from aftershock.study.takeaways.across import experts, masked_by_baseline, order_of_formats
from aftershock.study.takeaways.cells import Cell
from aftershock.study.takeaways.claim import RANK, Claim
from aftershock.study.takeaways.contrasts import (
    Contrasted,
    Finding,
    Side,
    difference,
    excess,
    healed,
    trend,
    within,
)
from aftershock.study.takeaways.hypotheses import Different, Equivalent, Greater
from aftershock.study.takeaways.picks import (
    before_decode,
    before_last,
    beginning,
    beginnings,
    chosen,
    every,
    generated,
    in_components,
    in_decode,
    kinds,
    last_blocks,
    of_kind,
    reached_in_decode,
)

HARMLESS = Equivalent(1.0)
"""Points up to which faults are harmless, on average."""

FLAT = Equivalent(0.2)
"""Rank correlation up to which there is no trend."""


def _own(contrast: Contrasted) -> Callable[[Sequence[Cell]], Finding]:
    """Evidence from each study by itself."""
    return lambda cells: within(contrast, cells)


CLAIMS = (
    Claim(
        1,
        "A single fault degrades the answers measurably.",
        "reconstructed",
        "mean over faults of the share of right answers lost, less that of the noise floor on the same items",
        _own(excess(Side("faults", every))),
    ),
    Claim(
        2,
        "The stage in which a fault strikes decides much of its effect.",
        "reconstructed",
        "faults that begin in prefill or at the first token less those that begin in decode, of one kind, on answers "
        "that these reach",
        _own(
            difference(
                Side("faults before decode", before_decode),
                Side("faults in decode", in_decode),
                answers=reached_in_decode,
                strata=kinds,
            )
        ),
        Different(0.5),
    ),
    Claim(
        3,
        "Where an option is chosen, faults in decode are almost harmless.",
        "reconstructed",
        "share of right choices lost to faults that begin in decode, less that of the noise floor on the same items",
        _own(excess(Side("faults in decode", in_decode), answers=chosen)),
        HARMLESS,
    ),
    Claim(
        4,
        "At the first token, computation faults hurt more than memory faults.",
        "reconstructed",
        "computation faults less memory faults, both from the first token on",
        _own(
            difference(
                Side("computation faults at the first token", beginning("computation", "first_token")),
                Side("memory faults from the first token", beginning("memory", "first_token")),
            )
        ),
    ),
    Claim(
        5,
        "Tasks with a low baseline hide the effect of faults.",
        "confirmed",
        "accuracy lost against golden accuracy over chance, slope over the tasks of a model",
        masked_by_baseline,
        unit="points lost per 100 points of baseline",
        near_chance=True,
    ),
    Claim(
        6,
        "Accuracy alone hides damage: answers that stay right have changed in wording.",
        "reconstructed",
        "share of the generated answers still right whose text differs, less that of the noise floor on the same items",
        _own(
            excess(
                Side("faults", every),
                answers=generated,
                among=frozenset({"masked", "benign"}),
                outcomes=frozenset({"benign"}),
            )
        ),
    ),
    Claim(
        7,
        "Faults in the last four blocks hurt more than those before.",
        "confirmed",
        "faults in the last four blocks less those in the blocks before, of one kind",
        _own(last_blocks),
    ),
    Claim(
        8,
        "Early and middle blocks correct themselves.",
        "confirmed",
        "share of traced faults whose relative error shrinks from the block struck to the last, less one half",
        _own(healed(Side("traced faults before the last four blocks", before_last))),
        Greater(5.0),
    ),
    Claim(
        9,
        "Faults in projections that reduce the dimension hurt more than in those that expand it.",
        "confirmed",
        "faults in o, down, fc2 less those in gate, up, fc1, of one kind",
        _own(
            difference(
                Side("faults in o, down, fc2", in_components("o", "down", "fc2")),
                Side("faults in gate, up, fc1", in_components("gate", "up", "fc1")),
                strata=kinds,
            )
        ),
    ),
    Claim(
        10,
        "Errors in early decode steps recover less than in late ones.",
        "confirmed",
        "whether the computation faults that cost an answer strike earlier decode steps than the others",
        _own(
            trend(
                Side("computation faults in decode", lambda cell: cell.decode_step > 0),
                lambda cell: -cell.decode_step,
            )
        ),
        Greater(0.1),
        RANK,
        1.0,
    ),
    Claim(
        11,
        "Where answers are generated, memory faults hurt slightly more than computation faults.",
        "confirmed",
        "memory faults less computation faults that begin in the same stage, on generated answers",
        _own(
            difference(
                Side("memory faults", of_kind("memory")),
                Side("computation faults", of_kind("computation")),
                answers=generated,
                strata=beginnings,
            )
        ),
    ),
    Claim(
        12,
        "Faults in the key-value cache are milder than faults in weights.",
        "reconstructed",
        "memory faults less faults in keys and values",
        _own(difference(Side("memory faults", of_kind("memory")), Side("cache faults", of_kind("cache")))),
    ),
    Claim(
        13,
        "How much a cache fault hurts has no trend in depth.",
        "reconstructed",
        "whether the cache faults that cost an answer lie in deeper blocks than the others",
        _own(
            trend(
                Side("cache faults", lambda cell: (cell.kind == "cache") & (cell.layer >= 0)),
                lambda cell: cell.layer,
            )
        ),
        FLAT,
        RANK,
        1.0,
    ),
    Claim(
        14,
        "Flips of the top exponent bit hurt more than those of the other bits.",
        "reconstructed",
        "flips of the top exponent bit less flips of any other bit, of one kind",
        _own(
            difference(
                Side("flips of the top exponent bit", lambda cell: cell.bit == cell.top_exponent_bit),
                Side("flips of other bits", lambda cell: (cell.bit >= 0) & (cell.bit != cell.top_exponent_bit)),
                strata=kinds,
            )
        ),
    ),
    Claim(
        15,
        "Under faults quantised integers fare best, then fp16, fp32 and last bf16.",
        "reconstructed",
        "smallest step between neighbours in that order, each on the same model, task and faults",
        order_of_formats,
    ),
    Claim(
        16,
        "Mixture of experts softens memory faults, but its router is sensitive.",
        "reconstructed",
        "the smaller of: memory faults in dense models less those in models with experts, same task and faults; faults "
        "in the router less those in experts",
        experts,
    ),
    Claim(
        17,
        "Two flips in one word hurt more than one.",
        "reconstructed",
        "two flips in a word less one, of one kind",
        _own(
            difference(
                Side("double flips", lambda cell: cell.flips == 2),
                Side("single flips", lambda cell: cell.flips == 1),
                strata=kinds,
            )
        ),
    ),
)
"""All of them, in their order. Numbers 5 and 7 to 11 are confirmed by summaries of the paper; the content of the others
is our reconstruction from the order of its findings, and no words of its authors."""
