"""Look up known vulnerabilities of the installed packages; fail where the look-up fails.

    make audit

pip-audit skips packages that its service does not know, and a mirror of PyPI may have no
vulnerability data: an audit of nothing must not look like a clean one.
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

    Code 0: each package was looked up, and none has a known vulnerability. 1: some have. 2: some
    could not be looked up.
    """
    packages = report["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    unknown = [p for p in packages if "editable" not in p.get("skip_reason", "editable")]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for package in audited
        for found in package["vulns"]
    ]
    code = 1 if lines else 0
    lines.append(f"{len(audited)} packages were looked up: {len(lines)} known vulnerabilities")
    if unknown or not audited:
        lines.append(
            f"{len(unknown)} packages could not be looked up, such as "
            f"{unknown[0]['skip_reason'] if unknown else 'all'}. Check that this machine can "
            "reach the vulnerability service (https, a proxy)"
        )
        code = code or 2
    return code, lines


def main() -> None:
    """Audit, and exit with the verdict."""
    options = ["--skip-editable", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [TOOLS, "-m", "pip_audit", *options],
        env=os.environ | {"PIPAPI_PYTHON_LOCATION": sys.executable},  # the audited environment
        capture_output=True,
        text=True,
    )
    try:
        code, lines = verdict(json.loads(done.stdout))
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.exit(
            "nothing was audited: the vulnerability service cannot be reached from here "
            f"({reason}). Run make audit on a machine that can reach it."
        )
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
