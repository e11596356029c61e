"""An agent of mini-swe-agent whose model follows a script, so that no language model is needed."""

import pytest
from minisweagent.agents.default import DefaultAgent
from minisweagent.models.test_models import DeterministicModel, make_output

from swe_agent_environment import SUBMIT, AgentBoxEnvironment

# What the model says and does.
SCRIPT = [
    ("Write a program.", "printf 'print(40 + )\\n' > answer.py"),
    ("Run it.", "python3 answer.py"),
    ("Correct it.", "sed -i 's/+ /+ 2/' answer.py && python3 answer.py"),
    ("Wait for ever.", "echo begun; sleep 3600"),
    ("Read a variable of the configuration.", "echo \"pager: $PAGER\""),
    ("Submit.", f"echo {SUBMIT} && cat answer.py"),
]
TIMEOUT = 2


@pytest.fixture(scope="module")
def agent(portal, portal_client, user):
    environment = portal.call(lambda: portal_client.create("swe-agent", isolation=user))
    outputs = [
        make_output(thought, [{"command": command}], cost=0.0) for thought, command in SCRIPT
    ]
    agent = DefaultAgent(
        DeterministicModel(outputs=outputs, cost_per_call=0.0),
        AgentBoxEnvironment(
            portal,
            portal_client,
            environment["id"],
            cwd="/tmp",
            env={"PAGER": "cat"},
            timeout=TIMEOUT,
        ),
        system_template="You work in {{cwd}}.",
        instance_template="Your task: {{task}}",
        step_limit=len(SCRIPT),
    )
    agent.outcome = agent.run("Compute the answer.")
    return agent


@pytest.fixture(scope="module")
def observations(agent):
    """What the model was told after each command but the last."""
    contents = [str(message.get("content")) for message in agent.messages]
    return [content for content in contents if "<returncode>" in content]


def test_agent_submits_what_it_wrote(agent):
    assert agent.outcome == {"exit_status": "Submitted", "submission": "print(40 + 2)\n"}
    assert agent.n_calls == len(SCRIPT)


def test_templates_have_the_configuration(agent):
    assert agent.messages[0]["content"] == "You work in /tmp."


def test_failed_command_is_observed_with_its_code_and_stderr(observations):
    assert "<returncode>1</returncode>" in observations[1]
    assert "SyntaxError" in observations[1]


def test_commands_share_their_files(observations):
    assert "<returncode>0</returncode>" in observations[2]
    assert "42" in observations[2]


def test_timed_out_command_is_observed_with_its_output_so_far(observations):
    assert "timed out after 2 seconds" in observations[3]
    assert "begun" in observations[3]


def test_commands_have_the_configured_variables(observations):
    assert "pager: cat" in observations[4]


def test_trajectory_names_the_environment(agent, tmp_path):
    saved = agent.save(tmp_path / "trajectory.json")
    kind = saved["info"]["config"]["environment_type"]
    assert kind == "swe_agent_environment.AgentBoxEnvironment"
