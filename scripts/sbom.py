"""Write a software bill of materials (CycloneDX) of the installed packages; check it is complete.

make sbom
"""

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parents[1] / ".venv-audit" / "bin" / "python"


def missing(bill: dict[str, Any], installed: set[str]) -> list[str]:
    """Installed packages that a bill of materials does not list."""
    listed = {_normal(component["name"]) for component in bill.get("components", [])}
    root = bill.get("metadata", {}).get("component", {}).get("name", "")
    return sorted({_normal(name) for name in installed} - listed - {_normal(root)})


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def write(path: Path) -> int:
    """Write the bill of this interpreter's environment; returns its number of components.

    Raises:
        SystemExit: it does not list what is installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [TOOLS, "-m", "cyclonedx_py", "environment", sys.executable]
    options = ["--no-validate", "--output-reproducible", "--output-file", str(path)]
    subprocess.run([*command, *options], check=True)
    bill = json.loads(path.read_text())
    installed = {found.metadata["Name"] for found in distributions()}
    if lost := missing(bill, installed):
        sys.exit(f"{path} lacks {len(lost)} of {len(installed)} packages, such as {lost[:5]}")
    return len(bill["components"])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(f"{write(target)} components: {target}")
