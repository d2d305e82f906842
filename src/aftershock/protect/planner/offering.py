"""What candidates remove, cause and cost, measured: what the planner chooses from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aftershock.protect.planner.candidates import Candidate, candidates
from aftershock.protect.planner.choice import Offers
from aftershock.protect.planner.costs import Cost, measured_costs
from aftershock.protect.planner.record import Offered, rate_of
from aftershock.protect.planner.tried import Flags, caused, due_share, removal
from aftershock.study import Plan, StoredStudy, TrialRecord


@dataclass(frozen=True)
class Tried:
    """The candidates that were `offered`, and of the `useful` ones, those that remove any harm, what was measured.

    `removes`, bool of shape (harmful, useful): which trials do no harm any more. `causes`, bool of shape (showing,
    useful): which trials do more of it; `showing` are those with answers that show by themselves that they are wrong.
    """

    harmful: tuple[TrialRecord, ...]
    showing: tuple[TrialRecord, ...]
    offered: tuple[Candidate, ...]
    useful: tuple[Candidate, ...]
    removes: Flags
    causes: Flags
    costs: tuple[Cost, ...]

    @property
    def offers(self) -> Offers:
        """The useful candidates as numbers to choose by."""
        return Offers(
            self.removes,
            np.array([one.sdc_share for one in self.harmful], dtype=np.float64),
            self.causes,
            np.array([due_share(one) for one in self.showing]),
            np.array([max(one.latency.estimate, 0.0) for one in self.costs]),
            np.array([float(one.nbytes) for one in self.costs]),
        )

    def names(self, chosen: Sequence[int]) -> tuple[str, ...]:
        """Names of useful candidates by their places."""
        return tuple(self.useful[place].name for place in chosen)

    def after(self, chosen: Sequence[int]) -> dict[int, float]:
        """The share of answers that trials make wrong in silence under some useful candidates, by trial; only of those
        to which these do anything. A trial that one of them mends does no harm, whatever others add to it."""
        places = list(chosen)
        added = zip(self.showing, self.causes[:, places], strict=True)
        removed = zip(self.harmful, self.removes[:, places], strict=True)
        after = {one.trial: (one.sdc_share or 0.0) + due_share(one) for one, more in added if more.any()}
        return after | {one.trial: 0.0 for one, away in removed if away.any()}

    def listed(self, chosen: Sequence[int]) -> tuple[Offered, ...]:
        """All that was offered, and which of it was chosen."""
        places = {name: place for place, name in enumerate(self.names(range(len(self.useful))))}
        return tuple(
            Offered(
                name=one.name,
                removes=int(self.removes[:, place].sum()),
                causes=int(self.causes[:, place].sum()),
                latency=rate_of(self.costs[place].latency),
                nbytes=self.costs[place].nbytes,
                chosen=place in chosen,
            )
            if (place := places.get(one.name)) is not None
            else Offered(name=one.name, removes=0, causes=0, latency=None, nbytes=None, chosen=False)
            for one in self.offered
        )


def tried_candidates(
    plan: Plan, study: StoredStudy, harmful: Sequence[TrialRecord], memory: int, say: Callable[[str], None]
) -> Tried:
    """Try the candidates for a study on its faults that did harm, one by one, and time those that help. `memory` bytes
    are what copies may take."""
    offered = candidates(plan, study, memory)
    removes = removal(plan, harmful, offered, say)
    helps: Flags = np.logical_or.reduce(removes, axis=0)
    useful = tuple(one for one, helping in zip(offered, helps, strict=True) if helping)
    showing = tuple(one for one in study.trials if due_share(one))
    causes = caused(plan, showing, useful, say)
    say(f"timing {len(useful)} protections")
    # One batch stands for the others: those of a study are filled alike.
    costs = measured_costs(plan.model, [(one.protection,) for one in useful], plan.batches[:1])
    return Tried(tuple(harmful), showing, offered, useful, removes[:, helps], causes, costs)
