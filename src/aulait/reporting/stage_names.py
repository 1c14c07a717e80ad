"""What the stages of a run are called wherever somebody reads of them.

They have no numbers: a run may have its stages in another order, or by turns.
"""

from typing import Final

STAGE_NAMES: Final = {"synthesis": "synthesis", "train": "training"}
