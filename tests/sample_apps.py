"""Apps for end-to-end tests. Each release carries its mark in two places, so that an answer mixed from two releases shows."""

from __future__ import annotations

from typing import Any

import yaml

Config = dict[str, Any]


def marked(mark: str, tool_url: str | None = None) -> Config:
    """An endpoint `where` whose answer has the mark from its first and from its last stage; with a URL, the tool is called in between.

    Answer: {"first", "last": the mark, "release", "environment", "message": the input's}.
    """
    middle = []
    if tool_url:
        middle = [{"name": "between", "steps": [{"name": "asked", "timeout": "20s", "tool_call": {"tool": "pause", "arguments": "{}"}}]}]
    answer = f"{{'first': steps.start, 'last': '{mark}', 'release': release, 'environment': environment, 'message': input.message}}"
    return {
        "endpoints": [
            {
                "name": "where",
                "path": "where",
                "pipeline": "tell",
                "timeout": "30s",
                "input_schema": {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}},
            }
        ],
        "pipelines": [
            {
                "name": "tell",
                "stages": [
                    {"name": "begin", "steps": [{"name": "start", "transform": {"expression": f"'{mark}'"}}]},
                    *middle,
                    {"name": "end", "steps": [{"name": "answer", "transform": {"expression": answer}}]},
                ],
            }
        ],
        "tools": [{"name": "pause", "http": {"method": "GET", "url": tool_url}}] if tool_url else [],
    }


def as_yaml(config: Config) -> str:
    """The config as the file that a person writes."""
    return yaml.safe_dump(config, sort_keys=False)
