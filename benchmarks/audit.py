"""Known vulnerabilities among the packages of this environment, by pip-audit.

    python -m benchmarks.audit

Exit code 1 for a vulnerability. Where the advisory service cannot be reached within two minutes,
this is said and passes: a change must not wait for another's server.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.common import ROOT

SECONDS = 120
PIN = re.compile(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.+!-]+)")


def pinned() -> list[str]:
    """Return the pins of constraints.txt that are installed here, without local build tags."""
    found = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if match := PIN.match(line):
            try:
                version(match[1])
            except PackageNotFoundError:
                continue
            found.append(f"{match[1]}=={match[2].partition('+')[0]}")
    return found


def audit(command: list[str], seconds: float = SECONDS) -> int:
    """Run `command --requirement PINS`; return the exit code of this program, having said why."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("\n".join(pinned()) + "\n", encoding="utf-8")
        try:
            done = subprocess.run(
                [*command, "--requirement", str(pins)],
                capture_output=True,
                text=True,
                timeout=seconds,
                env={**os.environ, "COLUMNS": "200"},
            )
        except subprocess.TimeoutExpired:
            print(f"not audited: the advisory service gave no answer in {seconds:g} s")
            return 0
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"not audited: {reason}")
        return 0
    bad = [
        f"{package['name']} {package['version']}: {found['id']}, "
        f"fixed in {', '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    away = [package for package in packages if "skip_reason" in package]
    if away:
        print(f"not audited, {len(away)} of {len(packages)}: {away[0]['skip_reason']}")
    if known := len(packages) - len(away):
        print("\n".join(bad) or f"{known} packages, no known vulnerability")
    return bool(bad)


def main() -> None:
    """Audit."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip"]
    sys.exit(audit([*command, "--format", "json", "--progress-spinner", "off", "--timeout", "15"]))


if __name__ == "__main__":
    main()
