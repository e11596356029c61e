"""langchain's standard tests of sandboxes.

They run as the user 1000: one of them needs a file that the user may not read.
"""

import pytest
from langchain_tests.integration_tests import SandboxIntegrationTests

from langchain_backend import AgentBoxBackend


class TestAgentBox(SandboxIntegrationTests):
    pytestmark = pytest.mark.anyio

    @pytest.fixture(scope="class")
    def sandbox(self, portal, portal_client, user):
        environment = portal.call(
            lambda: portal_client.create("langchain", isolation=user)
        )
        return AgentBoxBackend(portal, portal_client, environment["id"])
