"""Buffered asynchronous aggregation as its paper writes it: every version of the factors is kept, and
clients train from theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Factors = dict[str, np.ndarray]


def fedbuff(
    first: Factors,
    buffers: Sequence[Mapping[str, int]],
    train: Callable[[str, int, Factors], Factors],
    exponent: float,
) -> list[Factors]:
    """All versions of the factors.

    ``buffers``: client -> rounds that ended since it began. ``train``: (client, round in which it
    began, factors it began from) -> its change; of a client of lower rank it has leading columns,
    and each column is divided by the number of clients that have it.
    """
    versions = [{name: value.astype(np.float64) for name, value in first.items()}]
    for number, buffer in enumerate(buffers, 1):
        after = {name: value.copy() for name, value in versions[-1].items()}
        changes = []
        for client, age in buffer.items():
            began = number - age
            changes.append(((1.0 + age) ** -exponent, train(client, began, versions[began - 1])))
        for name, value in after.items():
            for place in np.ndindex(value.shape):
                own = [
                    (weight, change[name])
                    for weight, change in changes
                    if all(i < n for i, n in zip(place, change[name].shape, strict=True))
                ]
                if own:
                    value[place] += sum(
                        weight * float(change[place]) for weight, change in own
                    ) / len(own)
        versions.append(after)
    return versions
