"""Names to the things they stand for: methods, data sources, embedders, generators, mechanisms.

Every kind has one ``Registry`` beside its contract: ``METHODS`` in ``aulait.methods``, ``SOURCES``
in ``aulait.data.sources``, ``EMBEDDERS`` in ``aulait.synthesis.embedding`` and so on. Built-in
names lead to a place in the package, written as entry points are (``module`` or
``module:attribute``), and are imported when they are asked for. A third party adds its own through
the entry-point group ``aulait.<kind>`` of its distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from aulait.core.errors import ConfigError, did_you_mean

Thing = TypeVar("Thing", covariant=True)
Filed = TypeVar("Filed")


class Registry(Generic[Thing]):
    """All things of one kind by their names.

    Attributes:
        kind: "algorithm", "source" and so on; the end of the entry-point group's name.
        built_in: name -> where in the package it stands, as ``module`` or ``module:attribute``.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str],
                 fault: Callable[[Thing], str] | None = None,
                 elsewhere: Mapping[str, str] = MappingProxyType({})) -> None:
        """See the class.

        Args:
            kind: see the class.
            built_in: see the class.
            fault: what a third party's thing lacks of its contract, such as "no init"; empty where
                nothing is missing. None asks for nothing.
            elsewhere: names that other systems use, with what to write here.
        """
        self.kind = kind
        self.built_in = built_in
        self._fault = fault
        self._elsewhere = elsewhere
        self._registered: dict[str, Thing] = {}

    def register(self, name: str) -> Callable[[Filed], Filed]:
        """Decorator that files a thing of this process under a name.

        Raises:
            ConfigError: the name is taken.
        """

        def file(thing: Filed) -> Filed:
            if name in self.built_in or self._registered.get(name, thing) is not thing:
                raise ConfigError(
                    f"{self.kind} '{name}' is registered twice; choose another name")
            self._registered[name] = cast(Thing, thing)
            return thing

        return file

    def __contains__(self, name: object) -> bool:
        """Whether a name is known; what it stands for may still be broken."""
        return name in self.built_in or name in self._registered or name in self._installed()

    def find(self, name: str) -> Thing:
        """The thing of a name.

        Raises:
            ConfigError: nothing has that name, and the message names the nearest one; or a third
                party's thing is broken.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self.built_in:
            return cast(Thing, EntryPoint(name, self.built_in[name], self._group).load())
        if unknown := self.unknown(name):
            raise ConfigError(unknown)
        self._registered[name] = self._loaded(self._installed()[name])
        return self._registered[name]

    def unknown(self, name: str) -> str:
        """One line about a name that nothing has, with the nearest one; empty where it is known.
        Nothing is imported."""
        if name in self:
            return ""
        if told := self._elsewhere.get(name.lower()):
            return f"{self.kind} '{name}' is unknown; {told}"
        known = [*self.built_in, *self._registered, *self._installed()]
        return f"{self.kind} '{name}' is unknown; {did_you_mean(name, known)}"

    def names(self) -> list[str]:
        """All names that are built in or registered in this process, sorted."""
        return sorted({*self.built_in, *self._registered})

    def third_party(self) -> tuple[dict[str, Thing], list[str]]:
        """What other distributions add, by name, and one line about each that is broken."""
        sound: dict[str, Thing] = {}
        broken = []
        for name, point in sorted(self._installed().items()):
            try:
                sound[name] = self.find(name)
            except ConfigError as error:
                broken.append(str(error))
            if name in self.built_in:
                broken.append(f"{self._whose(point)} has the name of a built-in one, which is "
                              "used; rename it")
                del sound[name]
        return sound, broken

    def _installed(self) -> dict[str, EntryPoint]:
        """The entry points of this kind; of two with one name the first one found."""
        return {point.name: point for point in reversed(entry_points(group=self._group))}

    @property
    def _group(self) -> str:
        return f"aulait.{self.kind}"

    def _loaded(self, point: EntryPoint) -> Thing:
        """A third party's thing, once it is known to keep the contract."""
        try:
            thing = cast(Thing, point.load())
            fault = self._fault(thing) if self._fault else ""
        except Exception as error:  # a stranger's module may raise anything while it is imported
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if fault:
            raise ConfigError(f"{self._whose(point)} is broken ({fault}); correct or uninstall it")
        return thing

    def _whose(self, point: EntryPoint) -> str:
        owner = f"distribution {point.dist.name}" if point.dist else f"module {point.module}"
        return f"{self.kind} '{point.name}' of the {owner}"


def missing_names(thing: object, functions: Sequence[str], values: Sequence[str] = ()) -> str:
    """What of a contract's names a module or an object lacks, on one line; empty for nothing.

    Args:
        thing: a module or an object.
        functions: names that can be called.
        values: names that only have to be there.
    """
    absent = [f"no {name}" for name in (*values, *functions) if not hasattr(thing, name)]
    odd = [f"{name} cannot be called" for name in functions
           if hasattr(thing, name) and not callable(getattr(thing, name))]
    return "; ".join([*absent, *odd])
