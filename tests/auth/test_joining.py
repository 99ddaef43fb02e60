"""Tokens, joining, the names a host may carry, and renewal."""

from datetime import timedelta

import pytest
from cryptography import x509

from monoport.access.identity import from_ssh, from_x509
from monoport.auth import messages
from monoport.auth.keys import generate
from monoport.auth.names import check_agent_name, proxy_names
from monoport.auth.refusals import Exists, Forbidden, Invalid, NotFound, TokenExpired, TokenType, TokenUnknown

PAIR = generate()


def request(token, name="node-one", roles=("node",), names=(), pair=PAIR):
    return messages.Join(
        token=token, name=name, roles=roles, names=names, public_key=pair.public, ssh_public_key=pair.ssh_public
    )


@pytest.fixture
def proxy(world):
    return world.host("proxy")


async def make_token(world, *types, **values):
    return await world.auth.administration.tokens_add(
        world.admin, messages.NewToken(types=types or ("node",), **values)
    )


async def test_a_token_lets_several_hosts_join_and_each_gets_an_id_of_its_own(world, proxy):
    made = await make_token(world)
    one = await world.auth.service.join(proxy, request(made.token))
    two = await world.auth.service.join(proxy, request(made.token, "node-two", pair=generate()))
    assert one.host_id != two.host_id
    identity = from_x509(x509.load_pem_x509_certificate(one.certificate.encode()), one.cas)
    assert (identity.name, identity.roles) == (one.host_id, ("node",))
    assert identity.principals == ("node-one", "node-one.example.com", one.host_id)
    assert from_ssh(one.ssh_certificate, one.cas).principals == identity.principals


async def test_an_agents_tls_certificate_carries_no_name_it_could_serve_under(world, proxy):
    made = await make_token(world)
    joined = await world.auth.service.join(proxy, request(made.token))
    certificate = x509.load_pem_x509_certificate(joined.certificate.encode())
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


async def test_unknown_expired_and_wrong_tokens_are_told_apart(world, proxy, clock):
    made = await make_token(world, "db", ttl=60)
    with pytest.raises(TokenUnknown, match="tctl tokens add"):
        await world.auth.service.join(proxy, request("never-made"))
    with pytest.raises(TokenType, match="is for db, not for node"):
        await world.auth.service.join(proxy, request(made.token))
    clock.advance(seconds=61)
    with pytest.raises(TokenExpired, match="expired at"):
        await world.auth.service.join(proxy, request(made.token, roles=("db",)))
    clock.advance(days=8)
    with pytest.raises(TokenUnknown):
        await world.auth.service.join(world.host("proxy"), request(made.token, roles=("db",)))


async def test_one_wrong_role_among_right_ones_is_refused(world, proxy):
    made = await make_token(world, "node", "db")
    assert (await world.auth.service.join(proxy, request(made.token, roles=("node", "db")))).host_id
    with pytest.raises(TokenType):
        await world.auth.service.join(proxy, request(made.token, roles=("node", "proxy")))


@pytest.mark.parametrize("kind", ["auth", "trusted_cluster"])
async def test_a_token_alone_makes_nobody_an_auth_service(world, proxy, kind):
    made = await make_token(world, kind)
    with pytest.raises(TokenType, match="not served yet"):
        await world.auth.service.join(proxy, request(made.token, roles=(kind,)))


async def test_the_value_of_a_token_is_kept_nowhere(world):
    made = await make_token(world, value="my-own-token-value")
    assert made.token == "my-own-token-value"
    stored = await world.auth._storage.range("/")
    assert not [item.key for item in stored if b"my-own-token-value" in item.value or "my-own-token-value" in item.key]
    events = (await world.auth.administration.events(world.admin, 100, None, None)).events
    assert "my-own-token-value" not in repr(events)
    listed = await world.auth.administration.tokens_list(world.admin)
    assert [one.id for one in listed] == [made.id]


async def test_tokens_are_removed_by_id_and_by_value(world, proxy):
    for by in ("id", "token"):
        made = await make_token(world)
        named = messages.NamedToken(token=getattr(made, by))
        await world.auth.administration.tokens_remove(world.admin, named)
        with pytest.raises(TokenUnknown):
            await world.auth.service.join(proxy, request(made.token))
        with pytest.raises(NotFound):
            await world.auth.administration.tokens_remove(world.admin, named)


async def test_two_tokens_of_one_value_and_careless_values_are_refused(world, clock):
    await make_token(world, value="first-token")
    with pytest.raises(Exists):
        await make_token(world, value="first-token")
    clock.advance(hours=1)
    assert (await make_token(world, value="first-token")).token == "first-token", "the expired one does not count"
    for value in ("short", "new\nline-token", " padded-token"):
        with pytest.raises(Invalid):
            await make_token(world, value=value)
    with pytest.raises(Invalid, match="366 days"):
        await world.auth._parts.tokens.add(("node",), ttl=timedelta(days=400))


@pytest.mark.parametrize(
    "name",
    [
        *("example.com", "EXAMPLE.COM", "localhost", "kube", "db", "front.example.org", "any.db.example.org"),
        *("bootstrap.teleport.cluster.local", "127.0.0.1", "two words", "", "-x", "a" * 64, "x\n"),
    ],
)
async def test_no_agent_gets_a_name_of_the_front_door(world, proxy, name):
    await world.auth.admit("proxy", "front", ("front.example.org", "*.db.example.org", "kube.front.example.org"))
    made = await make_token(world)
    with pytest.raises((Invalid, ValueError)):
        await world.auth.service.join(proxy, request(made.token, name))


def test_a_name_that_the_cluster_would_complete_to_a_front_doors_is_refused():
    with pytest.raises(Invalid, match=r"proxy\.example\.com"):
        check_agent_name("proxy", "example.com", ["proxy.example.com"])
    check_agent_name("node", "example.com", ["proxy.example.com", "*.db.proxy.example.com"])


async def test_only_proxies_choose_names(world, proxy):
    made = await make_token(world, "node", "proxy")
    with pytest.raises(Forbidden):
        await world.auth.service.join(proxy, request(made.token, names=("front.example.org",)))
    joined = await world.auth.service.join(
        proxy, request(made.token, "edge", ("proxy",), ("Front.Example.org", "*.db.x.org"))
    )
    certificate = x509.load_pem_x509_certificate(joined.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    assert {"front.example.org", "*.db.x.org", "bootstrap.teleport.cluster.local", "localhost"} <= set(dns)


def test_a_proxys_names_are_bounded_and_canonical():
    assert "xn--bcher-kva.example" in proxy_names("example.com", ["BÜCHER.example"])
    for names in (["a b"], ["*"], ["*.*.x"], [f"n{number}.x" for number in range(65)]):
        with pytest.raises(Invalid):
            proxy_names("example.com", names)


async def test_both_public_keys_must_be_one_key(world, proxy):
    made = await make_token(world)
    join = request(made.token).model_copy(update={"ssh_public_key": generate().ssh_public})
    with pytest.raises(Invalid, match="same key"):
        await world.auth.service.join(proxy, join)


async def test_renewal_keeps_roles_and_names_and_only_a_proxy_changes_names(world):
    keys = {"public_key": PAIR.public, "ssh_public_key": PAIR.ssh_public}
    _, admitted = await world.auth.admit("node", "node-one")
    node = from_x509(x509.load_pem_x509_certificate(admitted.certificate.encode()), admitted.cas)
    renewed = await world.auth.service.renew(node, messages.Renew(**keys))
    again = from_x509(x509.load_pem_x509_certificate(renewed.certificate.encode()), renewed.cas)
    assert (again.name, again.roles, again.principals) == (node.name, node.roles, node.principals)
    with pytest.raises(Forbidden):
        await world.auth.service.renew(node, messages.Renew(**keys, names=("front.example.org",)))
    _, admitted = await world.auth.admit("proxy", "front", ("front.example.org",))
    front = from_x509(x509.load_pem_x509_certificate(admitted.certificate.encode()), admitted.cas)
    renewed = await world.auth.service.renew(front, messages.Renew(**keys, names=("new.example.org",)))
    certificate = x509.load_pem_x509_certificate(renewed.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "new.example.org" in names.get_values_for_type(x509.DNSName)
    assert "front.example.org" not in names.get_values_for_type(x509.DNSName)


async def test_a_certificate_that_says_other_roles_is_not_renewed(world):
    _, admitted = await world.auth.admit("node", "node-one")
    liar = world.host("proxy", admitted.host_id)
    with pytest.raises(Forbidden, match="do not change"):
        await world.auth.service.renew(liar, messages.Renew(public_key=PAIR.public, ssh_public_key=PAIR.ssh_public))
