"""aulait: fine-tune language models across institutions that cannot pool their text and do not own
the same machines.

The names below are the Python API; torch is imported when one of them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from aulait.core.version import PACKAGE_VERSION

if TYPE_CHECKING:
    from aulait.engines.python_api import FinishedRun, compare, load_run, plan, run, sweep
    from aulait.runs.experiment_file import Settings

__version__ = PACKAGE_VERSION
__all__ = ["FinishedRun", "Settings", "__version__", "compare", "load_run", "plan", "run", "sweep"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'aulait' has no attribute '{name}'")
    settings = name == "Settings"
    place = "aulait.runs.experiment_file" if settings else "aulait.engines.python_api"
    return getattr(import_module(place), name)
