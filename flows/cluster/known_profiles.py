"""Tells whether a profile that a file or a form gives may be used: it could run anything as the person who computes.

A profile's texts are code: lines of shell (`prologue`), a program (`python`, `container`), options of the queue, the address of
a scheduler that sends pickles. So such a profile is used only if one that the site keeps has the same texts and `options`: a
profile with a name, or the group server's own (SLIDESAM_CLUSTER). Numbers (jobs, cores, memory, times) may differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from slidesam.flows.cluster.find_profile import load_profile, profile_names
from slidesam.flows.cluster.profile import AttachProfile, ClusterProfile, LocalGpuProfile, LocalProfile
from slidesam.tasks.errors import SettingsError

# Fields of a profile that a pattern, choices or ranges bound. Keys of `options` may be called the same.
_BOUNDED = ("walltime", "lifetime", "lifetime_stagger", "memory_steps")

_MOST_PER_CORE = 4


def refuse_unknown(profile: ClusterProfile, origin: str) -> None:
    """Refuse a profile of unknown origin that holds code, unless a profile of this machine holds the same.

    Args:
        profile: The profile.
        origin: How it was given, for the message.

    Raises:
        SettingsError: It isn't known here.
    """
    # Workers of this process: numbers, and names of devices.
    if isinstance(profile, LocalProfile | LocalGpuProfile):
        _refuse_many(profile, origin)
        return
    code = _find_code(profile)
    differences = [_list_differences(code, known) for known in _read_known(profile.kind)]
    if [] in differences:
        return
    example = "--cluster NAME"
    if isinstance(profile, AttachProfile):
        example = f"--cluster attach --scheduler {profile.address}"
        example += f" --cluster-set ca_file={profile.ca_file}" if profile.ca_file else ""
    elif differences:
        # Of the most similar profile: without these the jobs would go elsewhere, silently.
        example += "".join(f" --cluster-set {name}=..." for name in min(differences, key=len))
    raise SettingsError(
        f"{origin} a cluster profile ({profile.kind}) that is none of this machine's, and that could run any command",
        f"name the one to use, by `{example}` or in the form (`slidesam cluster list` shows them); a site adds one to a folder "
        "that SLIDESAM_PROFILES names",
    )


def _refuse_many(profile: LocalProfile | LocalGpuProfile, origin: str) -> None:
    """Refuse more workers than this machine could bear."""
    from dask.system import CPU_COUNT

    if isinstance(profile, LocalProfile):
        count = profile.n_workers
    else:
        count = profile.workers_per_gpu * (1 if profile.devices == "auto" else len(profile.devices))
    if count > _MOST_PER_CORE * CPU_COUNT:
        raise SettingsError(
            f"{origin} {count} workers on this machine, which has {CPU_COUNT} cores",
            f"name what to use, such as `--cluster {profile.kind}`",
        )


def _list_differences(code: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of fields whose code isn't the known one."""
    flat, known_flat = (
        {
            f"{section}.{name}" if name else section: value
            for section, part in values.items()
            for name, value in (part.items() if isinstance(part, Mapping) else [("", part)])
        }
        for values in (code, known)
    )
    return [name for name in {**known_flat, **flat} if flat.get(name) != known_flat.get(name)]


def _read_known(kind: str) -> Iterator[dict[str, Any]]:
    """Yield the code of this machine's profiles of a kind; one that can't be read counts as none."""
    site = os.environ.get("SLIDESAM_CLUSTER")
    for name in (*map(str, profile_names().values()), *([site] if site else [])):
        try:
            profile = load_profile(name)
        except SettingsError:
            continue
        if profile.kind == kind:
            yield _find_code(profile)


def _find_code(section: BaseModel) -> dict[str, Any]:
    """Return what of a profile may be code, by field: all but its own numbers; `options` whole, with keys and numbers."""
    code: dict[str, Any] = {}
    for name, value in section:
        part = _find_code(value) if isinstance(value, BaseModel) else value
        if name not in _BOUNDED and not isinstance(part, int | float) and part not in (None, (), {}):
            code[name] = part
    return code
