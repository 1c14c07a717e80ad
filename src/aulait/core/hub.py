"""Whether the Hugging Face hub can be reached, asked once and before its libraries do.

They try again for half a minute at each file, and for each file that a model may have. Where the
hub does not answer at once they are put into their offline mode instead: what is in their cache is
found there, and what is not fails at once.
"""

from __future__ import annotations

import os
import ssl
import sys
import threading
import urllib.error
import urllib.request
from typing import Final

from aulait.core.places import is_there, user_path

PATIENCE_S: Final = 1.5  # for the hub's first answer
DEFAULT: Final = "https://huggingface.co"
OFFLINE: Final = "HF_HUB_OFFLINE"
OURS: Final = "YES"  # what it is set to here, which the libraries read as they do "1"
# modules that have read the variable when they were imported, and the name under which they keep it
READERS: Final = (("huggingface_hub.constants", OFFLINE), ("datasets.config", OFFLINE))


def settle(name: str) -> None:
    """Before something is loaded by its name on the hub, or from a folder: offline mode where the
    hub cannot be reached. It is asked again at the next name, as networks come back.

    Args:
        name: a hub id, or a path, for which nobody is asked.
    """
    if is_there(user_path(name)) or os.environ.get(OFFLINE, "0") not in ("", "0", OURS):
        return
    if reachable(os.environ.get("HF_ENDPOINT", DEFAULT)):
        _set_offline(False)
    else:
        _set_offline(True)


def offline() -> bool:
    """Whether the libraries are told to ask nobody, by the user or by ``settle``."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def reachable(address: str) -> bool:
    """Whether a server answers anything within ``PATIENCE_S``; looking up its name may hang longer,
    and is then left to itself."""
    answered = threading.Event()

    def ask() -> None:
        try:
            asked = urllib.request.Request(address, method="HEAD")
            # a HEAD whose answer nobody reads
            urllib.request.urlopen(asked, timeout=PATIENCE_S).close()  # nosec B310
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, ValueError) as error:
            # whom to trust is the libraries' to decide: a certificate is an answer
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S + 0.3)
    return answered.is_set()


def _set_offline(offline: bool) -> None:
    """The mode of the hub's libraries, of those that are imported already as well."""
    if not offline and os.environ.get(OFFLINE) != OURS:
        return
    os.environ[OFFLINE] = OURS if offline else "0"
    for module, attribute in READERS:
        if module in sys.modules:
            setattr(sys.modules[module], attribute, offline)
