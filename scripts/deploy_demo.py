"""`make deploy-demo`: a server and five sites on this machine, over TLS; and the same run in one
process."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from aulait.engines.flower.demo import demonstrate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path,
                        default=Path("runs") / f"deploy-demo-{datetime.now():%Y%m%d-%H%M%S}")
    parser.add_argument("--small", action="store_true", help="fewer rounds and records")
    asked = parser.parse_args()
    found = demonstrate(asked.out, lambda line: print(line, flush=True), small=asked.small)
    print(f"loss on held-out records: {found.loss:.6f} deployed, {found.loss_inline:.6f} in one "
          "process")
    print(f"largest difference of the adapters: {found.difference:.2e} "
          f"({'the same' if found.same else 'NOT the same'} to 1e-5)")
    print("scores, traffic, synthetic texts: "
          f"{'differ in ' + ', '.join(found.differing) if found.differing else 'the same'}")
    print(f"base loaded by each site: {found.loads}")
    print(f"seconds: {found.seconds:.0f} deployed, {found.seconds_inline:.0f} in one process")
    print(f"report: {asked.out / 'deployed' / 'report.html'}")
    return 0 if found.same else 1


if __name__ == "__main__":
    sys.exit(main())
