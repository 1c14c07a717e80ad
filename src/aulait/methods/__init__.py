"""The methods by name, one file each; a method's module is loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aulait.core.registry import Registry, missing_names

if TYPE_CHECKING:  # loads torch, which a list of names can do without
    from aulait.methods.contract import AnyMethod


def _fault(method: AnyMethod) -> str:
    """What a third party's method lacks of the contract."""
    return missing_names(method, ("Config", "init", "step", "answer", "result", "travels"),
                         ("TRAITS",))


METHODS: Registry[AnyMethod] = Registry("algorithm", {
    name: f"aulait.methods.{name}" for name in (
        "alone", "dplora", "fdlora", "fedex", "fedit", "fedsa", "ffa", "flexlora", "flora",
        "hetlora", "lorafair", "rolora", "safedlora", "splitlora",
    )
}, _fault)
