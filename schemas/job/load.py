"""Read a job file: YAML to a mapping, and a mapping to a checked job or one clear message."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from schemas.errors import JobFileError
from schemas.job.section import Section
from schemas.shown import redact_text

SectionT = TypeVar("SectionT", bound=Section)

_SECRET_KEYS = ("storage_options", "on_finish")
_MAX_CHARACTERS = 1 << 20
_MAX_NODES = 100_000
_UNION_TAG = re.compile(r"(constrained-)?(int|float)\Z|literal\[")  # in pydantic's locations


def read_spec(path: Path | None, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """Read a job file as an unchecked mapping, and apply the overrides.

    Raises:
        JobFileError: there is no such file, it is not YAML, or an override names a key inside a
            plain value.
    """
    spec = _read_mapping(path) if path else {}
    for dotted, value in (overrides or {}).items():
        *sections, last = dotted.split(".")
        target = spec
        for section in sections:
            inner = {} if target.get(section) is None else target[section]
            if not isinstance(inner, dict):
                raise JobFileError(f"{dotted}: {section} has no keys, set it as a whole")
            target[section] = target = dict(inner)  # a copy: it may be the caller's own
        target[last] = value
    return spec


def check(kind: type[SectionT], spec: dict[str, Any], origin: str) -> SectionT:
    """Check any kind of job file, given as a mapping.

    Raises:
        JobFileError: lists every mistake, one a line.
    """
    try:
        return kind.model_validate(spec)
    except RecursionError:  # such as of a JSON Schema
        raise JobFileError(f"{origin} is not valid: a value is nested too deeply") from None
    except ValidationError as error:
        raise JobFileError(f"{origin} is not valid:\n{_explain(error, kind)}") from None


def _read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        JobFileError: it is missing, not YAML, no mapping, or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise JobFileError(f"there is no job file {path}") from None
    except (OSError, ValueError) as error:
        raise JobFileError(f"the job file {path} cannot be read: {error}") from None
    try:
        content = parse_yaml(text)
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, which may have secrets
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobFileError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise JobFileError(f"{path} is not valid YAML ({error})") from None
    if not isinstance(content, dict):
        raise JobFileError(
            f"{path} must be a mapping with `input` and `output`, see docs/job-file.md"
        )
    return content


def parse_yaml(text: str) -> Any:
    """Parse YAML text; anchors may not repeat more than a person writes.

    Raises:
        yaml.YAMLError: not YAML, too deep or too large, or a key is given twice.
    """
    if len(text) > _MAX_CHARACTERS:
        raise yaml.YAMLError(f"over {_MAX_CHARACTERS:,} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:  # its text has several lines
        raise yaml.YAMLError(type(error).__name__) from None
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of tags and odd values
        raise yaml.YAMLError(type(error).__name__) from None


class _Loader(yaml.SafeLoader):
    """A YAML loader for which a key that is given twice is an error."""

    def construct_document(self, node: Any) -> Any:
        """Build the document, unless its anchors repeat too much."""
        sizes: dict[int, int] = {}
        if _num_nodes(node, sizes) > _MAX_NODES:
            raise yaml.YAMLError(f"its anchors repeat it to over {_MAX_NODES:,} values")
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a dict, as SafeLoader does."""
        seen = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        for key, _ in pairs:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name not in (None, "<<"):
                problem = f"{name} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _num_nodes(node: Any, sizes: dict[int, int]) -> int:
    """Number of nodes in a tree in which each alias is its anchor's tree.

    sizes: of the nodes that were counted, by their ``id``; 0 for those that are being counted.

    Raises:
        yaml.YAMLError: an anchor contains itself.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.YAMLError("an anchor contains itself")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [p for child in children for p in (child if isinstance(child, tuple) else (child,))]
    sizes[id(node)] = 1 + sum(_num_nodes(part, sizes) for part in parts)
    return sizes[id(node)]


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Turn pydantic's errors into one line for each wrong key, in the file's order.

    Plain values are shown; mappings are not, since they may hold secrets.
    """
    problems: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    findings = error.errors(include_url=False)
    for found in findings:
        # A list with wrong elements is reported as empty too: only the elements are shown.
        if found["type"] == "too_short" and any(
            _is_inside(f["loc"], found["loc"]) for f in findings
        ):
            continue
        keys = [str(part) for part in found["loc"] if not _UNION_TAG.match(str(part))]
        where = ".".join(keys) or "the job"
        message = _message(found, model)
        if message not in problems.setdefault(where, []):
            problems[where].append(message)
        if _may_be_shown(found):
            got[where] = f" (got {redact_text(str(found['input']))[:80]!r})"
    lines = [f"  {key}: {' or '.join(texts)}{got.get(key, '')}" for key, texts in problems.items()]
    return "\n".join(lines)


def _is_inside(loc: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _may_be_shown(found: Any) -> bool:
    is_plain = isinstance(found["input"], str | int | float | None)
    is_about_key = found["type"] in ("extra_forbidden", "missing")
    return is_plain and not is_about_key and not _in_secrets(found["loc"])


def _in_secrets(loc: tuple[int | str, ...]) -> bool:
    return bool(loc) and loc[0] in _SECRET_KEYS


def _message(found: Any, model: type[BaseModel]) -> str:
    kind = found["type"]
    if kind == "extra_forbidden":
        page = "finetune-file" if "training" in model.model_fields else "job-file"
        return f"unknown key{_meant(found['loc'], model)}; see docs/{page}.md for the known ones"
    if kind == "missing":
        return "required"
    if kind in ("model_type", "dict_type"):
        return "must be a mapping, `key: value`"
    if kind == "tuple_type":
        return "must be a list, such as [a, b]"
    if kind == "too_short":
        return f"must have at least {found['ctx']['min_length']}"
    text = str(found["msg"]).removeprefix("Value error, ")
    return text.replace("Input should", "must").replace("String should", "must")


def _meant(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Suggest the known key that is most similar to an unknown one."""
    sections = list(_sections(loc[:-1], model))
    names = list(sections[-1].model_fields) if sections else []
    near = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.6)
    if not near and len(loc) == 1:  # it may be the key of a section
        near = [
            f"{name}.{loc[0]}"
            for name, field in model.model_fields.items()
            if loc[0] in getattr(field.annotation, "model_fields", ())
        ]
    return f", did you mean {near[0]!r}?" if near else ""


def _sections(loc: tuple[int | str, ...], model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the models on the path to ``loc``, the outermost first."""
    yield model
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            return
        model = inner
        yield model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models in a type, such as those of a tuple's elements."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
