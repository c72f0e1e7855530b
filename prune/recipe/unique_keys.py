"""YAML in which no key stands twice: the library would silently take the last one."""

from typing import Any

import yaml
from yaml.nodes import MappingNode, ScalarNode


class _Loader(yaml.SafeLoader):
    """The safe loader, without silent repeats."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"key {key.value!r} stands twice in one table, again in line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Raises:
        yaml.YAMLError: it is not valid, or names a key of a table twice.
        ValueError: it has a value that does not exist, such as a date.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
