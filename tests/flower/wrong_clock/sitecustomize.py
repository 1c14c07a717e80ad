"""A wrong clock for the Python processes of a site: this folder on PYTHONPATH, seconds in TRIAL_CLOCK_S.

Python reads it at its start. Shifted is what Flower signs and stamps with, and ``time.time``; what measures durations is not.
"""

import datetime
import os
import sys
import time

BY_S = float(os.environ.get("TRIAL_CLOCK_S", "0"))

if BY_S:
    import flwr.supercore.date as flower

    _time, _now = time.time, flower.now
    time.time = lambda: _time() + BY_S
    for module in list(sys.modules.values()):  # those that have taken the name already, with messages among them
        if getattr(module, "now", None) is _now:
            module.now = lambda: _now() + datetime.timedelta(seconds=BY_S)
