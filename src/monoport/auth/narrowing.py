"""Reissue may only narrow: what a certificate made from another certificate may say at most.

Belongs here: that one rule, as a function of values. Who may ask, `service` decides; signing is `issue`.
"""

from monoport.access.identity import Destination, Identity, Kind
from monoport.auth.refusals import Forbidden


def narrow(caller: Identity, present: Identity, destination: Destination | None) -> Identity:
    """The most that a reissued certificate may be: what the caller's certificate says and what is still true.

    Args:
        caller: as its certificate says. present: the same user as a login at this moment would make it.
        destination: what the new certificate is for.
    Raises:
        Forbidden: the caller's certificate is for something else already.
    """
    if caller.destination is not None and not _within(destination, caller.destination):
        raise Forbidden("this certificate is for another destination: sign in again", "reissue may only narrow")
    usage = caller.usage if destination is None else (destination.kind,)
    if caller.usage and not set(usage) <= set(caller.usage):
        raise Forbidden("this certificate is for another use: sign in again", "reissue may only narrow")
    traits = {
        name: tuple(value for value in values if value in present.traits.get(name, ()))
        for name, values in caller.traits.items()
    }
    return Identity(
        Kind.USER,
        caller.name,
        caller.cluster,
        roles=tuple(role for role in caller.roles if role in present.roles),
        traits={name: values for name, values in traits.items() if values},
        principals=tuple(login for login in caller.principals if login in present.principals),
        expires=min(caller.expires, present.expires),
        destination=destination,
        usage=usage,
        login_ip=caller.login_ip,
        generation=caller.generation,
        issued=caller.issued,
    )


def _within(new: Destination | None, old: Destination) -> bool:
    """Whether the new destination is the old one, at most with parts filled in that were open."""
    if new is None or (new.kind, new.name) != (old.kind, old.name):
        return False
    pairs = ((new.protocol, old.protocol), (new.user, old.user), (new.database, old.database))
    return all(before in ("", after) for after, before in pairs)
