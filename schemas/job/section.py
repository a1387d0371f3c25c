"""A mapping of a job file."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping of a job file: unknown keys are errors, and errors never show its whole input."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        """Read a section without keys (YAML's null) as its defaults."""
        if not isinstance(value, dict):
            return value
        sections = [
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.default_factory, type)
            and type(None) not in get_args(field.annotation)
        ]
        return {k: {} if v is None and k in sections else v for k, v in value.items()}
