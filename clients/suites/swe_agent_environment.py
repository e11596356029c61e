"""mini-swe-agent's environment, in an environment of ours."""

from typing import Any

from anyio.from_thread import BlockingPortal
from minisweagent.exceptions import Submitted
from minisweagent.utils.serialize import recursive_merge
from pydantic import BaseModel

from client import ApiError, Client

SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


class AgentBoxEnvironmentConfig(BaseModel):
    cwd: str = "/"
    env: dict[str, str] = {}
    timeout: int = 30


class AgentBoxEnvironment:
    """Each action is one command of `sh`, whose stderr is part of its output."""

    def __init__(
        self, portal: BlockingPortal, client: Client, box: str, **config: Any
    ) -> None:
        self.config = AgentBoxEnvironmentConfig(**config)
        self._portal = portal
        self._client = client
        self._box = box

    def execute(
        self, action: dict, cwd: str = "", *, timeout: int | None = None
    ) -> dict[str, Any]:
        limit = timeout or self.config.timeout
        try:
            result = self._portal.call(
                lambda: self._client.exec(
                    self._box,
                    ["sh", "-c", action.get("command", "")],
                    merge_stderr=True,
                    working_dir=cwd or self.config.cwd,
                    env=self.config.env,
                    timeout=limit,
                )
            )
        except ApiError as error:
            return _failed("", str(error))
        if result["timed_out"]:
            return _failed(result["stdout"], f"timed out after {limit} seconds")
        output = {
            "output": result["stdout"],
            "returncode": result["exit_code"],
            "exception_info": "",
        }
        _check_finished(output)
        return output

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        return recursive_merge(self.config.model_dump(), kwargs)

    def serialize(self) -> dict[str, Any]:
        kind = type(self)
        environment = self.config.model_dump(mode="json")
        name = f"{kind.__module__}.{kind.__name__}"
        return {
            "info": {"config": {"environment": environment, "environment_type": name}}
        }


def _failed(output: str, reason: str) -> dict[str, Any]:
    info = f"An error occurred while executing the command: {reason}"
    return {"output": output, "returncode": -1, "exception_info": info}


def _check_finished(output: dict[str, Any]) -> None:
    lines = output["output"].lstrip().splitlines(keepends=True)
    if not lines or lines[0].strip() != SUBMIT or output["returncode"] != 0:
        return
    submission = "".join(lines[1:])
    extra = {"exit_status": "Submitted", "submission": submission}
    raise Submitted({"role": "exit", "content": submission, "extra": extra})
