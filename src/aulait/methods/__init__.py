"""The methods by name, one file each; a method's module is loaded when it is asked for.

``contract.find_method`` gives a module as the type that it satisfies; this file does without it, as
the contract loads torch and a list of names does not need that.
"""

from __future__ import annotations

from types import ModuleType

from aulait.core.registry import Registry, missing_names


def _fault(method: ModuleType) -> str:
    """What a third party's method lacks of the contract."""
    return missing_names(method, ("Config", "init", "step", "answer", "result", "travels"),
                         ("TRAITS",))


METHODS: Registry[ModuleType] = Registry("algorithm", {
    name: f"aulait.methods.{name}" for name in (
        "alone", "cores", "dplora", "fdlora", "fedavg", "fedex", "fedit", "fedplora", "fedprox",
        "fedrot", "fedsa", "fedsvd", "ffa", "flexlora", "flora", "florist", "hetlora",
        "hsplitlora", "lalora", "lorafair", "raflora", "rolora", "safedlora", "scaffold",
        "splitlora",
    )
}, _fault, {
    "fedadam": "it is 'fedavg' with algorithm.server = 'adam' here",
    "fedavgm": "it is 'fedavg' with algorithm.server = 'momentum' here",
    "lora": "federated LoRA by averaging the factors is 'fedit' here",
    "fedrot-lora": "write 'fedrot'", "fed-plora": "write 'fedplora'", "la-lora": "write 'lalora'",
    "ffa-lora": "write 'ffa'", "ffalora": "write 'ffa'", "fed-sb": "the nearest is 'cores'",
    "lora-xs": "the nearest is 'cores'",
})
