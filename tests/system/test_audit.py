"""The audit and the bill of materials say so when they have found out nothing."""

import json
import sys
from importlib.metadata import distributions

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import audit
import sbom

SOUND = {"name": "numpy", "version": "2.4.0", "vulns": []}
EDITABLE = {"name": "reelscribe", "skip_reason": "distribution marked as editable"}
UNKNOWN = {"name": "ray", "skip_reason": "Dependency not found on PyPI: ray (2.60.0)"}
BAD = {"name": "x", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}


def test_an_audit_in_which_each_package_was_looked_up():
    assert audit.verdict({"dependencies": [SOUND, EDITABLE]}) == (
        0,
        ["1 packages were looked up: 0 known vulnerabilities"],
    )
    code, lines = audit.verdict({"dependencies": [SOUND, BAD]})
    assert (code, lines[0]) == (1, "x 1: PYSEC-1, fixed in 2")


@pytest.mark.parametrize("packages", [[SOUND, UNKNOWN], [UNKNOWN], []])
def test_an_audit_of_what_is_not_known_is_not_clean(packages):
    code, lines = audit.verdict({"dependencies": packages})
    assert code == 2
    assert "can reach the vulnerability service" in lines[-1]


def test_an_audit_without_a_service_says_that_nothing_was_audited(monkeypatch, tmp_path):
    """A pip-audit that fails to connect: it prints why, and no report."""
    (tmp_path / "pip_audit.py").write_text("import sys; sys.exit('Could not connect to the feed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(audit, "TOOLS", sys.executable)
    with pytest.raises(SystemExit, match=r"nothing was audited: .*Could not connect to the feed"):
        audit.main()


def test_a_bill_of_materials_that_lacks_packages_is_refused():
    bill = {"components": [{"name": "Numpy"}, {"name": "pydantic-core"}]}
    assert sbom.missing(bill, {"numpy", "pydantic_core"}) == []
    assert sbom.missing({}, {"numpy", "ray"}) == ["numpy", "ray"]


@pytest.mark.skipif(not sbom.TOOLS.exists(), reason="no .venv-audit: `make test` makes it")
def test_the_bill_of_materials_lists_what_is_installed(tmp_path):
    count = sbom.write(tmp_path / "sbom.json")
    names = {c["name"] for c in json.loads((tmp_path / "sbom.json").read_text())["components"]}
    assert {"torch", "ray", "pyarrow", "transformers"} <= names
    assert count > len({found.metadata["Name"] for found in distributions()}) / 2
