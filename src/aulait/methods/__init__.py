"""The methods, one file each; importing this package files them in the registry."""

from aulait.core.registry import register
from aulait.methods import (
    alone,
    dplora,
    fdlora,
    fedex,
    fedit,
    fedsa,
    ffa,
    flexlora,
    flora,
    hetlora,
    lorafair,
    rolora,
    safedlora,
    splitlora,
)

for _method in (alone, dplora, fdlora, fedex, fedit, fedsa, ffa, flexlora, flora, hetlora, lorafair,
                rolora, safedlora, splitlora):
    register("algorithm", _method.__name__.rpartition(".")[2])(_method)
