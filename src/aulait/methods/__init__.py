"""The methods, one file each; importing this package files them in the registry."""

from collections.abc import Mapping

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
from aulait.methods.contract import AnyMethod

BUILT_IN: Mapping[str, AnyMethod] = {
    "alone": alone, "dplora": dplora, "fdlora": fdlora, "fedex": fedex, "fedit": fedit,
    "fedsa": fedsa, "ffa": ffa, "flexlora": flexlora, "flora": flora, "hetlora": hetlora,
    "lorafair": lorafair, "rolora": rolora, "safedlora": safedlora, "splitlora": splitlora,
}
for _name, _method in BUILT_IN.items():
    register("algorithm", _name)(_method)
