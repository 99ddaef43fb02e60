"""A configuration file -> Config, or one line that says where it is wrong.

Belongs here: reading the file, turning validation errors into positions, what depends on several keys at once.
Does not belong here: the keys themselves (model.py), YAML (source.py).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from monoport import protocols
from monoport.config import source, values
from monoport.config.model import Config, KeyPair, ProxyService
from monoport.config.source import ConfigError, Position, Source
from monoport.config.values import Address
from monoport.protocols.description import Description

_SECTIONS = ("auth_service", "proxy_service", "ssh_service", "db_service", "app_service", "kubernetes_service")
_EXPECTED = {
    "string_type": "expected a string",
    "int_type": "expected a whole number",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected keys with values",
}


def load(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read or used; one line with file, line and column.
    """
    try:
        with path.open("rb") as file:
            data = file.read(source.MAX_TEXT + 1)
    except OSError as error:
        message = f"cannot read the configuration: {error.strerror}; expected a file (monoport configure prints one)"
        raise ConfigError(str(path), Position(1, 1), message) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        position = Position(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise ConfigError(str(path), position, "a byte that is not UTF-8; expected a text file") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Config:
    """Read a configuration from text.

    Args:
        text: YAML.
        name: what errors call it; relative paths in it are below this name's folder.

    Raises:
        ConfigError: it cannot be used; one line with name, line and column.
    """
    document = source.read(text, name)
    _place_sections(document)
    if "version" not in document.data:
        message = (
            "version is missing, which means v1, and v1 is not available in this version yet; expected version: v3"
        )
        raise document.error((), message)
    context = {"base": Path(name).absolute().parent, "protocols": _protocols(document)}
    try:
        config = Config.model_validate(document.data, context=context)
    except ValidationError as error:
        raise _first(error.errors(include_url=False), document) from None
    _check(config, document)
    return _complete(config, document).read_from(replace(document, data={}))


def _place_sections(document: Source) -> None:
    """Move services written under `teleport:` to the top, where the models have them."""
    teleport = document.data.get("teleport")
    if not isinstance(teleport, dict):
        return
    for section in _SECTIONS:
        if section not in teleport:
            continue
        if section in document.data:
            line = document.keys[section,].line
            message = f"{section} is given twice, here and at line {line}; expected it once"
            raise document.error(("teleport", section), message, at_key=True)
        document.data[section] = teleport.pop(section)
        document.move(("teleport", section), (section,))


def _protocols(document: Source) -> Mapping[str, Description]:
    """The table of protocols with those that `teleport.protocols` names, of which the names of others keys may be."""
    teleport = document.data.get("teleport")
    named = teleport.get("protocols", ()) if isinstance(teleport, dict) else ()
    others = (named,) if isinstance(named, str) else tuple(named) if isinstance(named, list) else ()
    if not all(isinstance(name, str) for name in others):
        return protocols.TABLE  # the model says where
    try:
        return protocols.table(others)
    except ValueError as error:
        raise document.error(("teleport", "protocols"), f"teleport.protocols: {error}") from None


def _first(errors: list[ErrorDetails], document: Source) -> ConfigError:
    """The error that comes first in the file."""
    return min((_error(error, document) for error in errors), key=lambda error: error.position)


def _error(error: ErrorDetails, document: Source) -> ConfigError:
    path, context = tuple(error["loc"]), error.get("ctx", {})
    at_key = bool(context.get("at_key"))
    if error["type"] == "monoport":
        message = str(context["message"])
        if not at_key:
            message = f"{_dotted(path)}: {message}"
        if (key := context.get("key")) is not None:
            path = (*path, key)
    elif error["type"] == "missing":
        message = f"{path[-1]} is missing; expected it in {_dotted(path[:-1]) or 'the file'}"
        path = path[:-1]
        at_key = True
    else:
        message = f"{_dotted(path)}: {values.show(error['input'])}: {_expectation(error)}"
    return document.error(path, message, at_key=at_key)


def _expectation(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            return f"expected {str(context['expected']).replace(chr(39), '')}"
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            return f"expected a whole number, {bound}"
        case kind:
            return _EXPECTED.get(kind, error["msg"])


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _check(config: Config, document: Source) -> None:
    """Refuse what each key allows and several together do not."""
    teleport, proxy = config.teleport, config.proxy_service
    agents = [section for section in ("ssh_service", "db_service") if getattr(config, section).enabled]
    if not agents and not proxy.enabled and not config.auth_service.enabled:
        known = "auth_service, proxy_service, ssh_service, db_service"
        raise document.error((), f"no service is enabled; expected enabled: yes in at least one of {known}")
    if agents and not proxy.enabled and not teleport.proxy_server:
        message = f"{agents[0]} needs a proxy; expected proxy_server in teleport, or proxy_service enabled here"
        raise document.error((agents[0], "enabled"), message)
    if config.auth_service.enabled and (teleport.auth_server or teleport.proxy_server):
        other = "auth_server" if teleport.auth_server else "proxy_server"
        message = f"auth_service is enabled and {other} names another one; expected one of them"
        raise document.error(("auth_service", "enabled"), message)
    _check_databases(config, document)
    for index, pair in enumerate(proxy.https_keypairs):
        _check_pair(pair, ("proxy_service", "https_keypairs", index), document)


def _check_databases(config: Config, document: Source) -> None:
    seen: dict[str, source.Position] = {}
    for index, database in enumerate(config.db_service.databases):
        path = ("db_service", "databases", index, "name")
        if database.name in seen:
            line = seen[database.name].line
            message = f'there is a database "{database.name}" at line {line} already; expected another name'
            raise document.error(path, message)
        seen[database.name] = document.values[path]
        if database.password_file is not None and not config.protocols[database.protocol].passwords:
            path = ("db_service", "databases", index, "password_file")
            message = f"password_file is not available for {database.protocol} yet; expected it to be left out"
            raise document.error(path, message, at_key=True)
        ca = database.tls.ca_cert_file
        if ca is not None:
            _certificates(ca, ("db_service", "databases", index, "tls", "ca_cert_file"), document)
    if config.db_service.enabled and not config.db_service.databases:
        raise document.error(("db_service",), "databases is missing; expected at least one in db_service", at_key=True)


def _check_pair(pair: KeyPair, path: source.Path, document: Source) -> None:
    certificates = _certificates(pair.cert_file, (*path, "cert_file"), document)
    try:
        key = load_pem_private_key(pair.key_file.read_bytes(), None)
    except (ValueError, TypeError, OSError):
        message = f"{pair.key_file} holds no private key in PEM form; expected one without a passphrase"
        raise document.error((*path, "key_file"), message) from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificates[0].public_key().public_bytes(*form):
        message = f"{pair.key_file} is not the key of {pair.cert_file}; expected the key of its first certificate"
        raise document.error((*path, "key_file"), message)


def _certificates(file: Path, path: source.Path, document: Source) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except (ValueError, OSError):
        raise document.error(path, f"{file} holds no certificate in PEM form; expected at least one") from None


def _complete(config: Config, document: Source) -> Config:
    """Fill in the defaults that follow from other keys."""
    teleport, auth, proxy = config.teleport, config.auth_service, config.proxy_service
    if proxy.enabled:
        proxy = proxy.model_copy(update={"public_addr": _public(proxy, teleport.nodename)})
    alone = teleport.auth_server is None and teleport.proxy_server is None
    if "enabled" not in auth.model_fields_set:
        auth = auth.model_copy(update={"enabled": proxy.enabled and alone})
    if auth.enabled and not auth.cluster_name:
        if not proxy.enabled:
            message = "cluster_name is missing; expected it in auth_service where no proxy_service is enabled"
            raise document.error(("auth_service",), message, at_key=True)
        auth = auth.model_copy(update={"cluster_name": proxy.public_addr[0].host})
    if proxy.enabled and not auth.enabled and alone:
        message = "auth_service is off; expected auth_server or proxy_server in teleport, or auth_service enabled"
        raise document.error(("auth_service", "enabled"), message)
    ports = {name: protocol.default_port for name, protocol in config.protocols.items()}
    databases = tuple(
        database.model_copy(update={"uri": Address(database.uri.host, ports[database.protocol])})
        if database.uri.port == 0
        else database
        for database in config.db_service.databases
    )
    db = config.db_service.model_copy(update={"databases": databases})
    return config.model_copy(update={"auth_service": auth, "proxy_service": proxy, "db_service": db})


def _public(proxy: ProxyService, nodename: str) -> tuple[Address, ...]:
    port = proxy.web_listen_addr.port
    addresses = proxy.public_addr or (Address(nodename, port),)
    return tuple(Address(address.host, address.port or port) for address in addresses)
