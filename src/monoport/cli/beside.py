"""Reaching the services that run beside tctl: the auth service's socket and the daemon's.

Belongs here: finding them through the daemon's configuration, and one clear line where nobody answers.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx

from monoport import config
from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient, AuthUnavailable, unix
from monoport.auth.keys import Credentials, identity_files
from monoport.auth.transport import StreamTransport
from monoport.cli.progress import wait_noting
from monoport.cli.run import wait
from monoport.config import Config
from monoport.errors import Failure

Result = TypeVar("Result")

DEFAULT_CONFIG = Path("/etc/monoport.yaml")
MAX_ANSWER = 16 * 1024 * 1024  # octets; ten thousand connections take a third of it


@dataclass(slots=True)
class Beside:
    """The daemon that a configuration file describes.

    Args:
        file: the configuration; read when it is first needed, so that --help works without one.
    """

    file: Path
    _config: Config | None = None

    @property
    def config(self) -> Config:
        """The configuration; raises Failure with file, line and column."""
        if self._config is None:
            self._config = config.load(self.file)
        return self._config

    @property
    def data_dir(self) -> Path:
        """The daemon's data folder."""
        return self.config.teleport.data_dir

    def administrator(self) -> AuthClient:
        """A client of the auth service with the administrator's identity; raises Failure if there is none yet."""
        certificate, key, _ = identity_files(self.data_dir, "admin")
        try:
            cas = TrustedCas.from_json((self.data_dir / "cas.json").read_text())
            credentials = Credentials(certificate.read_text(), key.read_text(), cas)
        except FileNotFoundError:
            raise Failure(self._not_running()) from None
        except PermissionError as error:
            raise Failure(f"{error.filename}: permission denied: run tctl as the user who runs the daemon") from None
        return AuthClient(unix(self.data_dir / "auth.sock"), credentials)

    def _not_running(self) -> str:
        if not self.config.auth_service.enabled:
            return f"{self.file} enables no auth service: run tctl beside the one of your cluster, with its file"
        return f"the auth service is not running: start it with monoport start -c {self.file}"

    def ask(self, work: Callable[[AuthClient], Awaitable[Result]]) -> Result:
        """Runs work that needs the auth service; raises Failure in one clear line if it is not running."""

        async def asked() -> Result:
            async with self.administrator() as client:
                return await work(client)

        try:
            return wait_noting(asked(), "asking the auth service")
        except AuthUnavailable as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, TimeoutError):  # that one runs
                raise Failure(f"{self._not_running()} ({error.__cause__})") from error
            raise

    def reach(self) -> None:
        """Raises Failure where the auth service cannot be asked: to be said before people are asked for anything."""

        async def status(client: AuthClient) -> None:
            await client.status()

        self.ask(status)

    def ask_daemon(self, path: str, body: object = None) -> Any:
        """The JSON that the daemon answers on its own socket; raises Failure if it is not running."""
        return wait(self._ask_daemon(path, body))

    async def _ask_daemon(self, path: str, body: object) -> Any:
        transport = StreamTransport(unix(self.data_dir / "daemon.sock"))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://daemon", timeout=30) as http:
                request = http.build_request("GET" if body is None else "POST", path, json=body)
                response = await http.send(request, stream=True)
                data = await _bounded(response)
        except OSError as error:
            raise Failure(
                f"the daemon is not running: start it with monoport start -c {self.file} ({error})"
            ) from error
        answer = json.loads(data)
        if response.status_code != httpx.codes.OK:
            raise Failure(str(answer["error"]["message"]))
        return answer


async def _bounded(response: httpx.Response) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_ANSWER:
            raise Failure(f"the daemon's answer is larger than {MAX_ANSWER} octets")
    await response.aclose()
    return bytes(data)


pass_beside = click.make_pass_decorator(Beside)
