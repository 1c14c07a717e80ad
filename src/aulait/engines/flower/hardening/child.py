"""Every Flower process we start: ``python -P -m aulait.engines.flower.hardening.child ROLE
WORD...``.

The role is the name of Flower's executable, which is run by its own function once the holes that
``supernode.py``, ``clientapp.py`` and ``superlink.py`` describe are closed. A role that has no
business on this machine is refused. Every process ends soon after the one that started it, also
when that one was killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from filelock import FileLock

from aulait.engines.flower.hardening.patching import carry_pass, clients, part, tell, watch

_LEADERS = ("flower-superlink", "flower-supernode")


def main(words: list[str]) -> None:
    """Become one of Flower's processes.

    Args:
        words: the role and its words; ``flwr-clientapp`` has the app of the site in front of them,
            ``refuse`` a name.
    """
    role, *rest = words
    watch(os.getppid(), role in _LEADERS)
    app = rest.pop(0) if role in ("flwr-clientapp", "refuse") else ""
    sys.argv = [role, *rest]
    # Each role loads its own file alone: the start of a client process is paid at every message.
    if role == "flower-superlink":
        # the file of this role alone, as said above
        from aulait.engines.flower.hardening.superlink import superlink

        superlink()
    elif role == "flower-supernode":
        # the file of this role alone, as said above
        from aulait.engines.flower.hardening.supernode import supernode

        supernode()
    elif role == "flwr-clientapp":
        # the file of this role alone, as said above
        from aulait.engines.flower.hardening.clientapp import clientapp

        clientapp(app)
    elif role == "flower-superexec":
        clients(carry_pass)
        part("flwr.supercore.cli.flower_superexec", "flower_superexec")()
    elif role == "flwr-serverapp":
        clients(carry_pass)
        held = _hold(Path(os.environ["AULAIT_APP_LOCK"]))
        part("flwr.superlink.cli.flwr_serverapp", "flwr_serverapp")()
        held.release()
    else:
        tell("refused", what=f"a task of {app or role}")
        print(f"aulait: a task of {app or role} was refused; this machine runs none",
              file=sys.stderr, flush=True)
        sys.exit(1)


def _hold(path: Path) -> FileLock:
    """Lock a file until this process dies, however it dies: one server app at a time.

    It waits: whoever asks whether the lock is held takes it for a moment. The lock is let go when
    the returned object is forgotten.
    """
    lock = FileLock(path, mode=0o600)
    lock.acquire()
    return lock


if __name__ == "__main__":
    main(sys.argv[1:])
