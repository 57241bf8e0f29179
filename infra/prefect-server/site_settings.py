"""Settings of one installation: defaults, a file of NAME=VALUE lines, and the environment, which overrides the file.

`server.env.example` explains them. The file is read as systemd reads it too; it is never run as shell code.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from zoneinfo import available_timezones

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What the processes of a part carry in their environment.
MARK = "SLIDESAM_SERVER_PART"
_NUMBERS = {
    "SLIDESAM_SERVER_PORT": 65535,
    "SLIDESAM_DATABASE_PORT": 65535,
    "SLIDESAM_SLIDES_AT_ONCE": 10_000,
    "SLIDESAM_HISTORY_DAYS": 36_500,
}


# What computes asks for beside settings of slidesam and Prefect.
_OTHERS = re.compile(
    r"MICROSAM_CACHEDIR|CUDA_\w+|TMPDIR|SLURM_\w+|SBATCH_\w+|(?:HTTPS?|FTP|ALL|NO)_PROXY|(?:https?|ftp|all|no)_proxy"
)


class ServerProblem(Exception):  # noqa: N818
    """The command can't do what it was asked; the message says why and what to do."""


class Site:
    """One installation.

    Args:
        environment: Environment variables of the caller; SLIDESAM_SERVER_CONFIG names a file with more.

    Attributes:
        values: Environment variables of its processes: the caller's and the file's, and defaults of what neither has.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        config = environment.get("SLIDESAM_SERVER_CONFIG")
        self.values = with_defaults({**(read_config(Path(config)) if config else {}), **environment})
        self.host, self.port = self.values["SLIDESAM_SERVER_HOST"], int(self.values["SLIDESAM_SERVER_PORT"])
        # "Every address" is none that a browser could go to.
        self.web = f"http://{socket.getfqdn() if self.host == '0.0.0.0' else self.host}:{self.port}"  # noqa: S104
        self.database_port = int(self.values["SLIDESAM_DATABASE_PORT"])
        self.deployments = Path(self.values["SLIDESAM_DEPLOYMENTS"])
        self.data = Path(self.values["SLIDESAM_SERVER_DATA"]).resolve()
        self.database = self.data / "database"
        if self.data.is_dir() and self.data.stat().st_uid != os.geteuid():
            raise ServerProblem(f"{self.data} belongs to {self.data.owner()}: do this as that user")

    def log(self, part: str) -> Path:
        """Return the log of a part."""
        return self.data / "log" / f"{part}.log"

    def secret(self, name: str) -> str:
        """Return a password, which is made once, in a file that its owner alone can read.

        Raises:
            ServerProblem: It can't be made: no room, or no permission.
        """
        file = self.data / name
        try:
            with self.making():
                # An empty file is what an earlier version left on a full disk. Nobody ever had an empty password.
                if not file.is_file() or not file.read_text().strip():
                    write_secret(file, secrets.token_urlsafe(24))
                return file.read_text().strip()
        except OSError as error:
            raise ServerProblem(
                f"the password {file} can't be made ({os.strerror(error.errno or 0)}): make room, or choose another "
                "SLIDESAM_SERVER_DATA"
            ) from error

    @contextmanager
    def making(self) -> Iterator[None]:
        """Let one process at a time make what is made once: systemd starts the database and the server together."""
        with open(self.data / "making", "w", opener=open_private) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def make_folders(self) -> None:
        """Make the folders for data. Others can't look into them.

        Raises:
            ServerProblem: It can't be made.
        """
        try:
            # Results may lie in it, so others may pass; they can't list it.
            self.data.mkdir(mode=0o711, parents=True, exist_ok=True)
            for name in ("log", "prefect", "tmp"):
                (self.data / name).mkdir(mode=0o700, exist_ok=True)
                # An earlier version let others read.
                (self.data / name).chmod(0o700)
        except OSError as error:
            raise ServerProblem(f"the folder for data can't be made ({error}): set SLIDESAM_SERVER_DATA") from error

    @property
    def auth_string(self) -> str:
        """What Prefect's clients log in with."""
        return f"slidesam:{self.secret('server.password')}"

    def prefect_environment(self) -> dict[str, str]:
        """Return what every Prefect process here is told, whatever the caller's own profile says."""
        others = ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_API_DATABASE_CONNECTION_URL")
        return {name: value for name, value in self.values.items() if name not in others} | {
            "PREFECT_HOME": str(self.data / "prefect"),
            "PREFECT_API_URL": f"{self.web}/api",
            "PREFECT_UI_URL": self.web,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_API_AUTH_STRING": self.auth_string,
        }


def open_private(path: str, flags: int) -> int:
    """Open a file that, if it is new, only its owner can read."""
    return os.open(path, flags, 0o600)


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner can read: whole, or not at all, also if the disk is full or the power goes."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    try:
        with open(new, "x", opener=open_private) as stream:
            stream.write(f"{text}\n")
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def with_defaults(values: Mapping[str, str]) -> dict[str, str]:
    """Check settings, and fill in those that are missing or empty."""
    data = values.get("SLIDESAM_SERVER_DATA") or "/var/lib/slidesam-server"
    defaults = {
        "SLIDESAM_SERVER_DATA": data,
        "SLIDESAM_SERVER_HOST": "127.0.0.1",
        "SLIDESAM_SERVER_PORT": "4200",
        "SLIDESAM_DATABASE_PORT": "5442",
        "SLIDESAM_SLIDES_AT_ONCE": "4",
        "SLIDESAM_HISTORY_DAYS": "90",
        "SLIDESAM_OUTPUT": f"{data}/results",
        "SLIDESAM_CLUSTER": "local",
        "SLIDESAM_SETTINGS": "",
        "SLIDESAM_INBOX": "",
        "SLIDESAM_INBOX_CRON": "*/15 * * * *",
        "SLIDESAM_TIMEZONE": find_timezone(),
        "SLIDESAM_NOTIFY": "",
        "SLIDESAM_DEPLOYMENTS": str(ROOT / "deployments"),
    }
    complete = {**values, **{name: values.get(name) or default for name, default in defaults.items()}}
    for name, most in _NUMBERS.items():
        if not re.fullmatch("[0-9]{1,9}", complete[name]) or not 1 <= int(complete[name]) <= most:
            raise ServerProblem(f"{name} must be a number from 1 to {most}, not '{complete[name]}'")
    for name in ("SLIDESAM_OUTPUT", "SLIDESAM_SETTINGS", "SLIDESAM_INBOX"):
        if complete[name] and not complete[name].startswith("/"):
            raise ServerProblem(f"{name} must be a whole path, beginning with /, not '{complete[name]}'")
    if complete["SLIDESAM_TIMEZONE"] not in available_timezones():
        raise ServerProblem(
            f"SLIDESAM_TIMEZONE: '{complete['SLIDESAM_TIMEZONE']}' is no time zone such as Europe/Berlin"
        )
    if complete["SLIDESAM_SETTINGS"] and not Path(complete["SLIDESAM_SETTINGS"]).is_file():
        raise ServerProblem(f"SLIDESAM_SETTINGS: there is no file {complete['SLIDESAM_SETTINGS']}")
    if not re.fullmatch("/[A-Za-z0-9._/-]+", data):
        raise ServerProblem(f"SLIDESAM_SERVER_DATA must be a plain absolute path: {data}")
    return complete


def find_timezone() -> str:
    """Return the name of this host's time zone; UTC where it can't be told."""
    zones = available_timezones()
    with suppress(OSError):
        name = str(Path("/etc/localtime").resolve(strict=True)).partition("/zoneinfo/")[2]
        if name in zones:
            return name
    return "UTC"


def read_config(file: Path) -> dict[str, str]:
    """Read a settings file: one NAME=VALUE a line; lines that begin with # or ; are comments."""
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ServerProblem(f"the settings file can't be read: {file} (copy {HERE / 'server.env.example'})") from error
    values: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        match = re.fullmatch(r"\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)", line)
        if match is None:
            raise ServerProblem(f"{file}, line {number} is no NAME=VALUE: {line}")
        name, value = match[1], match[2].rstrip()
        if not name.startswith(("SLIDESAM_", "PREFECT_")) and not _OTHERS.fullmatch(name):
            raise ServerProblem(f"{file}, line {number}: {name} is no setting; see server.env.example")
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        # Of a name that is there twice the first counts.
        values.setdefault(name, value[1:-1] if is_quoted else value)
    return values
