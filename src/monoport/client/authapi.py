"""The auth service as a user reaches it: its API over ALPN `teleport-auth@<cluster>` through the proxy.

Belongs here: credentials and the way there. Does not belong here: what is asked.
"""

from datetime import UTC, datetime

from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient
from monoport.auth.keys import Credentials
from monoport.client.front import dial_tcp
from monoport.client.profile import Home, Profile
from monoport.errors import Failure
from monoport.net.stream import Stream


def auth_client(home: Home, profile: Profile) -> AuthClient:
    """A client that calls with the user's login certificate, end to end with the auth service.

    Raises:
        Failure: the login has ended or its files are gone.
    """
    profile.check(datetime.now(UTC))
    paths = home.keys(profile)
    try:
        certificate, key = paths.certificate.read_text("ascii"), paths.key.read_text("ascii")
    except (OSError, ValueError):
        raise Failure(f"the files of your login are missing, {profile.login_again()}") from None

    async def dial() -> Stream:
        return await dial_tcp(profile.proxy)

    return AuthClient(dial, Credentials(certificate, key, TrustedCas.from_json(profile.cas)))
