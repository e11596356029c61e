"""A backend of sandboxio, whose sandboxes are environments.

The suite creates more sandboxes in a minute than one user may create environments. So an environment
whose sandbox was killed is lent to the next sandbox of the same shape, with an empty working directory
and the labels and the lifetime of that sandbox.
"""

import base64
import posixpath
import shlex
import time
from collections.abc import Mapping
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

import anyio
import httpx
from sandboxio import _policy
from sandboxio._record import OperationRecord, Redactor, operation
from sandboxio._teardown import shielded_kill
from sandboxio.audit import AuditConfig
from sandboxio.errors import (
    AuthError,
    CapabilityNotSupported,
    ConnectError,
    CreateTimeout,
    CreationError,
    ExecutionTimeout,
    FileSystemError,
    PathNotFound,
    SandboxGone,
)
from sandboxio.models import (
    Capability,
    ExecResult,
    FileInfo,
    IsolationTier,
    ManagedSandbox,
    NetworkPolicy,
    OutputChunk,
    Resources,
)

from client import IMAGE, RESOURCES, ApiError, Client, events

# Relative paths and commands begin here.
DIRECTORY = "/work"
CREDENTIAL = "CLIENT_KEY"
KILLED = 137
# Seconds.
CREATE_DEADLINE = 120
DELETE_DEADLINE = 10
REAP = "The sandbox may still be running; `sandboxio reap --kill` removes it."
# The answers of an environment that has ended.
GONE = (
    "not_found",
    "conflict",
    "environment_not_running",
    "environment_ended",
    "box_lost",
)

Shape = tuple[str, tuple[tuple[str, str], ...], bool]


class AgentBoxBackend:
    name = "agentbox"
    isolation = IsolationTier.CONTAINER
    capabilities = (
        Capability.RUN_COMMAND
        | Capability.RUN_CODE
        | Capability.STREAMING
        | Capability.FILESYSTEM
        | Capability.UPLOAD_DOWNLOAD
        | Capability.NETWORK_POLICY
    )

    def __init__(self, client: Client, audit: AuditConfig) -> None:
        self.client = client
        self.audit = audit
        self.live: dict[str, AgentBoxSandbox] = {}
        self._idle: dict[Shape, list[str]] = {}
        # When each environment was created, in seconds since 1970.
        self._created: dict[str, float] = {}

    async def create(
        self,
        *,
        template: str | None = None,
        resources: Resources = Resources(),
        network: NetworkPolicy = NetworkPolicy(),
        env: dict[str, str] | None = None,
        secrets: dict[str, str] | None = None,
        timeout: float = 300,
        metadata: dict[str, str] | None = None,
    ) -> "AgentBoxSandbox":
        _policy.validate_request(
            resources=resources,
            network=network,
            timeout=timeout,
            capabilities=self.capabilities,
            backend=self.name,
            allowlist_supported=False,
        )
        labels = dict(metadata or {})
        shape = _shape(template, resources, network)
        try:
            with anyio.fail_after(CREATE_DEADLINE):
                box = await self._lend(shape, labels, timeout)
        except TimeoutError as error:
            raise CreateTimeout(f"no sandbox within {CREATE_DEADLINE} s") from error
        except ApiError as error:
            if error.status == 401:
                raise AuthError(self.name, env_var=CREDENTIAL) from error
            raise CreationError(error.message) from error
        except httpx.HTTPError as error:
            raise CreationError("the API does not answer") from error
        sandbox = AgentBoxSandbox(self, box, shape, labels, timeout, env, secrets)
        self.live[box] = sandbox
        return sandbox

    async def connect(self, sandbox_id: str) -> "AgentBoxSandbox":
        sandbox = self.live.get(sandbox_id)
        if sandbox is None:
            raise ConnectError(f"no live sandbox {sandbox_id!r} on {self.name}")
        return sandbox

    async def list_managed(
        self, *, labels: Mapping[str, str] | None = None
    ) -> list[ManagedSandbox]:
        wanted = dict(labels or {}).items()
        return [
            ManagedSandbox(sandbox.id, self.name, "running", None, dict(sandbox.labels))
            for sandbox in self.live.values()
            if wanted <= sandbox.labels.items()
        ]

    async def kill_managed(self, sandbox_id: str) -> bool:
        sandbox = self.live.get(sandbox_id)
        if sandbox is None:
            return False
        await sandbox.kill()
        return True

    async def _lend(self, shape: Shape, labels: dict[str, str], timeout: float) -> str:
        """An idle environment of this shape, or a new one."""
        idle = self._idle.setdefault(shape, [])
        while idle:
            box = idle.pop()
            try:
                await self._prepare(box, labels, timeout)
                return box
            except ApiError as error:
                if error.error not in GONE:
                    idle.append(box)
                    raise
            except BaseException:
                idle.append(box)
                raise
        image, resources, internet = shape
        environment = await self.client.create(
            "sandboxio",
            image=image,
            resources=dict(resources),
            isolation={"network_policy": {"allow_internet": internet}},
        )
        box = environment["id"]
        self._created[box] = datetime.fromisoformat(environment["created_at"]).timestamp()
        try:
            await self._prepare(box, labels, timeout)
        except BaseException:
            with anyio.move_on_after(DELETE_DEADLINE, shield=True):
                await self.client.delete(box)
            raise
        return box

    async def _prepare(self, box: str, labels: dict[str, str], timeout: float) -> None:
        await self.client.make_directory(box, DIRECTORY)
        # The lifetime of an environment counts from its creation.
        lifetime = ceil(time.time() - self._created[box] + timeout)
        await self.client.patch(box, labels=labels, timeout=lifetime)

    async def release(self, sandbox: "AgentBoxSandbox") -> None:
        """Makes the environment of a sandbox idle. One that has ended is forgotten.

        The commands of the sandbox end with the connections that wait for them.
        """
        ended = False
        try:
            await self.client.remove(sandbox.id, DIRECTORY, recursive=True)
        except ApiError as error:
            ended = error.error in GONE
            if not ended and error.error != "file_not_found":
                raise
        if not ended:
            self._idle[sandbox.shape].append(sandbox.id)
        self.live.pop(sandbox.id, None)


def _shape(
    template: str | None, resources: Resources, network: NetworkPolicy
) -> Shape:
    quantities = dict(RESOURCES)
    if resources.cpu is not None:
        quantities["cpu"] = f"{ceil(resources.cpu * 1000)}m"
    if resources.memory_mb is not None:
        quantities["memory"] = f"{resources.memory_mb}Mi"
    if resources.disk_mb is not None:
        quantities["storage"] = f"{resources.disk_mb}Mi"
    return template or IMAGE, tuple(quantities.items()), network.egress == "allow"


class AgentBoxSandbox:
    """Commands and files of one environment, until `kill`."""

    def __init__(
        self,
        backend: AgentBoxBackend,
        box: str,
        shape: Shape,
        labels: dict[str, str],
        timeout: float,
        env: dict[str, str] | None,
        secrets: dict[str, str] | None,
    ) -> None:
        self.id = box
        self.shape = shape
        self.labels = labels
        self.capabilities = backend.capabilities
        self.isolation = backend.isolation
        self.backend = backend
        self._timeout = timeout
        self._env = {**(env or {}), **(secrets or {})}
        self._redact = Redactor(secrets, env)
        self._files = AgentBoxFiles(self)
        self._killed = False

    def __repr__(self) -> str:
        state = "killed" if self._killed else "running"
        return f"<AgentBoxSandbox {self.id} {self.isolation.value} {state}>"

    @property
    def client(self) -> Client:
        return self.backend.client

    @property
    def files(self) -> "AgentBoxFiles":
        return self._files

    @property
    def native(self) -> Client:
        return self.client

    def check(self) -> None:
        if self._killed:
            raise SandboxGone(f"sandbox {self.id} was killed")

    def command(
        self,
        cmd: str | list[str],
        timeout: float | None,
        env: dict[str, str] | None = None,
    ) -> tuple[list[str], dict[str, Any]]:
        """The arguments of an exec."""
        self.check()
        _policy.validate_timeout(timeout)
        argv = shlex.split(cmd) if isinstance(cmd, str) else cmd
        return argv, {
            "working_dir": DIRECTORY,
            "env": {**self._env, **(env or {})},
            "timeout": self._timeout if timeout is None else timeout,
        }

    async def run(
        self,
        cmd: str | list[str],
        *,
        timeout: float | None = None,
        env: dict[str, str] | None = None,
    ) -> ExecResult:
        argv, fields = self.command(cmd, timeout, env)
        return await self._run("exec", argv, fields)

    async def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        context_id: str | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        if context_id is not None:
            raise CapabilityNotSupported(
                Capability.STATEFUL_CODE, backend=self.backend.name
            )
        if language != "python":
            raise CapabilityNotSupported(Capability.RUN_CODE, backend=self.backend.name)
        argv, fields = self.command(["python3", "-c", code], timeout)
        return await self._run("run_code", argv, fields, code=code)

    async def _run(
        self, event: str, argv: list[str], fields: dict[str, Any], **of_record: Any
    ) -> ExecResult:
        record = OperationRecord(
            event=event,
            sandbox_id=self.id,
            backend=self.backend.name,
            isolation=self.isolation,
            metadata=self.labels,
            argv=argv,
            **of_record,
        )
        async with operation(record, config=self.backend.audit, redact=self._redact):
            try:
                result = await self.client.exec(self.id, argv, **fields)
            except ApiError as error:
                raise self.mapped(error) from error
            if result["timed_out"]:
                raise ExecutionTimeout(f"{argv[0]} took longer than {fields['timeout']} s")
            record.exit_code = result["exit_code"]
            record.bytes_out = len(result["stdout"]) + len(result["stderr"])
        return ExecResult(result["exit_code"], result["stdout"], result["stderr"])

    def mapped(self, error: ApiError) -> Exception:
        if error.error in GONE:
            return SandboxGone(f"sandbox {self.id}: {error.message}")
        return ConnectError(f"sandbox {self.id}: {error.message}")

    def stream(
        self,
        cmd: str | list[str],
        *,
        timeout: float | None = None,
        env: dict[str, str] | None = None,
    ) -> "AgentBoxProcess":
        return AgentBoxProcess(self, *self.command(cmd, timeout, env))

    async def kill(self) -> None:
        if self._killed:
            return
        try:
            await self.backend.release(self)
        except (ApiError, httpx.HTTPError) as error:
            message = f"{self.backend.name} could not kill sandbox {self.id!r}"
            raise ConnectError(message, hint=REAP) from error
        self._killed = True

    async def __aenter__(self) -> "AgentBoxSandbox":
        return self

    async def __aexit__(self, *_: object) -> None:
        await shielded_kill(
            self.kill,
            sandbox_id=self.id,
            backend=self.backend.name,
            labels=self.labels,
        )


class AgentBoxProcess:
    """A command whose output is streamed. Closing the answer ends the command."""

    def __init__(
        self, sandbox: AgentBoxSandbox, argv: list[str], fields: dict[str, Any]
    ) -> None:
        self._sandbox = sandbox
        self._argv = argv
        self._fields = fields
        self._response: httpx.Response | None = None
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        return self._returncode

    async def __aenter__(self) -> "AgentBoxProcess":
        sandbox = self._sandbox
        sandbox.check()
        try:
            self._response = await sandbox.client.start(
                sandbox.id, self._argv, **self._fields
            )
        except ApiError as error:
            raise sandbox.mapped(error) from error
        self._events = events(self._response)
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.kill()

    def __aiter__(self) -> "AgentBoxProcess":
        return self

    async def __anext__(self) -> OutputChunk:
        if self._returncode is not None:
            raise StopAsyncIteration
        name, data = await anext(self._events, ("error", {"message": "no exit"}))
        if name in ("stdout", "stderr"):
            return OutputChunk(name, base64.b64decode(data["base64"]))
        if name != "exit":
            raise SandboxGone(f"sandbox {self._sandbox.id}: {data.get('message')}")
        self._returncode = data["exit_code"]
        if data["timed_out"]:
            limit = self._fields["timeout"]
            raise ExecutionTimeout(f"{self._argv[0]} took longer than {limit} s")
        raise StopAsyncIteration

    async def wait(self) -> ExecResult:
        async for _ in self:
            pass
        return ExecResult(self._returncode, "", "", streamed=True)

    async def kill(self) -> None:
        if self._returncode is None:
            self._returncode = KILLED
        if self._response is not None:
            await self._events.aclose()
            await self._response.aclose()


class AgentBoxFiles:
    """The files of a sandbox."""

    def __init__(self, sandbox: AgentBoxSandbox) -> None:
        self._sandbox = sandbox

    async def _call(self, method: str, path: str, *arguments: Any, **options: Any) -> Any:
        self._sandbox.check()
        absolute = posixpath.join(DIRECTORY, path)
        function = getattr(self._sandbox.client, method)
        try:
            return await function(self._sandbox.id, absolute, *arguments, **options)
        except ApiError as error:
            if error.error == "file_not_found":
                raise PathNotFound(path) from error
            if error.error in GONE:
                raise self._sandbox.mapped(error) from error
            raise FileSystemError(f"{path}: {error.message}") from error

    async def read(self, path: str) -> bytes:
        return await self._call("read", path)

    async def write(self, path: str, data: bytes | str) -> None:
        content = data.encode() if isinstance(data, str) else data
        await self._call("write", path, content)

    async def upload(self, local: str | Path, remote: str) -> None:
        await self.write(remote, await anyio.Path(local).read_bytes())

    async def download(self, remote: str, local: str | Path) -> None:
        await anyio.Path(local).write_bytes(await self.read(remote))

    async def ls(self, path: str = ".") -> list[FileInfo]:
        entries = await self._call("entries", path)
        if entries is None:
            raise FileSystemError(f"{path}: not a directory")
        return [
            FileInfo(entry["path"], entry["size"], entry["type"] == "directory")
            for entry in entries
        ]

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        await self._call("make_directory", path, parents=parents)

    async def remove(self, path: str) -> None:
        await self._call("remove", path)
