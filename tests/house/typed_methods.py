"""Here mypy holds every built-in method to its contract: a module that lacks a function of
``Method``, or has it with other types, is an error of ``make check``. A test compares the list with
the registry."""

from aulait.methods import (
    alone,
    cores,
    dplora,
    fdlora,
    fedavg,
    fedex,
    fedit,
    fedplora,
    fedprox,
    fedrot,
    fedsa,
    fedsvd,
    ffa,
    flexlora,
    flora,
    florist,
    hetlora,
    hsplitlora,
    lalora,
    lorafair,
    raflora,
    rolora,
    safedlora,
    scaffold,
    splitlora,
)
from aulait.methods.contract import AnyMethod

TYPED: tuple[AnyMethod, ...] = (
    alone, cores, dplora, fdlora, fedavg, fedex, fedit, fedplora, fedprox, fedrot, fedsa,
    fedsvd, ffa, flexlora, flora, florist, hetlora, hsplitlora, lalora, lorafair, raflora,
    rolora, safedlora, scaffold, splitlora)
