"""The container image, built as slidesam.def says but without Apptainer, and a stand-in for `apptainer exec` to enter it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

CONTAINER = ROOT / "infra" / "container"
# Where packages come from on this machine; the build passes it through. Certificates travel as a file.
_REGISTRY = re.compile(
    r"(PIP_(EXTRA_)?INDEX_URL|PIP_TRUSTED_HOST|UV_(DEFAULT_)?INDEX|(https?|no|all)_proxy)", re.IGNORECASE
)
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def sections(definition: Path) -> dict[str, str]:
    """Text of each section of an Apptainer definition, by name."""
    parts = re.split(r"^%(\w+)[ \t]*\n", definition.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="session")
def debian_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image without extras, as a file that the stand-in takes where Apptainer takes a .sif; gone after the session."""
    if os.geteuid() != 0:
        pytest.skip("making a Debian root needs root")
    for tool in ("debootstrap", "unshare", "chroot"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")

    folder = tmp_path_factory.mktemp("container")
    root = folder / "root"
    try:
        _run(folder / "debootstrap.log", ["debootstrap", "--variant=minbase", "bookworm", str(root), *_mirror()])
        _build(root, folder / "build.log", EXTRAS="")
        image = folder / "slidesam.sif"
        image.write_text(f"{root}\n")
        yield image
    finally:
        # Pytest would keep a gigabyte for each of the last three sessions.
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def apptainer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH in which `apptainer` is the stand-in."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "apptainer").symlink_to(CONTAINER / "apptainer-stand-in")
    return folder


def _mirror() -> list[str]:
    """Where this machine's apt gets Debian from; on another system debootstrap knows better."""
    system = Path("/etc/os-release").read_text()
    release = re.search(r"^VERSION_CODENAME=(\w+)$", system, re.MULTILINE)
    if not re.search(r"^ID=debian$", system, re.MULTILINE) or release is None:
        return []
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    wanted = [line.split()[2] for line in listed if line.split()[:2] == [release[1], "main"]]
    return wanted[:1]


def _build(root: Path, log: Path, **arguments: str) -> None:
    """What `apptainer build` does with the definition's %files, %post and %environment."""
    parts = sections(CONTAINER / "slidesam.def")
    for line in parts["files"].splitlines():
        if line.strip():
            source, target = shlex.split(line)
            inside = root / target.lstrip("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-fLr", source, inside], cwd=ROOT, check=True)
    environment = root / ".singularity.d" / "env" / "90-environment.sh"
    environment.parent.mkdir(parents=True)
    environment.write_text(parts["environment"])

    settings = {name: value for name, value in os.environ.items() if _REGISTRY.fullmatch(name)}
    lent = [root / "certificates.pem", root / "etc" / "pip.conf"]
    certificates = Path(os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or _CERTIFICATES)
    if certificates.is_file():
        shutil.copy(certificates, lent[0])
        settings["PIP_CERT"] = "/certificates.pem"
    if Path("/etc/pip.conf").is_file():
        shutil.copy("/etc/pip.conf", lent[1])
    settings |= {"HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    script = re.sub(r"{{\s*(\w+)\s*}}", lambda name: arguments[name[1]], parts["post"])
    mount, chroot = shutil.which("mount"), shutil.which("chroot")
    inside = f"{mount} -t proc proc {root}/proc && exec {chroot} {root} sh -ec {shlex.quote(script)}"
    _run(log, ["sh", "-c", inside], settings)
    for file in lent:
        file.unlink(missing_ok=True)


def _run(log: Path, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Runs with mounts of its own, which end with it: none is left for the clean-up to run into."""
    unshare = shutil.which("unshare")
    with log.open("w") as file:
        done = subprocess.run(
            [str(unshare), "--mount", *command], stdout=file, stderr=file, env=environment, check=False
        )
    assert done.returncode == 0, f"{command}\n" + log.read_text()[-5000:]
