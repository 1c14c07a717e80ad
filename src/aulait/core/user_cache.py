"""Where aulait keeps what it has made once and can make again: converted models, vectors of public
corpora.

``AULAIT_CACHE`` names the folder; without it, it is ``aulait`` in ``XDG_CACHE_HOME``, and without
that ``~/.cache/aulait``. Whatever lies there may be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from aulait.core.places import user_path

VARIABLE: Final = "AULAIT_CACHE"


def user_cache() -> Path:
    """The folder; it need not exist."""
    own = os.environ.get(VARIABLE)
    if own:
        return user_path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # a relative path there is to be ignored (XDG Base Directory Specification)
    root = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return root / "aulait"
