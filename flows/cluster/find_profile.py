"""Finds cluster profiles by name or file, and reads them.

`--cluster NAME|FILE` chooses one: a file, or the name of one in a folder of the site's own (`SLIDESAM_PROFILES`,
`infra/profiles` of the checkout that is installed) or of those that come with slidesam. A profile holds lines of shell, so
none is taken from the current folder, which may hold anybody's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError, WithJsonSchema

from slidesam.flows.cluster.profile import (
    AttachProfile,
    ClusterProfile,
    LocalGpuProfile,
    LocalProfile,
    QueueJobs,
    QueueProfile,
    Scheduler,
    SlurmJobs,
    SlurmProfile,
)
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import FieldError, put_value, read_yaml

# As a parameter of a flow it may also be given by its name or file; a form shows it as that.
ProfileChoice = Annotated[
    ClusterProfile,
    BeforeValidator(lambda value: load_profile(value) if isinstance(value, str) else value),
    WithJsonSchema({"type": "string", "title": "Cluster"}),
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(ClusterProfile)
_SHIPPED = Path(__file__).parent / "profiles"


def load_profile(name: str, changes: Mapping[str, object] | None = None) -> Any:
    """Load a profile by name or file.

    Args:
        name: Name of a profile, or path of a YAML file.
        changes: Values by dotted key, which override those of the file.

    Raises:
        SettingsError: There is no such profile, or it can't be used.
    """
    path = _find(name)
    values = read_yaml(path, "cluster profile", "`key: value`: `slidesam cluster show slurm-gpu` shows one")
    for key, value in (changes or {}).items():
        put_value(values, key, value, "cluster profile")
    return make_profile(values, f"cluster profile {name}")


def make_profile(values: Mapping[str, object], owner: str = "cluster profile") -> Any:
    """Make a profile from its keys.

    Raises:
        SettingsError: A key is unknown, or its value can't be used.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        raise SettingsError(f"{owner}: {_in_words(error, values)}") from None


def profile_names() -> dict[str, Path]:
    """Return the file of each profile, by name; a site's own profile hides a shipped one of the same name."""
    profiles: dict[str, Path] = {}
    for folder in _folders():
        for path in sorted(folder.glob("*.yaml")):
            profiles.setdefault(path.stem, path)
    return profiles


def _folders() -> Iterator[Path]:
    yield from (Path(folder) for folder in os.environ.get("SLIDESAM_PROFILES", "").split(os.pathsep) if folder)
    yield Path(__file__).resolve().parents[2] / "infra" / "profiles"
    yield _SHIPPED


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        if not Path(name).is_file():
            raise SettingsError(f"cluster profile {name}: there is no such file")
        return Path(name)
    profiles = profile_names()
    if name not in profiles:
        raise SettingsError(
            f"there is no cluster profile {name!r}: give a YAML file, or one of {', '.join(sorted(profiles))}"
        )
    return profiles[name]


def _in_words(error: ValidationError, values: Mapping[str, object]) -> str:
    """Describe the first error of pydantic."""
    first = FieldError.first_of(error)
    kinds = ["local", "local-gpu", "slurm", "pbs", "lsf", "sge", "htcondor", "oar", "moab", "attach"]
    keys = [key for key in first.location if key not in kinds]
    name = ".".join(keys)
    match first.kind:
        case "union_tag_invalid" | "union_tag_not_found":
            return f"kind must be one of {', '.join(kinds)}, not {values.get('kind')!r}"
        case "extra_forbidden":
            return f"unknown key {name}: one of {values.get('kind')} has {', '.join(_keys(keys[:-1], values))}"
        case "missing" if name == "address":
            return "address is needed, that of a Dask scheduler that runs: give --scheduler tls://HOST:PORT"
        case "missing":
            return f"{name} is needed"
    return f"{name}: {first.message}" if name else first.message


def _keys(sections: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Return the keys that a profile of this kind has in a section."""
    models: dict[object, type[BaseModel]] = {
        "local": LocalProfile, "local-gpu": LocalGpuProfile, "slurm": SlurmProfile, "attach": AttachProfile,
    }  # fmt: skip
    model = models.get(values.get("kind"), QueueProfile)
    for section in sections:
        model = {"scheduler": Scheduler}.get(section, SlurmJobs if model is SlurmProfile else QueueJobs)
    return list(model.model_fields)
