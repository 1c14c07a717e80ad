"""A worker's process: ``python -m aulait.engines.workers.child``, started by ``ProcessWorker``.

It reads what to load, then share after share, from its standard input and answers on its standard
output, until the input ends: so it does not outlive the run that started it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import cast

from aulait.engines.workers.contract import WorkerSetup, WorkerShare, carried_out, loaded
from aulait.engines.workers.messages import WorkerReply, packed, receive, send, unpacked
from aulait.training.trainer import Learner


def main() -> None:
    """Serve one run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the run, which ends this
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between
    learner: Learner | None = None
    while (message := receive(sys.stdin.buffer)) is not None:
        try:
            if learner is None:
                learner = loaded(cast(WorkerSetup, unpacked(message)))
                reply = WorkerReply()
            else:
                reply = WorkerReply(carried_out(learner, cast(WorkerShare, unpacked(message))))
        except Exception as error:  # told to the run, which ends with it
            reply = WorkerReply.failed(error)
        try:
            send(replies, packed(reply))
        except BrokenPipeError:  # the run is gone
            os._exit(0)


if __name__ == "__main__":
    main()
