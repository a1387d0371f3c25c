"""A YAML file that a person wrote: a mapping, or one clear message."""

from pathlib import Path
from typing import Any

import yaml

from schemas.errors import JobFileError


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        JobFileError: it is missing, not YAML, no mapping, or gives a key twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise JobFileError(f"there is no job file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobFileError(f"the job file {path} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:  # not its text: that quotes the line, secrets included
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobFileError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise JobFileError(f"{path} is not valid YAML ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise JobFileError(
            f"{path} must be a mapping with `input` and `output`, see docs/job-file.md"
        )
    return content


class _Loader(yaml.SafeLoader):
    """YAML, but a key that is given twice is an error and not silently the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Make a dict, as SafeLoader does."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                problem = f"{key.value} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)
