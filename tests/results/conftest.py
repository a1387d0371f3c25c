"""A browser for the tests of the report."""

import json

import pytest

from tests.support.browser import chromium


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(driver):
    """A blank page, and afterwards: nothing was fetched from a network, nothing went wrong."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    yield driver
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in urls} <= {"file", "data", "about"}
