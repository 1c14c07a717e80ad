"""The methods, one file each; importing this package files them in the registry."""

from aulait.algorithms import (
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
from aulait.registry import register

for _method in (alone, dplora, fdlora, fedex, fedit, fedsa, ffa, flexlora, flora, hetlora, lorafair, rolora, safedlora, splitlora):
    register("algorithm", _method.__name__.rpartition(".")[2])(_method)
