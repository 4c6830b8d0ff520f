"""The entry points: what they say where they cannot start."""

import subprocess
import sys

import pytest

DRIVERS = {"postgres": "psycopg", "mysql": "pymysql", "ldap": "ldap", "redis": "redis"}


@pytest.mark.parametrize(("name", "driver"), DRIVERS.items())
def test_a_driver_that_is_not_installed_is_named_with_the_command_that_installs_it(name: str, driver: str) -> None:
    code = f"import sys; sys.modules['{driver}'] = None; from pillarbox.backends.programs import {name}; {name}()"
    argv = [sys.executable, "-c", code, "/etc/mail/table.conf"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"table-{name}: import of {driver} halted")
    assert done.stderr.endswith(f"install it with: pip install 'pillarbox[{name}]'\n")
