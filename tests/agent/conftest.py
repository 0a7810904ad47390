"""A real PostgreSQL server for the store's tests, started and stopped by them."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def _binary(name):
    found = shutil.which(name)
    real = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(real[-1]) if real else found


def _user():
    """PostgreSQL refuses root: run it as its own system user then."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid}


@pytest.fixture(scope="session")
def postgres():
    """URL of an empty database server that listens on a unix socket only."""
    initdb, pg_ctl = _binary("initdb"), _binary("pg_ctl")
    if not (initdb and pg_ctl):
        pytest.skip("PostgreSQL is not installed")
    user = _user()
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o777)
        folder = Path(root) / "data"
        run = {"check": True, "capture_output": True, "cwd": root, **user}
        subprocess.run([initdb, "-D", folder, "-U", "turnwise", "-A", "trust"], **run)
        options = f"-c listen_addresses='' -c unix_socket_directories={root} -c fsync=off"
        log = Path(root) / "log"
        subprocess.run(
            [pg_ctl, "-D", folder, "-w", "-l", log, "-o", options, "start"],
            check=True, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user,
        )  # fmt: skip
        try:
            yield f"postgresql://turnwise@/postgres?host={root}"
        finally:
            subprocess.run([pg_ctl, "-D", folder, "-m", "immediate", "-w", "stop"], **run)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """An empty store of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite")
    url = request.getfixturevalue("postgres")
    import sqlalchemy as sa

    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS episodes, turnwise_schema CASCADE"))
    engine.dispose()
    return url
