"""What every configuration model shares: frozen, strict, and helpful about a wrong key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from lamm.errors import ConfigError, nearest_names

ModelT = TypeVar("ModelT", bound=BaseModel)
_Location: TypeAlias = tuple[int | str, ...]
_MAX_DEPTH = 8


class Frozen(BaseModel):
    """A configuration that can't be changed after it was checked and knows all of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def parse(model_class: type[ModelT], mapping: Any, where: str) -> ModelT:
    """A configuration from what YAML, JSON or a caller says, or an error that names the wrong key.

    Args:
        model_class: the configuration that is expected.
        mapping: keys and values, nested.
        where: what the message starts with, such as the name of the file.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: every wrong key or value by its dotted name, with what was found and expected.
    """
    try:
        return model_class.model_validate(mapping)
    except ValidationError as error:
        # Unknown keys first: they are often why something else is missing or wrong.
        details = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        lines = [_explain(model_class, mapping, detail) for detail in details]
        raise ConfigError(f"{where}: " + "\n  ".join(dict.fromkeys(lines))) from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: no such file, not YAML (with the line), a key given twice, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as text ({error}).") from error
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}.") from error
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise ConfigError(f"{path}: found {found}, expected keys with values (`key: value`).")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as `safe_load` reads it, except that a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(
                key_node, yaml.ScalarNode
            ):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _explain(model_class: type[BaseModel], mapping: Any, detail: ErrorDetails) -> str:
    """One error of pydantic as a sentence."""
    kind, context, found = detail["type"], detail.get("ctx", {}), detail["input"]
    name = _dotted(detail["loc"], mapping, keep_last=kind in ("extra_forbidden", "missing"))
    here = f"'{name}': " if name else ""
    if kind == "extra_forbidden":
        *parents, key = detail["loc"]
        return f"unknown key '{name}'. {_offer(model_class, tuple(parents), str(key), name)}"
    if kind == "missing":
        return f"missing key '{name}'. Write `{detail['loc'][-1]}: ...` there."
    if kind == "value_error":
        return f"{here}{context['error']}"
    if kind == "union_tag_invalid":
        tag_name = str(context["discriminator"]).strip("'")
        known = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
        place = f"{name}.{tag_name}" if name else tag_name
        return f"'{place}': found {context['tag']!r}. {nearest_names(str(context['tag']), known)}"
    if kind == "union_tag_not_found":
        tag_name = str(context["discriminator"]).strip("'")
        return f"missing key '{name}.{tag_name}', which says what '{name}' is."
    expected = detail["msg"].removeprefix("Input should be ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        expected = "keys with values"
    text = f"{here}found {found!r}, expected {expected}."
    if kind == "literal_error" and isinstance(found, str):
        known = [word.strip("' ") for word in expected.replace(" or ", ",").split(",")]
        text = f"{text} {nearest_names(found, known)}"
    return text


def _dotted(location: _Location, mapping: Any, keep_last: bool) -> str:
    """Dotted name of a place in what the user wrote.

    Pydantic also puts the chosen member of a union into its locations; that isn't a key, so what
    the mapping doesn't have is left out, but for a last key that should have been there.
    """
    place, name = mapping, ""
    for number, part in enumerate(location):
        inside = isinstance(place, dict) and part in place
        if inside:
            place = place[part]
        elif isinstance(part, int) and isinstance(place, (list, tuple)) and part < len(place):
            name, place = f"{name}[{part}]", place[part]
            continue
        elif not (keep_last and number == len(location) - 1):
            continue
        name = f"{name}.{part}" if name else str(part)
    return name


def _offer(model_class: type[BaseModel], parents: _Location, key: str, written: str) -> str:
    """Close names at the same level; the key's right place, if that is elsewhere; or all names."""
    kinds: list[Any] = [model_class]
    for part in parents:
        kinds = _inside(kinds, part)
    known = {name for kind in kinds if _is_model(kind) for name in kind.model_fields}
    answer = nearest_names(key, known)
    if answer.startswith("Known"):
        same_key = (path for path in _paths(model_class) if path.rpartition(".")[2] == key)
        elsewhere = [path for path in dict.fromkeys(same_key) if path != written]
        if elsewhere:
            return "Did you mean " + " or ".join(f"'{path}'" for path in elsewhere[:3]) + "?"
    return answer


def _inside(kinds: list[Any], part: int | str) -> list[Any]:
    """The types that a key, an index or a union's tag leads to."""
    fields = [kind.model_fields[part] for kind in kinds if _is_model(kind) and part in _keys(kind)]
    if fields:
        return [inner for field in fields for inner in _members(field.annotation)]
    items = [
        member
        for kind in kinds
        if get_origin(kind) in (dict, list, tuple)
        for member in _members(get_args(kind)[-1 if get_origin(kind) is dict else 0])
    ]
    if items:
        return items
    tagged = [kind for kind in kinds if _is_model(kind) and part in _tags(kind)]
    return tagged or kinds


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _keys(kind: type[BaseModel]) -> set[int | str]:
    return set(kind.model_fields)


def _tags(kind: type[BaseModel]) -> set[Any]:
    """Names by which a union's member shows up in a location: its class, its literal values."""
    literals = [
        field.annotation
        for field in kind.model_fields.values()
        if get_origin(field.annotation) is Literal
    ]
    return {kind.__name__, *(value for literal in literals for value in get_args(literal))}


def _members(annotation: Any) -> list[Any]:
    """The types that a field may hold, without `Annotated` and unions around them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


def _paths(model_class: type[BaseModel], prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Dotted names of all keys of a configuration, but for those below free names."""
    for name, field in model_class.model_fields.items():
        yield f"{prefix}{name}"
        for kind in _members(field.annotation):
            if _is_model(kind) and depth < _MAX_DEPTH:
                yield from _paths(kind, f"{prefix}{name}.", depth + 1)
