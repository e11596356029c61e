"""A client of the public API: environments, exec and files. The adapters use nothing else.

A request that is refused with 429 is repeated after its `Retry-After`; `waited` counts these seconds.
"""

import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx

IMAGE = "python:3.11-slim"
RESOURCES = {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"}
# Seconds. An environment whose run was killed ends by itself.
LIFETIME = 1800
# Seconds that a request may wait for rate windows, which are minutes.
RATE_LIMIT_DEADLINE = 300
# Seconds that an answer may take, beside the time of the command.
ANSWER_DEADLINE = 90


class ApiError(Exception):
    """An answer of 400 or more. `error` is the stable word of the API."""

    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(f"{status} {error}: {message}")
        self.status = status
        self.error = error
        self.message = message


class TooLarge(Exception):
    """A file has more bytes than the caller accepts."""


def _api_error(response: httpx.Response) -> ApiError:
    try:
        body = response.json()
        return ApiError(response.status_code, body["error"], body["message"])
    except (ValueError, KeyError, TypeError):
        return ApiError(response.status_code, "unknown", response.text[:200])


class Client:
    """The API for one caller. It belongs to the event loop that first uses it."""

    def __init__(self, url: str, key: str) -> None:
        self.waited = 0.0
        self.url = url
        self._created: list[str] = []
        self._http = httpx.AsyncClient(
            base_url=f"{url}/api/v1",
            headers={"Authorization": f"Bearer {key}"},
            timeout=ANSWER_DEADLINE,
        )

    async def close(self) -> None:
        """Deletes the environments that this client has created."""
        try:
            for box in self._created:
                with contextlib.suppress(ApiError):
                    await self.delete(box)
        finally:
            await self._http.aclose()

    async def send(
        self, method: str, path: str, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        """Sends a request. With `stream` the caller reads and closes the answer.

        Raises ApiError, and httpx.HTTPError when the connection fails.
        """
        deadline = time.monotonic() + RATE_LIMIT_DEADLINE
        while True:
            request = self._http.build_request(method, path, **options)
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code < 400 and stream:
                    return response
                await response.aread()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
                raise
            if response.status_code < 400:
                return response
            if response.status_code != 429 or time.monotonic() > deadline:
                raise _api_error(response)
            pause = float(response.headers.get("Retry-After", "1"))
            self.waited += pause
            await anyio.sleep(pause)

    # Environments

    async def create(self, name: str, **fields: Any) -> dict[str, Any]:
        """Creates an environment and waits until it runs. `fields` are those of the API."""
        body = {
            "name": name,
            "image": IMAGE,
            "resources": RESOURCES,
            "timeout": LIFETIME,
            **fields,
        }
        response = await self.send(
            "POST", "/environments", params={"wait": "running"}, json=body
        )
        environment = response.json()
        self._created.append(environment["id"])
        if environment["status"] != "running":
            reason = environment.get("status_message") or environment["status"]
            raise ApiError(502, "environment_not_running", reason)
        return environment

    async def environment(self, box: str) -> dict[str, Any]:
        return (await self.send("GET", f"/environments/{box}")).json()

    async def patch(self, box: str, **fields: Any) -> dict[str, Any]:
        return (await self.send("PATCH", f"/environments/{box}", json=fields)).json()

    async def delete(self, box: str) -> None:
        await self.send("DELETE", f"/environments/{box}", params={"force": "true"})

    # Commands

    async def exec(
        self, box: str, command: list[str], *, stdin: bytes | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Runs a command and returns its result. `fields` are those of the API; None is absent."""
        body = _exec_body(command, fields)
        options: dict[str, Any] = {"json": body}
        if stdin is not None:
            # A form, because a stdin of any size fits into it.
            options = {
                "files": [
                    ("exec", (None, json.dumps(body), "application/json")),
                    ("stdin", (None, stdin, "application/octet-stream")),
                ]
            }
        response = await self.send(
            "POST", f"/environments/{box}/exec", timeout=_deadline(body), **options
        )
        return response.json()

    async def start(
        self, box: str, command: list[str], **fields: Any
    ) -> httpx.Response:
        """Runs a command whose output is streamed: `events` reads it.

        The command ends when the answer is closed.
        """
        body = _exec_body(command, {**fields, "output_encoding": "base64"})
        return await self.send(
            "POST",
            f"/environments/{box}/exec",
            stream=True,
            json=body,
            headers={"Accept": "text/event-stream"},
            timeout=_deadline(body),
        )

    # Files

    async def read(self, box: str, path: str, *, limit: int | None = None) -> bytes:
        """Raises TooLarge when the file has more than `limit` bytes."""
        response = await self.send(
            "GET",
            f"/environments/{box}/files/content",
            stream=True,
            params={"path": path},
            headers={"Accept": "application/octet-stream"},
        )
        content = bytearray()
        try:
            async for piece in response.aiter_bytes():
                content += piece
                if limit is not None and len(content) > limit:
                    raise TooLarge(path)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
        return bytes(content)

    async def write(
        self,
        box: str,
        path: str,
        content: bytes,
        *,
        create_only: bool = False,
        **query: str,
    ) -> None:
        """Stores a file and creates the directories above it."""
        headers = {"Content-Type": "application/octet-stream"}
        if create_only:
            headers["If-None-Match"] = "*"
        await self.send(
            "PUT",
            f"/environments/{box}/files/content",
            params={"path": path, **query},
            headers=headers,
            content=content,
        )

    async def entries(self, box: str, path: str) -> list[dict[str, Any]] | None:
        """The entries of a directory. None: the path is not a directory."""
        query = {"path": path, "follow": "true", "limit": "1000"}
        found: list[dict[str, Any]] = []
        while True:
            response = await self.send(
                "GET", f"/environments/{box}/files", params=query
            )
            page = response.json()
            if page["type"] != "directory":
                return None
            found += page.get("entries") or []
            cursor = page.get("next_cursor")
            if not cursor:
                return found
            query["cursor"] = cursor

    async def make_directory(
        self, box: str, path: str, *, parents: bool = True
    ) -> None:
        body = {"path": path, "parents": parents}
        await self.send("POST", f"/environments/{box}/files/directories", json=body)

    async def remove(self, box: str, path: str, *, recursive: bool = False) -> None:
        query = {"path": path, "recursive": "true" if recursive else "false"}
        await self.send("DELETE", f"/environments/{box}/files", params=query)


def _exec_body(command: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    return {"command": command, **given}


def _deadline(body: dict[str, Any]) -> httpx.Timeout:
    return httpx.Timeout(ANSWER_DEADLINE, read=ANSWER_DEADLINE + body.get("timeout", 30))


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of an answer, as names and data."""
    name, data = "message", ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif not line and data:
            yield name, json.loads(data)
            name, data = "message", ""
