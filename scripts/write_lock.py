"""Write the pinned requirements of deployments, with hashes: deploy/requirements-EXTRA.lock.

    python scripts/write_lock.py             # the plain installation, and that of the extra flower
    pip install --require-hashes -r deploy/requirements-flower.lock
    pip install --no-deps dist/aulait-*.whl

pip itself resolves the names, for the interpreter and the platform it runs on; each line holds what
it would install, and the hash of that very file. A version such as 2.13.0+cpu comes from a place of
your own (pip config list), and only whoever has that place can install from the lock.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("", "flower")


def wanted(extra: str) -> list[str]:
    """The requirements of the distribution, with those of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])]


def resolved(requirements: list[str]) -> list[dict[str, object]]:
    """What pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
             "--report", str(report), *requirements], check=True)
        return list(json.loads(report.read_text(encoding="utf-8"))["install"])


def lines(found: list[dict[str, object]]) -> list[str]:
    """A requirement a line, with its hash, by name."""
    told = []
    for item in found:
        metadata, download = item["metadata"], item["download_info"]
        digest = download["archive_info"]["hashes"]["sha256"]
        told.append(f"{metadata['name'].lower()}=={metadata['version']} --hash=sha256:{digest}")
    return sorted(told)


def main() -> None:
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for extra in EXTRAS:
        name = f"requirements-{extra}.lock" if extra else "requirements.lock"
        head = [f"# {where}; made by: python scripts/write_lock.py"]
        path = ROOT / "deploy" / name
        every = [*head, *lines(resolved(wanted(extra)))]
        path.write_text("\n".join(every) + "\n", encoding="utf-8")
        print(f"wrote {path}")
        for line in every[1:]:
            if "+" in line.partition(" ")[0]:
                print(f"  {line.partition(' ')[0]} is on no public index")


if __name__ == "__main__":
    main()
