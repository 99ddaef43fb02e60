"""`tsh proxy ssh` starts once per connection: it runs no programs to do so, and has all that it offers."""

import subprocess
import sys

START = """
import sys
ran = []
def heard(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.exec"):
        ran.append((event, str(arguments[0])))
sys.addaudithook(heard)
from monoport.cli import tsh
status = 0
try:
    tsh.run(tsh.tsh, ["proxy", "ssh"])
except SystemExit as error:
    status = error.code
import asyncssh, ctypes.util, gc
from monoport.tunnel.link import algorithms
print(status, ran, "asyncssh" in sys.modules, gc.isenabled())
asyncssh.SSHClientConnectionOptions(config=None, **algorithms())
print(ctypes.util.find_library.__module__)
print([name for name in ("rich", "httpx", "pydantic", "starlette", "ruamel.yaml") if name in sys.modules])
"""


def test_no_program_runs_and_nothing_that_it_does_not_need_is_imported():
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 [] True True", "ctypes.util", "[]"]
    assert done.stderr.splitlines()[0].startswith("tsh: tsh proxy ssh --user=LOGIN")
