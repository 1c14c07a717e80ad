"""Polyak averaging: FedIT, but what is evaluated and exported is the mean of all rounds' factors.

what: FedIT whose result is the mean of the factors after every round
source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM 1992
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of whole updates, each clipped to C; sensitivity C; the mean is post-processing
differs: the average is over rounds of a federation, not over steps
unequal ranks: yes
exact: no
"""

from aulait.core import lora
from aulait.methods import fedit
from aulait.methods.contract import State
from aulait.methods.description import Abilities, described

TRAITS = described(__name__, __doc__, Abilities())
Config, init, answer, travels = fedit.Config, fedit.init, fedit.answer, fedit.travels


def step(config, context, state, cohort, server):
    """One round of FedIT, then one more summand of the mean."""
    before = {name: t for name, t in state.tensors.items() if not name.startswith("mean/")}
    after, info = fedit.step(config, context, State(state.round, before), cohort, server)
    mean = {
        f"mean/{name}": old + (tensor - old) / after.round
        for name, tensor in after.factors.items()
        for old in [state.tensors.get(f"mean/{name}", tensor)]
    }
    return State(after.round, after.tensors | mean), info


def result(context, state):
    """The mean; before the first round the common start."""
    mean = lora.by_tag(state.tensors).get("mean", state.factors)
    return context.adapter(mean)
