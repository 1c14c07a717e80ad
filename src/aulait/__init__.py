"""aulait: fine-tune language models across institutions that cannot pool their text and do not own
the same machines.

The names below are the Python API; torch is imported when one of them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from aulait.core.version import PACKAGE_VERSION

if TYPE_CHECKING:
    from aulait.engines.notebook import NotebookProgress
    from aulait.engines.python_api import FinishedRun, compare, load_run, plan, run, sweep
    from aulait.runs.experiment_file import Settings
    from aulait.training.own_training import SiteTraining

__version__ = PACKAGE_VERSION
__all__ = ["FinishedRun", "NotebookProgress", "Settings", "SiteTraining", "__version__", "compare",
           "load_run", "plan", "run", "sweep"]
PLACES = {"Settings": "aulait.runs.experiment_file",
          "SiteTraining": "aulait.training.own_training",
          "NotebookProgress": "aulait.engines.notebook"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'aulait' has no attribute '{name}'")
    return getattr(import_module(PLACES.get(name, "aulait.engines.python_api")), name)


def __dir__() -> list[str]:
    """What a notebook offers after ``aulait.``"""
    return sorted(__all__)
