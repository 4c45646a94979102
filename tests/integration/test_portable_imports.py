"""Nothing that distmeta imports for itself exists on POSIX systems only."""

import subprocess
import sys

IMPORTS = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "resource", "termios", "pwd", "grp", "pty", "tty", "syslog"}:
            raise ModuleNotFoundError(f"no module named {name!r}", name=name)

for name in ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty", "syslog"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocked())
import distmeta

for module in pkgutil.walk_packages(distmeta.__path__, "distmeta."):
    # Ray itself takes another path on other systems.
    if not module.name.endswith(("__main__", "ray_backend", "ray_errors", "submitting", "service")):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_is_imported_without_the_modules_of_posix():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 80
