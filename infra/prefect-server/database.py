"""The database: PostgreSQL on loopback, made once in the data folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import psutil
from parts import Part, are_gone, pids, require_free_port, send, show_end
from site_settings import HERE, ServerProblem, Site

USER = "slidesam"
_WORD_FILE = "database.password"
# PostgreSQL refuses root.
AS_DATABASE = (
    "setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "--", "env", "HOME=/"
) if os.geteuid() == 0 else ()  # fmt: skip


class Database(Part):
    """PostgreSQL."""

    name = "database"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.main_words, self.address_words = f"-D {site.database} ", f"-p {site.database_port} "
        self.place = f"127.0.0.1:{site.database_port}, folder {site.database}"

    def processes(self) -> list[psutil.Process]:
        """Find all of its processes: PostgreSQL writes over its environment, but works in the data folder."""
        folder, running = str(self.site.database), psutil.process_iter(["name", "cwd"])
        return [process for process in running if process.info == {"name": "postgres", "cwd": folder}]

    def prepare(self) -> None:
        """Make the database's files, if there are none."""
        programs(self.site)
        require_free_port("SLIDESAM_DATABASE_PORT", "127.0.0.1", self.site.database_port)
        self.make_files()

    def make_files(self) -> None:
        """Make the database's files, if there are none."""
        site = self.site
        # Before the lock, which it takes too.
        password = site.secret(_WORD_FILE)
        with site.making():
            if (site.database / "PG_VERSION").exists():
                return
            # Beside its place first: an initdb that was killed leaves nothing that looks like a database.
            new = site.database.with_name("database.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            if AS_DATABASE:
                site.data.chmod(0o711)
                shutil.chown(new, "postgres", "postgres")
                if subprocess.run([*AS_DATABASE, "test", "-w", new], check=False).returncode:  # noqa: S603
                    raise ServerProblem(
                        f"user postgres can't enter {site.data}: choose another SLIDESAM_SERVER_DATA, or don't start this as root"
                    )
            with tempfile.NamedTemporaryFile("w") as word, self.log.open("a") as log:
                word.write(password)
                word.flush()
                if AS_DATABASE:
                    shutil.chown(word.name, "postgres")
                ways = ("-A", "scram-sha-256", f"--pwfile={word.name}", "-E", "UTF8", "--locale=C.UTF-8", "-k")
                command: list[str | Path] = [*AS_DATABASE, programs(site) / "initdb", "-D", new, "-U", USER, *ways]
                done = subprocess.run(command, stdout=log, stderr=log, cwd="/", check=False)  # noqa: S603
            if done.returncode:
                show_end(self.log)
                raise ServerProblem(f"the database could not be made; see {self.log}")
            new.rename(site.database)

    def run(self) -> NoReturn:
        """Become PostgreSQL. With a password only, and without a socket that others on the host could use."""
        site = self.site
        self.make_files()
        self.drop_stale_pid()
        self.set_password()
        options = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200")
        command = [*AS_DATABASE, programs(site) / "postgres", "-D", site.database, "-p", site.database_port]
        self.become([*command, *(word for option in options for word in ("-c", option))], site.values, Path("/"))

    def set_password(self) -> None:
        """Give the database the password of the file: if the file was lost, nobody could open the database."""
        command = [*AS_DATABASE, programs(self.site) / "postgres", "--single", "-D", self.site.database, "postgres"]
        statement = f"alter role {USER} password '{self.site.secret(_WORD_FILE)}'\n"
        done = subprocess.run(  # noqa: S603
            list(map(str, command)), input=statement, capture_output=True, text=True, cwd="/", check=False
        )
        if done.returncode or "ERROR" in done.stderr:
            raise ServerProblem(f"the database's password can't be set: {done.stderr.strip()[-500:]}")

    def drop_stale_pid(self) -> None:
        """Remove the pid file that kill -9 leaves: PostgreSQL would believe in it where the number has a new owner."""
        if self.main_process() is not None:
            return
        send(self.processes(), signal.SIGQUIT)
        if not are_gone(self.processes, 20):
            raise ServerProblem(f"processes of a database that was killed don't end: {pids(self.processes())}")
        (self.site.database / "postmaster.pid").unlink(missing_ok=True)

    def end(self) -> None:
        """Shut it down, without waiting for who is connected."""
        main = self.main_process()
        send([] if main is None else [main], signal.SIGINT)
        if not are_gone(self.processes, 30):
            send(self.processes(), signal.SIGQUIT)
            if not are_gone(self.processes, 20):
                raise ServerProblem(f"the database doesn't end: {pids(self.processes())}")
        (self.site.database / "postmaster.pid").unlink(missing_ok=True)

    def is_ready(self) -> bool:
        """Say whether it answers."""
        return self.query("select 1") is not None

    def query(self, sql: str) -> str | None:
        """Return what it answers; None where it doesn't."""
        place = ("-h", "127.0.0.1", "-p", str(self.site.database_port), "-U", USER, "-d", "postgres")
        environment = {**self.site.values, "PGPASSWORD": self.site.secret(_WORD_FILE)}
        command: list[str | Path] = [programs(self.site) / "psql", *place, "-wqtAXc", sql]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        return None if done.returncode else done.stdout.strip()


def programs(site: Site) -> Path:
    """Find PostgreSQL's programs: the newest, or those that made the data folder, since no other version reads it."""
    version = site.database / "PG_VERSION"
    made = version.read_text().strip() if version.is_file() else ""
    chosen = site.values.get("SLIDESAM_POSTGRES_BIN")
    patterns = (f"usr/lib/postgresql/{made or '*'}/bin", f"usr/pgsql-{made or '*'}/bin")
    folders = [Path(chosen)] if chosen else [path for pattern in patterns for path in sorted(Path("/").glob(pattern))]
    usable = [folder for folder in folders if os.access(folder / "initdb", os.X_OK)]
    if not usable:
        raise ServerProblem(
            f"no PostgreSQL {made}{' ' if made else ''}under /usr/lib/postgresql: run '{HERE / 'prefect-server'} install' as "
            "root, or set SLIDESAM_POSTGRES_BIN"
        )
    return usable[-1]
