"""inspect-ai's sandbox, in an environment."""

import errno
import os
import posixpath
from typing import NoReturn

from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUnavailableError,
    SandboxUserUnsupportedError,
)

from client import ApiError, Client, TooLarge

# The longest timeout of a command, in seconds (AGENTBOX_MAX_EXEC_TIMEOUT).
LONGEST = 3600
NOT_EXECUTABLE = 126

# The errors of files that inspect-ai distinguishes. A path below a file does not exist.
FILE_ERRORS = {
    "file_not_found": errno.ENOENT,
    "not_a_directory": errno.ENOENT,
    "is_a_directory": errno.EISDIR,
    "permission_denied": errno.EACCES,
    "read_only_filesystem": errno.EACCES,
}


def _raise(error: ApiError, file: str) -> NoReturn:
    number = FILE_ERRORS.get(error.error)
    if number is None:
        raise error
    # OSError with an errno makes FileNotFoundError, IsADirectoryError or PermissionError.
    raise OSError(number, os.strerror(number), file) from error


class AgentBoxSandbox(SandboxEnvironment):
    """One environment. Relative paths begin at `directory`."""

    def __init__(self, client: Client, box: str, directory: str) -> None:
        super().__init__()
        self._client = client
        self._box = box
        self._directory = directory

    def _path(self, file: str) -> str:
        return posixpath.join(self._directory, file)

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        stdin = input.encode() if isinstance(input, str) else input
        try:
            result = await self._client.exec(
                self._box,
                cmd,
                stdin=stdin,
                working_dir=self._path(cwd or ""),
                env=env,
                user=user,
                timeout=LONGEST if timeout is None else timeout,
            )
        except ApiError as error:
            if error.error == "user_not_allowed":
                raise SandboxUserUnsupportedError(error.message) from error
            if error.error == "user_not_found":
                return ExecResult(False, NOT_EXECUTABLE, "", f"{user}: {error.message}")
            if error.status >= 500 or error.error == "environment_not_running":
                raise SandboxUnavailableError(error.message) from error
            raise
        if result["timed_out"]:
            raise TimeoutError(f"the command took longer than {timeout} seconds")
        for stream in ("stdout", "stderr"):
            if result[f"{stream}_truncated"]:
                raise OutputLimitExceededError(
                    SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, result[stream]
                )
        code = result["exit_code"]
        if code == NOT_EXECUTABLE:
            raise PermissionError(errno.EACCES, result["stderr"], cmd[0])
        return ExecResult(code == 0, code, result["stdout"], result["stderr"])

    async def write_file(self, file: str, contents: str | bytes) -> None:
        data = contents.encode() if isinstance(contents, str) else contents
        try:
            await self._client.write(self._box, self._path(file), data)
        except ApiError as error:
            _raise(error, file)

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            data = await self._client.read(self._box, self._path(file), limit=limit)
        except ApiError as error:
            _raise(error, file)
        except TooLarge as error:
            limit_text = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR
            raise OutputLimitExceededError(limit_text, None) from error
        return data.decode() if text else data

    @classmethod
    async def sample_cleanup(cls, task_name, config, environments, interrupted) -> None:
        """Whoever created the environment deletes it."""
