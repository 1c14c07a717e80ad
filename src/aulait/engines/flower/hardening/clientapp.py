"""The inside of the process that answers one message: the site's own app always answers.

- Nothing that the server ships is installed or imported.
- An exception's text, which may hold data, stays in the site's log; the server is told that
  something failed.

Flower starts this process for every message, so the file loads nothing of Flower's before it must.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, Final

from aulait.engines.flower.hardening.patching import (
    carry_pass,
    clients,
    part,
    require_names,
    swap,
)
from aulait.engines.flower.hardening.private_names import names_of

_RUN: Final = "flwr.supernode.runtime.run_clientapp"
_APP: Final = "flwr.supernode.cli.flwr_clientapp"


def clientapp(app: str) -> None:
    """``flwr-clientapp`` that runs the app of this site, whatever was shipped.

    Args:
        app: as ``module:name``.
    """
    _without_front(_APP.rpartition(".")[0])
    require_names(names_of("clientapp"))
    clients(carry_pass)
    swap(_RUN, "install_from_fab", lambda *_args, **_options: None)
    swap(_RUN, "get_project_dir", lambda *_args: "")
    swap(_RUN, "install_app_dependencies", _never)
    swap(_RUN, "get_load_client_app_fn", lambda **_options: lambda *_ids: _discreet(app))
    part(_APP, "flwr_clientapp")()


def _without_front(package: str) -> None:
    """Let files of a package of Flower's be loaded without the package's own first file.

    That one loads the whole SuperNode with its database, which a process that answers one message
        never uses: a third of
    the processor time of its start, at every message (``aulait bench deploy``).
    """
    # another Flower: what is missing is told by ``everything``
    with contextlib.suppress(ImportError):
        found = importlib.util.find_spec(package) if package not in sys.modules else None
        if found is not None:
            sys.modules[package] = importlib.util.module_from_spec(found)


def _never(*_args: Any, **_options: Any) -> None:
    raise RuntimeError("nothing is installed at a site")


def _discreet(where: str) -> Callable[..., Any]:
    """The site's app; what it says in an error stays in the log of the site."""
    module, _, name = where.partition(":")
    app = getattr(importlib.import_module(module), name)

    def answer(message: Any, context: Any) -> Any:
        try:
            return app(message=message, context=context)
        except Exception as error:
            print(f"aulait: the app of this site failed: {type(error).__name__}: {error}",
                  file=sys.stderr, flush=True)
        raise RuntimeError("the site could not answer; its own log says why")

    return answer
