"""raFLoRA: FlexLoRA whose columns are each averaged over the clients that have them.

FlexLoRA divides every column by the weight of all clients, though a column beyond a client's rank
gets nothing from it: of what a round adds to column j only the part q_j of the clients with
r_k >= j is left, in every round again, and the energy of high ranks dies out geometrically (rank
collapse). Here the rank axis is cut at the distinct ranks of the clients, and the slice P_h is
averaged over its owners alone,

    G = sum_h sum_{k: r_k >= r_h} (p_k / sum_{j: r_j >= r_h} p_j) s_k B_k[:, P_h] A_k[P_h, :]

after which G is decomposed and sent at every rank, as in FlexLoRA. What nobody of a round owns
stays as it is. At equal ranks this is FlexLoRA.

Under privacy the changes of factors are summed, and every column divided by the planned clients
that own it, as in 'flexlora'.

what: FlexLoRA with every column averaged over those who own it, against rank collapse
source: Wu et al., Preventing Rank Collapse in Federated Low-Rank Adaptation with Client
    Heterogeneity, 2026, arXiv 2602.13486
travels: up 4 sum r_k (M + N); down 4 sum r_k (M + N)
privacy: sum of changes of the factors, each clipped to C; sensitivity C; the SVD is
    post-processing. Records: DP-SGD at the site
differs: the abstract and the introduction alone could be read, whose "effective client
    contributions" are taken to be the owners' weights over their sum; exact factored SVD, once a
    layer; what only absent clients own is kept; under privacy the mean of factors in the SVD's
    basis
unequal ranks: yes
exact: at equal ranks
"""

from __future__ import annotations

from aulait.core.cohort import Cohort
from aulait.core.types import Info
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import svd_merge
from aulait.methods.shared.svd_merge import answer as answer
from aulait.methods.shared.svd_merge import init as init
from aulait.methods.shared.svd_merge import result as result
from aulait.methods.shared.svd_merge import travels as travels

TRAITS = described(__name__, __doc__, Abilities(secure=False, units=("client", "record")))


class RaFLoRAConfig(svd_merge.SVDConfig):
    """``[algorithm] name = "raflora"``."""


Config = RaFLoRAConfig


def step(config: RaFLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send every rank its best approximation, merge by columns, decompose again."""
    if server.aggregator.private:
        return svd_merge.private_round(config, context, state, cohort, server)
    return svd_merge.open_round(config, context, state, cohort, server, partition=True)
