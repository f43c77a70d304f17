"""What a folder holds that a new run cannot have; told without torch, which may not be loaded."""

import json
from pathlib import Path


def verb_of(settings: dict) -> str:
    """The verb of `ldae` that wrote a config.json, which did not always say it."""
    launch, command = settings.get("launch"), str(settings.get("command"))
    if isinstance(launch, dict) and "verb" in launch:
        return str(launch["verb"])
    if "encoder" in settings:  # which fine-tuning starts from
        return "finetune"
    return "tokenizer" if command.startswith("ldae tokenizer ") else "train"


def taken(path: Path) -> str:
    """Of a folder with a config.json, to be said after its name: what it holds, what to do."""
    try:
        settings = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        settings = None
    if not (isinstance(settings, dict) and isinstance(settings.get("launch"), dict)):
        return "already holds other files; name a new or empty folder"
    if verb_of(settings) == "tokenizer":
        return "already holds a tokenizer; name a new folder"
    return f"already holds another run; name a new folder, or go on with `ldae resume {path}`"
