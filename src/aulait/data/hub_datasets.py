"""Rows of a dataset of the Hugging Face hub, or of a folder that ``datasets`` understands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from aulait.core import hub
from aulait.core.errors import DataError
from aulait.core.places import is_file, is_folder, user_path
from aulait.data.source_row import Asked, SourceRow


def hub_rows(source: str, asked: Asked) -> Iterator[SourceRow]:
    """The rows of ``hf:<dataset>[:<config>][:<split>]``.

    Raises:
        DataError: the dataset cannot be loaded.
    """
    for number, fields in enumerate(_table(source, asked.fields), 1):
        yield SourceRow(f"{source} row {number}", fields)


def _table(source: str, fields: Sequence[str]) -> Any:
    dataset, config, split = hub_parts(source[3:])
    folder = user_path(dataset)
    hub.settle(dataset)
    try:
        # takes seconds to import
        import datasets

        if any(is_file(folder / mark) for mark in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(folder))
            table = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            table = datasets.load_dataset(str(folder) if is_folder(folder) else dataset, config,
                split=split)
    except Exception as error:  # the library raises many kinds; all mean that there are no data
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"data source '{source}' cannot be loaded ({type(error).__name__}: {reason}); expected "
            "a dataset of the Hugging Face hub or a local folder; check its name, the split and "
            "the network"
        ) from error
    known = [name for name in table.column_names if name in fields]
    return table.select_columns(known) if known else table


def hub_parts(written: str) -> tuple[str, str | None, str]:
    """Dataset, configuration (None: the default one) and split; colons inside a path belong to the
    path."""
    head, *words = re.split(r":(?![^:]*[/\\])", written)
    if len(words) > 1:
        return head, words[0] or None, words[1] or "train"
    return head, None, words[0] if words and words[0] else "train"
