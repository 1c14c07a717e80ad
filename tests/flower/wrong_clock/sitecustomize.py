"""A wrong clock for the Python processes of a site: this folder on PYTHONPATH, seconds in TRIAL_CLOCK_S.

Python reads it at its start. Shifted is what Flower signs and stamps with, and ``time.time``; what measures durations is not.
"""

import datetime
import os
import time

BY_S = float(os.environ.get("TRIAL_CLOCK_S", "0"))

if BY_S:
    import flwr.supercore.date as flower

    _time, _now = time.time, flower.now
    time.time = lambda: _time() + BY_S
    flower.now = lambda: _now() + datetime.timedelta(seconds=BY_S)
