"""What every section of a configuration has in common: frozen, strict, no unknown keys, later keys refused by name.

Belongs here: the two base models. Does not belong here: any key.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from monoport.config.values import did_you_mean, problem, says_off, show


class Section(BaseModel):
    """A mapping with known keys; an empty one has nothing set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    later: ClassVar[frozenset[str]] = frozenset()  # keys that a later version will have and this one refuses by name

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise problem(f"{show(value)} is not a section; expected keys with values below it")
        for key, given in value.items():
            if key in cls.later and not says_off(given):
                raise problem(
                    f"{key} is not available in this version yet; expected it to be left out", key=key, at_key=True
                )
            if key not in cls.model_fields and key not in cls.later:
                hint = did_you_mean(key, [*cls.model_fields, *cls.later])
                raise problem(f"unknown key {show(key)}; {hint}", key=key, at_key=True)
        return {key: given for key, given in value.items() if key not in cls.later}


class Service(Section):
    """A section that starts a service: whoever writes it says whether it is enabled."""

    derived: ClassVar[bool] = False  # whether `enabled` may be left out because it follows from other sections

    @model_validator(mode="before")
    @classmethod
    def _says_enabled(cls, value: Any) -> Any:
        if isinstance(value, dict) and value and "enabled" not in value and not cls.derived:
            raise problem("enabled is missing; expected enabled: yes or enabled: no", at_key=True)
        return value
