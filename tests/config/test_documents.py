"""The sample works, all of it, and the page is current."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from monoport import config
from monoport.cli.monoport import group
from monoport.config.document import page
from monoport.config.model import Config
from monoport.config.sample import sample
from monoport.config.section import Section

ROOT = Path(__file__).parents[2]


def test_configure_prints_a_configuration_that_loads_as_it_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["configure"])
    assert result.exit_code == 0
    (tmp_path / "monoport.yaml").write_text(result.output)
    loaded = config.load(tmp_path / "monoport.yaml")
    assert loaded.proxy_service.enabled
    assert loaded.auth_service.enabled


def test_every_key_of_the_sample_works(tmp_path: Path, key_pair: tuple[Path, Path]) -> None:
    key, certificate = key_pair
    text = re.sub(r"(?m)^( *)#(?=[a-z-])", r"\1", sample("example.com", "node-1"))
    text = text.replace("/etc/monoport/privkey.pem", str(key)).replace("/etc/monoport/fullchain.pem", str(certificate))
    text = text.replace("/etc/monoport/database-ca.pem", str(certificate))
    loaded = config.parse(text, str(tmp_path / "monoport.yaml"))
    assert loaded.proxy_service.postgres_listen_addr is not None
    assert loaded.db_service.databases[0].tls.ca_cert_file == certificate
    assert loaded.ssh_service.labels == {"env": "prod"}
    assert not re.search(r"(?m)^ *#[^ \n]", text), "a line that is neither prose nor a key"


def test_the_lines_for_an_agent_work(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    agent = sample("example.com", "node-1").partition("filled in):\n#\n")[2].replace("#   ", "")
    agent = agent.replace("sha256:...", "sha256:" + "0" * 64).replace("/etc/monoport", str(tmp_path))
    loaded = config.parse("version: v3\n" + agent, "agent.yaml")
    assert loaded.ssh_service.enabled
    assert loaded.teleport.join_params.token_name == "abc"


def test_the_page_is_current() -> None:
    current = (ROOT / "docs" / "configuration.md").read_text()
    assert current == page(), "run: python -m monoport.config.document > docs/configuration.md"


def sections(model: type[Section]) -> list[type[Section]]:
    found = [model]
    for field in model.model_fields.values():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, Section):
                found += sections(part)
    return found


@pytest.mark.parametrize("model", sections(Config), ids=lambda model: model.__name__)
def test_every_key_says_what_it_means(model: type[Section]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert not model.later & set(model.model_fields)
