"""deepagents' sandbox backend, in an environment.

Reading, writing and listing use file calls: as commands, as in deepagents' base class, a run of the suite
would start more of them than one user may in a minute.
"""

import base64
import posixpath

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal
from deepagents.backends.protocol import (
    ExecuteResponse,
    FileData,
    FileDownloadResponse,
    FileUploadResponse,
    LsResult,
    ReadResult,
    WriteResult,
)
from deepagents.backends.sandbox import (
    MAX_BINARY_BYTES,
    MAX_OUTPUT_BYTES,
    TRUNCATION_MSG,
    BaseSandbox,
)
from deepagents.backends.utils import _get_file_type

from client import ApiError, Client

# The longest timeout of a command, in seconds (AGENTBOX_MAX_EXEC_TIMEOUT).
LONGEST = 3600
EMPTY = "System reminder: File exists but has empty contents"

# deepagents' words for the errors of files, where they differ from the API's.
FILE_ERRORS = {
    "is_a_directory": "is_directory",
    "not_a_directory": "invalid_path",
    "read_only_filesystem": "permission_denied",
}
EXISTS = ("precondition_failed", "already_exists", "is_a_directory")


def _word(error: ApiError) -> str:
    return FILE_ERRORS.get(error.error, error.error)


class AgentBoxBackend(BaseSandbox):
    """One environment. The portal runs the client, so calls may come from any thread."""

    def __init__(self, portal: BlockingPortal, client: Client, box: str) -> None:
        self._portal = portal
        self._client = client
        self._box = box

    @property
    def id(self) -> str:
        return self._box

    def _call(self, function, *arguments, **options):
        return self._portal.call(lambda: function(self._box, *arguments, **options))

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        result = self._call(
            self._client.exec,
            ["sh", "-c", command],
            merge_stderr=True,
            timeout=timeout or LONGEST,
        )
        return ExecuteResponse(
            output=result["stdout"],
            exit_code=result["exit_code"],
            truncated=result["stdout_truncated"],
        )

    def ls(self, path: str) -> LsResult:
        try:
            entries = self._call(self._client.entries, path)
        except ApiError as error:
            return LsResult(entries=None, error=f"Path '{path}': {_word(error)}")
        if entries is None:
            return LsResult(entries=None, error=f"Path '{path}': not_a_directory")
        return LsResult(
            entries=[
                {
                    "path": posixpath.join(path, entry["name"]),
                    "is_dir": entry["type"] == "directory",
                }
                for entry in entries
            ]
        )

    async def als(self, path: str) -> LsResult:
        return await self._in_thread(self.ls, path)

    def read(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        try:
            content = self._call(self._client.read, file_path)
        except ApiError as error:
            return ReadResult(error=f"File '{file_path}': {_word(error)}")
        return page(file_path, content, offset, limit)

    async def aread(
        self, file_path: str, offset: int = 0, limit: int = 2000
    ) -> ReadResult:
        return await self._in_thread(self.read, file_path, offset, limit)

    def write(self, file_path: str, content: str) -> WriteResult:
        try:
            self._call(
                self._client.write, file_path, content.encode(), create_only=True
            )
        except ApiError as error:
            if error.error in EXISTS:
                return WriteResult(error=f"Error: File already exists: {file_path!r}")
            return WriteResult(
                error=f"Failed to write file '{file_path}': {_word(error)}"
            )
        return WriteResult(path=file_path)

    async def awrite(self, file_path: str, content: str) -> WriteResult:
        return await self._in_thread(self.write, file_path, content)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        return [FileUploadResponse(path, self._upload(path, data)) for path, data in files]

    def _upload(self, path: str, data: bytes) -> str | None:
        try:
            self._call(self._client.write, path, data)
        except ApiError as error:
            return _word(error)
        return None

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        return [self._download(path) for path in paths]

    def _download(self, path: str) -> FileDownloadResponse:
        try:
            content = self._call(self._client.read, path)
        except ApiError as error:
            return FileDownloadResponse(path, None, _word(error))
        return FileDownloadResponse(path, content, None)

    @staticmethod
    async def _in_thread(function, *arguments):
        return await anyio.to_thread.run_sync(function, *arguments)


def page(file_path: str, content: bytes, offset: int, limit: int) -> ReadResult:
    """The lines of a file as `BaseSandbox.read` returns them."""
    if not content:
        return ReadResult(file_data=FileData(content=EMPTY, encoding="utf-8"))
    try:
        text = content.decode() if _get_file_type(file_path) == "text" else None
    except UnicodeDecodeError:
        text = None
    if text is None:
        return _binary(file_path, content)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    if offset >= len(lines) or limit <= 0:
        return ReadResult(
            error=f"File '{file_path}': Line offset {offset} exceeds file length "
            f"({len(lines)} lines)"
        )
    selected = "\n".join(lines[offset : offset + limit])
    room = MAX_OUTPUT_BYTES - len(TRUNCATION_MSG.encode())
    encoded = selected.encode()
    if len(encoded) > room:
        selected = encoded[:room].decode(errors="ignore") + TRUNCATION_MSG
    return ReadResult(file_data=FileData(content=selected, encoding="utf-8"))


def _binary(file_path: str, content: bytes) -> ReadResult:
    if len(content) > MAX_BINARY_BYTES:
        return ReadResult(
            error=f"File '{file_path}': Binary file exceeds maximum preview size of "
            f"{MAX_BINARY_BYTES} bytes"
        )
    encoded = base64.b64encode(content).decode("ascii")
    return ReadResult(file_data=FileData(content=encoded, encoding="base64"))
