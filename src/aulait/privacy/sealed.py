"""Updates of clients as methods hold them under privacy: named, and closed.

Under privacy the round loop gives a method ``SealedUpdate``s in the place of updates. Such a value
has the client's name and nothing else; to read its tensors, weight or diagnostics raises. What was
closed lies in the ``Seal`` of the private aggregator, which opens it when it releases a sum. So
code that holds an update cannot use it by accident, nor copy, store or send it: a method that
averages updates by itself ends in an error and not in a model.

What this does not stop. Python hides nothing from code that means to look: the aggregator's own
attributes, the garbage collector and stack frames lead to every object of the process. A
``transform`` that a method gives to the aggregator is called with an open update; it sees copies
that are overwritten when it returns, but may have copied those. And ``answer`` runs at the site,
with its records. A method, an engine or another plug-in is therefore trusted code: read it before
it is installed. The seal keeps honest code right; it is no wall against dishonest code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn
from weakref import WeakKeyDictionary

from aulait.core.errors import PrivacyError
from aulait.core.types import ClientUpdate, Info, Tensors


class SealedUpdate(ClientUpdate):
    """An update that only the private aggregator can read.

    Attributes:
        client: name of the site.

    Raises:
        PrivacyError: anything else is read; or it is copied or stored.
    """

    def __init__(self, client: str) -> None:
        object.__setattr__(self, "client", client)

    @property
    def tensors(self) -> Tensors:
        """Closed."""
        self._refuse("tensors")

    @property
    def weight(self) -> float:
        """Closed."""
        self._refuse("weight")

    @property
    def info(self) -> Info:
        """Closed."""
        self._refuse("info")

    def __reduce__(self) -> NoReturn:
        self._refuse("content")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"SealedUpdate({self.client!r})"

    def _refuse(self, what: str) -> NoReturn:
        raise PrivacyError(
            f"the {what} of the update of client '{self.client}' is read outside the aggregator, "
            "which privacy forbids; use server.aggregator.release, or set privacy.off = true")


class Seal:
    """Closes updates, and opens those that it has closed itself."""

    def __init__(self) -> None:
        self._closed: WeakKeyDictionary[SealedUpdate, ClientUpdate] = WeakKeyDictionary()

    def close(self, update: ClientUpdate) -> SealedUpdate:
        """The update without its content, which is kept as long as somebody holds the result."""
        sealed = SealedUpdate(update.client)
        self._closed[sealed] = update
        return sealed

    def opened(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """The updates as they come, those that are closed opened. A name comes from the content,
        never from the outside.

        Raises:
            PrivacyError: another seal has closed one.
        """
        for update in updates:
            if not isinstance(update, SealedUpdate):
                yield update
                continue
            found = self._closed.get(update)
            if found is None:
                raise PrivacyError(f"the update of client '{update.client}' was closed for another "
                                   "aggregator; give it to that of its own round")
            yield found


def forgotten_after(
    transform: Callable[[ClientUpdate], Tensors]
) -> Callable[[ClientUpdate], Tensors]:
    """A method's transform, called with copies of an update's tensors that are overwritten with
    zeros when it returns, without weight and diagnostics; what it returns is copied before."""

    def apply(update: ClientUpdate) -> Tensors:
        lent = {name: value.detach().clone() for name, value in update.tensors.items()}
        try:
            made = transform(ClientUpdate(update.client, lent))
            return {name: value.detach().clone() for name, value in made.items()}
        finally:
            for value in lent.values():
                value.zero_()

    return apply
