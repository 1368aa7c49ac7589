"""e-prop: eligibility traces of each unit's own way, and a signal of the error."""

from typing import Literal, final

from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn import local
from recurra.learn.base import MEMORY, Carry, Cost, Learnable, Learner
from recurra.learn.feedback import feedback_of, random_feedback

Feedback = Literal["symmetric", "random"]


@final
class EProp(Learner):
    """e-prop (Bellec et al. 2020, doi:10.1038/s41467-020-17236-y): credit flows through time only along each unit's own way, such
    as the forget gate of an LSTM or the leak of a leaky unit, and not through the recurrent weights:

        e_rk(t) = D_j(t) e_rk(t-1) + (ds_j/da_r) x_k,       dL_t/dw_rk ~ L_j(t) e_rk(t)

    D_j = ds_j(t)/ds_j(t-1) with all sums held still; L_j(t) is the error of the step at hand. It is bptt with the state cut off
    where it goes into a product with recurrent weights. (`local` has the equations.)

    Memory and time O(batch P F) a step for P weights and states of F fields, without regard to the length. Biased: all that goes
    from unit to unit is missing. No variance.

    feedback    symmetric: the error comes back through the weights of the readout; random: through a matrix that is drawn once
                (feedback alignment: Lillicrap et al. 2016, doi:10.1038/ncomms13276)
    seed        of that matrix
    memory      GiB that the traces may take
    """

    def __init__(self, *, feedback: Feedback = "symmetric", seed: int = 0, memory: float = MEMORY) -> None:
        if not 0 <= seed < 2**63:
            raise UsageError(f"learner.seed was {seed}, wanted a number from 0 to 2**63 - 1")
        self.feedback, self.seed, self.memory = feedback, seed, memory

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        return local.refused(task, batch, self.memory)

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        return local.cost(task, batch)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        shared = random_feedback(task, self.seed) if self.feedback == "random" else ()
        return local.start(task, batch)._replace(shared=shared)

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return local.learn(task, batch, carry, through_itself=False, feedback=feedback_of(task, carry.shared))
