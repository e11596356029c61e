"""sandboxio's contract of backends.

Skipped are the cases that need a slow create, a kill that hangs, or what the backend does not declare.
"""

import contextlib
import time

import anyio
import httpx
import pytest
from sandboxio.audit import AuditConfig
from sandboxio.models import Resources
from sandboxio.testing.suite import BackendContractSuite, RecordingSink

from client import ApiError, Client
from sandboxio_backend import CREDENTIAL, AgentBoxBackend

# Nothing listens there.
NOWHERE = "http://127.0.0.1:1"
# The longest that a command may outlive its client, and a margin. Seconds.
ORPHAN_DEADLINE = 8
PAUSE = 0.5
# What `cmd_hang` and its variants run.
HANG = b"3600"


@pytest.fixture(scope="module", autouse=True)
async def backend(client):
    audit = AuditConfig(sinks=(TestAgentBox.audit_sink,))
    TestAgentBox.backend = AgentBoxBackend(client, audit)


async def hanging_commands(client, box):
    """The command lines of the processes that hang, from /proc: without a command of our own."""
    found = []
    for entry in await client.entries(box, "/proc"):
        if not entry["name"].isdigit():
            continue
        try:
            line = await client.read(box, f"/proc/{entry['name']}/cmdline")
        except ApiError as error:
            if error.status != 404:
                raise
            continue
        if HANG in line:
            found.append(line)
    return found


class TestAgentBox(BackendContractSuite):
    audit_sink = RecordingSink()

    def cmd_egress(self, host):
        # The image has no curl.
        program = f"import urllib.request as r; r.urlopen('http://{host}/', timeout=5)"
        return ["python3", "-c", program]

    async def sandbox_count(self):
        return len(self.backend.live)

    async def assert_no_orphans(self, sb):
        deadline = time.monotonic() + ORPHAN_DEADLINE
        while True:
            try:
                found = await hanging_commands(self.backend.client, sb.id)
            except ApiError as error:
                assert error.status in (404, 409), error
                return
            if not found:
                return
            assert time.monotonic() < deadline, found
            await anyio.sleep(PAUSE)

    async def applied_resources(self, sb):
        environment = await self.backend.client.environment(sb.id)
        memory = environment["resources"]["memory"]
        return Resources(memory_mb=int(memory.removesuffix("Mi")))

    async def provider_labels(self, sb):
        return (await self.backend.client.environment(sb.id))["labels"]

    async def expire_sandbox(self, sb):
        await self.backend.client.delete(sb.id)

    @contextlib.contextmanager
    def _other_client(self, url, key, yielded):
        client = self.backend.client
        self.backend.client = Client(url, key)
        try:
            yield yielded
        finally:
            self.backend.client = client

    def simulate_kill_failure(self):
        return self._other_client(NOWHERE, "none", httpx.ConnectError)

    def simulate_provider_failure(self):
        return self._other_client(NOWHERE, "none", httpx.ConnectError)

    def simulate_missing_credential(self):
        return self._other_client(self.backend.client.url, "none", CREDENTIAL)
