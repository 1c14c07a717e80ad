"""FedAvg on LoRA factors: the plain name of what 'fedit' does.

Every client takes local steps on A and B from the server's factors, and the server averages A and
B. With a server optimiser it is FedAvgM, FedAdam and their kind (``algorithm.server``). Studies
that name a baseline "FedAvg" or "FedIT" mean the same merge; a run under either name is the same
bit for bit.

what: every client trains A and B; A and B are averaged separately
source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
    AISTATS 2017, arXiv 1602.05629
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of whole updates, each clipped to C; sensitivity C. Records: DP-SGD at the site
differs: LoRA factors instead of all weights; AdamW by default, its moments afresh every round;
    uniform weights by default; unequal ranks are nested columns
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from aulait.methods.description import Abilities, described
from aulait.methods.shared.averaged_factors import answer as answer
from aulait.methods.shared.averaged_factors import init as init
from aulait.methods.shared.averaged_factors import result as result
from aulait.methods.shared.averaged_factors import step as step
from aulait.methods.shared.averaged_factors import travels as travels
from aulait.methods.shared.weighted_mean import AveragingConfig

TRAITS = described(__name__, __doc__, Abilities(
    units=("client", "record"), steps=True, asynchronous=True))


class FedAvgConfig(AveragingConfig):
    """``[algorithm] name = "fedavg"``."""


Config = FedAvgConfig
