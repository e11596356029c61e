"""What all runs share: the client, the expected failures, and the summary of a run.

CLIENT_URL and CLIENT_KEY name the API and the caller.
"""

import os
import time
import tomllib
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from client import Client

EXPECTED = Path(__file__).with_name("expected_failures.toml")
# The largest part of a run's time that may be spent waiting for rate windows.
LARGEST_SHARE = 0.1
# A non-root user of the environments' image.
USER = {
    "security_context": {
        "run_as_user": 1000,
        "run_as_group": 1000,
        "run_as_non_root": True,
    }
}


class Run:
    """One run of one suite."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.clients: list[Client] = []

    def new_client(self) -> Client:
        client = Client(os.environ["CLIENT_URL"], os.environ["CLIENT_KEY"])
        self.clients.append(client)
        return client

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        return sum(client.waited for client in self.clients) / self.seconds


RUN = pytest.StashKey[Run]()


def pytest_addoption(parser):
    parser.addoption("--run-name", required=True, help="a name of expected_failures.toml")
    parser.addoption("--results", required=True, help="the file that gets a line of counts")


def pytest_configure(config):
    config.stash[RUN] = Run()


def pytest_collection_modifyitems(config, items):
    name = config.getoption("--run-name")
    expected = tomllib.loads(EXPECTED.read_text()).get(name, {})
    for item in items:
        reason = expected.pop(getattr(item, "originalname", item.name), None)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    if expected:
        raise pytest.UsageError(
            f"{EXPECTED.name}: [{name}] names cases that the suite does not have: "
            + ", ".join(expected)
        )


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
async def client(anyio_backend, pytestconfig):
    """The client of suites that are asynchronous."""
    client = pytestconfig.stash[RUN].new_client()
    yield client
    await client.close()


@pytest.fixture(scope="session")
def portal():
    """Runs the client of suites that are not asynchronous, in a thread of its own."""
    with start_blocking_portal("asyncio") as portal:
        yield portal


@pytest.fixture(scope="session")
def portal_client(portal, pytestconfig):
    client = pytestconfig.stash[RUN].new_client()
    yield client
    portal.call(client.close)


@pytest.fixture(scope="session")
def user():
    """The isolation of an environment that does not run as root."""
    return USER


def _counts(reporter):
    def number(*categories):
        return sum(len(reporter.stats.get(category, [])) for category in categories)

    return number("passed"), number("failed", "error"), number("xfailed"), number("skipped")


def pytest_sessionfinish(session):
    if session.config.stash[RUN].share > LARGEST_SHARE:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    name = config.getoption("--run-name")
    run = config.stash[RUN]
    passed, failed, expected, skipped = _counts(terminalreporter)
    for report in terminalreporter.stats.get("xfailed", []):
        case = report.nodeid.rpartition("::")[2]
        terminalreporter.write_line(f"fails as expected: {case}: {report.wasxfail}")
    for report in terminalreporter.stats.get("skipped", []):
        case = report.nodeid.rpartition("::")[2]
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        terminalreporter.write_line(f"skipped: {case}: {reason}")
    if run.share > LARGEST_SHARE:
        failed += 1
        terminalreporter.write_line(
            f"waiting for rate windows: must be at most {LARGEST_SHARE:.0%} of the time, "
            f"was {run.share:.0%}"
        )
    line = (
        f"{name}: {passed} of {passed + failed + expected + skipped} passed, {failed} failed, "
        f"{expected} failed as expected, {skipped} skipped, {run.seconds:.0f} s, "
        f"{run.share:.0%} of them waiting for rate windows"
    )
    with open(config.getoption("--results"), "a") as results:
        results.write(f"{passed} {failed} {line}\n")
