"""inspect-ai's self-check of sandboxes, as root or as the user 1000."""

import pytest
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from inspect_sandbox import AgentBoxSandbox

pytestmark = pytest.mark.anyio

DIRECTORY = "/tmp/work"
PROGRAMS = "/tmp/programs"
PATH = f"{PROGRAMS}:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# The cases that look for processes need `ps`, which the image does not have.
PS = b"""#!/bin/sh
for process in /proc/[0-9]*; do
  { printf '%s ' "${process#/proc/}"; tr '\\0' ' ' < "$process/cmdline"; echo; } 2> /dev/null
done
"""


@pytest.fixture(scope="session")
async def sandbox(client, user, pytestconfig):
    as_root = pytestconfig.getoption("--run-name") == "inspect-root"
    isolation = {} if as_root else {"isolation": user}
    environment = await client.create("inspect", env={"PATH": PATH}, **isolation)
    box = environment["id"]
    await client.make_directory(box, DIRECTORY)
    await client.write(box, f"{PROGRAMS}/ps", PS, mode="0755")
    listed = await client.exec(box, ["ps", "aux"])
    assert f"{PROGRAMS}/ps aux" in listed["stdout"], listed
    return AgentBoxSandbox(client, box, DIRECTORY)


@pytest.fixture
def sandbox_env(sandbox):
    return sandbox
