"""What the READMEs show works: their shell lines, pasted in order while `pointsman dev` runs, and their example app."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def blocks(readme: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / readme).read_text(), re.MULTILINE | re.DOTALL)


async def test_the_example_app_of_the_pipeline_reference_runs(stack):
    (example,) = blocks("data_plane/README.md", "yaml")
    app = await stack.plane.create_app(v1=yaml.safe_load(example))
    for environment, answer in (("staging", "Hello Ann (v1)"), ("production", "Hello Ann")):
        await stack.plane.deploy(app, "v1", environment)
        response = await stack.gates[0].post(app, "greet", json={"name": "Ann"}, X_Environment=environment)
        assert (response.status_code, response.json()) == (200, answer)


def test_every_link_to_a_file_leads_somewhere():
    readmes = [path for path in ROOT.glob("**/README.md") if ".venv" not in path.parts]
    broken = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in readmes
        for link in re.findall(r"\]\(([^)#:]+)\)", re.sub(r"`[^`\n]*`", "", path.read_text()))
        if not (path.parent / link).exists()
    ]
    assert broken == []
    assert len(readmes) >= 5
