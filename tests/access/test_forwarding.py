"""Which kinds of forwarding roles grant together, and which rule said so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.access.forwarding import Forwarding, Verdict, verdict, verdicts
from monoport.access.presets import PRESETS
from monoport.access.resources import ResourceError, Role, RoleOptions, parse_document, to_document


def role(name: str, **options: bool | None) -> Role:
    found = parse_document({"kind": "role", "metadata": {"name": name}, "spec": {"options": options}})
    assert isinstance(found, Role)
    return found


def test_every_kind_is_an_option_of_roles_and_off_unless_granted():
    assert set(Forwarding) <= set(RoleOptions.model_fields)
    assert not any(one.granted for one in verdicts([role("plain")]).values())
    assert not any(one.granted for one in verdicts([]).values())


@pytest.mark.parametrize("what", Forwarding)
def test_false_in_one_role_wins_over_true_in_another(what):
    yes, no, silent = role("yes", **{what: True}), role("no", **{what: False}), role("silent")
    assert verdict(what, [silent, yes]) == Verdict(True, f"role yes: options.{what} is true")
    assert verdict(what, [yes, no]) == Verdict(False, f"role no: options.{what} is false")
    assert verdict(what, [silent]) == Verdict(False, f"no role that allows this access has options.{what}")


@given(st.lists(st.fixed_dictionaries({what: st.sampled_from([None, True, False]) for what in Forwarding}), max_size=5))
def test_a_kind_is_granted_exactly_where_nobody_forbids_and_somebody_grants(said):
    found = verdicts([role(f"r{number}", **options) for number, options in enumerate(said)])
    for what in Forwarding:
        values = [options[what] for options in said]
        assert found[what].granted == (True in values and False not in values)


def test_an_explicit_false_survives_storage():
    kept = role("no", port_forwarding=False)
    assert to_document(kept)["spec"] == {"options": {"port_forwarding": False}}
    assert parse_document(to_document(kept)) == kept


@pytest.mark.parametrize("value", ["yes", 1, "true"])
def test_options_are_true_or_false(value):
    with pytest.raises(ResourceError, match="remote_port_forwarding"):
        role("odd", remote_port_forwarding=value)


def test_the_preset_access_grants_no_display_and_no_public_ports():
    granted = {what for what, one in verdicts([PRESETS["access"]]).items() if one.granted}
    assert granted == set(Forwarding) - {Forwarding.X11, Forwarding.GATEWAY}
