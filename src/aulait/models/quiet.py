"""Loading without the library's own progress bars and advice."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars and advice; failures still raise."""
    # takes seconds to import
    from transformers.utils import logging as chatter

    level = chatter.get_verbosity()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            chatter.set_verbosity(level)
            logging.getLogger("transformers").setLevel(logging.ERROR)
