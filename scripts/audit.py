"""Ask for known vulnerabilities of what is installed, and say so where nobody could be asked.

    make audit

pip-audit passes over packages that its service does not know, and an index that stands in for PyPI
knows of no vulnerability at all: an audit of nothing must not look like a clean one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parents[1] / ".venv-audit" / "bin" / "python"


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit code and lines for a report of pip-audit.

    Code 0: each package was looked up, and none has a known vulnerability. 1: some have. 2: for
    some nothing could be found out.
    """
    packages = report["dependencies"]
    asked = [package for package in packages if "vulns" in package]
    unknown = [p for p in packages if "editable" not in p.get("skip_reason", "editable")]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for package in asked
        for found in package["vulns"]
    ]
    code = 1 if lines else 0
    lines.append(f"{len(asked)} packages were looked up: {len(lines)} known vulnerabilities")
    if unknown or not asked:
        lines.append(
            f"{len(unknown)} packages could not be looked up, such as "
            f"{unknown[0]['skip_reason'] if unknown else 'all'}: of those nothing is known. Is the "
            "service of vulnerabilities reached from here (https, a proxy)?"
        )
        code = code or 2
    return code, lines


def main() -> None:
    """Audit, and exit with the verdict."""
    options = ["--skip-editable", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [TOOLS, "-m", "pip_audit", *options],
        env=os.environ | {"PIPAPI_PYTHON_LOCATION": sys.executable},  # what is audited
        capture_output=True,
        text=True,
    )
    try:
        code, lines = verdict(json.loads(done.stdout))
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.exit(
            "nothing was audited: the service of vulnerabilities is not reached from here "
            f"({reason}). Run make audit where https to it is open."
        )
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
