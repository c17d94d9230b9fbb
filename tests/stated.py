"""Presets against what a paper or its code states: for tests that write these values down once more."""

from pathlib import Path
from typing import Any

import yaml


def assert_states(config: Path, **stated: Any) -> None:
    """The preset gives every stated value."""
    preset = yaml.safe_load(config.read_text())
    settings = preset["model"]["init_args"] | preset["data"] | preset["trainer"] | {"rule": preset["rule"]}
    assert {key: settings[key] for key in stated} == stated
