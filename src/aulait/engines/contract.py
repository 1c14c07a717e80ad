"""What an engine is: how a run reaches its clients.

``Engine`` is a Protocol, defined where the loop stands that uses it (``aulait.runs.prepared``). To
add one, write a class with its members: ``clients`` and ``real_time`` say where records lie and
whose seconds pass, ``connect`` carries requests to sites and updates back, ``evaluate`` scores
held-out records wherever they lie, ``secure_sum`` begins a sum of which nobody sees a part,
``personal`` gives the adapters of clients' own that are here, ``close`` ends what was started for a
run.
``inline`` is the smallest.
"""

from __future__ import annotations

from aulait.runs.prepared import Engine, HeldOutScores, PreparedRun

__all__ = ["Engine", "HeldOutScores", "PreparedRun"]
