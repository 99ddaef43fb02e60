"""Who may bring, see and remove recordings, and what the audit log hears of it.

Belongs here: the operations of the auth API on recordings, each with its check. Does not: files (`recordings`), HTTP.

A node brings recordings of its own sessions only: those whose `session.start` it has put into the audit log before
anybody else did. What is known of a recording comes from that event, never from the recording itself.
"""

from collections.abc import AsyncIterator
from datetime import UTC

from monoport.access.identity import Identity, Kind
from monoport.audit.events import Event
from monoport.auth import messages
from monoport.auth.permissions import Operation, require, require_current, require_verb
from monoport.auth.recordings import Filter, Offer, Recorded, Vault, check_id
from monoport.auth.refusals import Forbidden, NotFound, Refusal, SessionUnknown
from monoport.auth.service import Service


class RecordingService:
    """Operations on recordings.

    Args:
        service: whose parts say who may, and whose audit log is written. vault: the recordings.
    """

    def __init__(self, service: Service, vault: Vault) -> None:
        self._service, self._parts, self._vault = service, service.parts, vault

    # --- for nodes

    async def offer(self, caller: Identity, recording: str, offer: messages.RecordingOffer) -> messages.RecordingState:
        """How much of a recording is here; raises SessionUnknown until the session's first event has come."""
        await self._session(caller, recording)
        wanted = Offer(offer.size, offer.sha256, offer.seconds)
        received = await self._vault.offer(recording, caller.name, wanted)
        return messages.RecordingState(received=offer.size if received is None else received, kept=received is None)

    async def append(self, caller: Identity, recording: str, offset: int, data: bytes) -> messages.RecordingState:
        """Adds one part."""
        await self._require(caller)
        if self._vault.owner(check_id(recording)) not in {"", caller.name}:
            raise Forbidden("this recording is another host's", f"sent by {caller}")
        return messages.RecordingState(received=await self._vault.append(recording, offset, data), kept=False)

    async def complete(
        self, caller: Identity, recording: str, offer: messages.RecordingOffer
    ) -> messages.RecordingState:
        """Verifies and keeps a recording; on return it is durable, and its node may forget it."""
        start = await self._session(caller, recording)
        known = {name: str(start.fields.get(name, "")) for name in ("user", "login", "hostname", "connection")}
        kept = Recorded(
            id=recording,
            user=known["user"],
            login=known["login"],
            host_id=caller.name,
            node=known["hostname"],
            connection=known["connection"],
            started=start.time.astimezone(UTC).isoformat(timespec="microseconds"),
            seconds=round(offer.seconds, 3),
            size=offer.size,
            sha256=offer.sha256,
        )
        if await self._vault.complete(kept):
            noted = {**known, "session": recording, "node": caller.name, "host_id": caller.name}
            await self._service.record("recording.uploaded", **noted, size=kept.size, sha256=kept.sha256)
        return messages.RecordingState(received=offer.size, kept=True)

    async def _session(self, caller: Identity, recording: str) -> Event:
        await self._require(caller)
        start = await self._parts.events.session_start(check_id(recording))
        if start is None:
            raise SessionUnknown(f"no session {recording} is in the audit log yet")
        if start.fields.get("host_id") != caller.name:
            raise Forbidden("this session is another host's", f"asked by {caller}")
        return start

    async def _require(self, caller: Identity) -> None:
        require(caller, Operation.RECORDING, await self._parts.resources.locks(), self._parts.now())

    # --- for people

    async def list(self, caller: Identity, wanted: Filter, limit: int, before: str | None) -> messages.RecordingPage:
        """Recordings that the caller may see: all of them by a rule, else those of the caller's own sessions."""
        denial = await self._sees_own_only(caller, "list")
        if denial is not None:
            if wanted.user not in {"", str(caller)}:
                raise Forbidden("cannot list recordings of others: access denied", denial.rule, owner=wanted.user)
            wanted = Filter(str(caller), wanted.node, wanted.since)
        found, position = await self._vault.list(wanted, limit, before)
        return messages.RecordingPage(recordings=tuple(map(_shown, found)), next=position)

    async def get(self, caller: Identity, recording: str) -> messages.Recording:
        """What is known of one recording; others' do not exist for who may not see them."""
        return _shown(await self._visible(caller, recording))

    async def content(self, caller: Identity, recording: str) -> tuple[int, AsyncIterator[bytes]]:
        """A recording's octets and how many they are; that somebody asked is in the audit log before the first."""
        found = await self._visible(caller, recording)
        noted = {"user": str(caller), "session": found.id, "owner": found.user, "node": found.node}
        await self._service.record("recording.accessed", **noted)
        return found.size, self._octets(found)

    async def _octets(self, found: Recorded) -> AsyncIterator[bytes]:
        offset = 0
        while data := await self._vault.read(found.id, offset):
            yield data
            offset += len(data)

    async def remove(self, caller: Identity, recording: str) -> None:
        """Deletes a recording for good."""
        await self._require_verb(caller, "delete")
        found = await self._vault.remove(check_id(recording))
        noted = {"user": str(caller), "session": found.id, "owner": found.user, "node": found.node}
        await self._service.record("recording.removed", **noted, sha256=found.sha256)

    async def _visible(self, caller: Identity, recording: str) -> Recorded:
        denial = await self._sees_own_only(caller, "read")
        found = await self._vault.get(recording)
        if denial is not None and found.user != str(caller):
            raise NotFound(f"no recording {recording}", denial.rule, owner=found.user, node=found.node)
        return found

    async def _sees_own_only(self, caller: Identity, verb: str) -> Refusal | None:
        """Why the caller does not see every recording; None where a rule allows it.

        Raises Forbidden for who may not even see their own.
        """
        try:
            await self._require_verb(caller, verb)
        except Forbidden as denial:
            require_current(caller, await self._parts.resources.locks(), self._parts.now())
            if caller.kind is not Kind.USER or caller.destination is not None or caller.usage:
                raise
            return denial
        return None

    async def _require_verb(self, caller: Identity, verb: str) -> None:
        roles, locks = await self._parts.resources.roles(), await self._parts.resources.locks()
        require_verb(caller, "recording", verb, roles, locks, self._parts.now())


def _shown(found: Recorded) -> messages.Recording:
    return messages.Recording.model_validate({name: getattr(found, name) for name in Recorded.__slots__})
