"""Places: settings -> the folders that several processes share."""

from pathlib import Path

from streams.settings import Settings


def adapter_store(settings: Settings) -> Path:
    """The content-addressed folder of adapters."""
    return settings.data / "models" / "adapters"


def base_folder(settings: Settings) -> Path:
    """Where the base is converted or downloaded to; shared by every deployment of this user."""
    return settings.cache / "base"


def logs(settings: Settings) -> Path:
    """What processes say."""
    return settings.data / "logs"


def run(settings: Settings) -> Path:
    """What processes tell each other about being alive."""
    return settings.data / "run"
