"""Here mypy holds every built-in method to its contract: a module that lacks a function of
``Method``, or has it with other types, is an error of ``make check``. A test compares the list with
the registry."""

from aulait.methods import (
    alone,
    cores,
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
from aulait.methods.contract import AnyMethod

TYPED: tuple[AnyMethod, ...] = (
    alone, cores, dplora, fdlora, fedex, fedit, fedsa, ffa, flexlora, flora, hetlora, lorafair,
    rolora, safedlora, splitlora)
