# SPDX-License-Identifier: Apache-2.0
"""A virtual environment on the mount: pip installs a wheel there, its console script runs (the `#!` line names an
interpreter that lies on the mount), and pip takes it away again."""
import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile

import pytest

NAME = "greet-1.0"
FILES = {
    "greet/__init__.py": "import sys\nfrom .words import HELLO\ndef main():\n    print(HELLO, sys.argv[1:])\n",
    "greet/words.py": "HELLO = 'hello'\n",
    "greet/data/text": "text\n" * 100000,
    f"{NAME}.dist-info/METADATA": "Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n",
    f"{NAME}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{NAME}.dist-info/entry_points.txt": "[console_scripts]\ngreet = greet:main\n",
}
SETTINGS = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1",
            "PIP_ROOT_USER_ACTION": "ignore", "PIP_CONFIG_FILE": "/dev/null"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel with two modules, a larger file and a console script."""
    path = tmp_path_factory.mktemp("wheel") / f"{NAME}-py3-none-any.whl"
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        f"{len(text)}\n" for name, text in FILES.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**FILES, f"{NAME}.dist-info/RECORD": f"{record}{NAME}.dist-info/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def directory(runner):
    path = f"{runner.mount}/pip-{next(runner.numbers)}"
    subprocess.run(["mkdir", path], env=runner.loaded, check=True, timeout=60)
    yield path
    subprocess.run(["rm", "-rf", path], env=runner.loaded, check=True, timeout=120)


def use(runner, directory, pip, wheel):
    """Install, run, compile and uninstall by the command ``pip``; returns what was said."""
    script = f"""
set -e
{pip} install -q {wheel}; v/bin/greet a b; head -1 v/bin/greet
v/bin/python -c 'import greet, sys; print(greet.__file__, sys.prefix, sys.executable)'
v/bin/python -m compileall -q -f v/lib/python3*/site-packages/greet; {pip} check
{pip} list --format freeze | grep greet
(. v/bin/activate; command -v greet; greet c); {pip} uninstall -qy greet; ls v/bin | grep greet || echo gone
ls -d v/lib/python3*/site-packages/greet* 2> /dev/null || echo gone
"""
    status, out, err = runner.shell(script, directory, {**runner.loaded, **SETTINGS}, timeout=170)
    assert (status, err) == (0, b"")
    return out.decode().replace(f"{sys.version_info.major}.{sys.version_info.minor}", "X.Y").splitlines()


EXPECTED = ["hello ['a', 'b']", "#!D/v/bin/python",
            "D/v/lib/pythonX.Y/site-packages/greet/__init__.py D/v D/v/bin/python",
            "No broken requirements found.", "greet==1.0", "D/v/bin/greet", "hello ['c']", "gone", "gone"]


def test_pip_installs_into_an_environment_on_the_mount(runner, directory, wheel):
    status, _, err = runner.shell(f"{sys.executable} -m venv --without-pip v", directory, runner.loaded)
    assert (status, err) == (0, b"")
    assert use(runner, directory, f"{sys.executable} -m pip --python v/bin/python", wheel) == EXPECTED


@pytest.mark.long
def test_an_environment_with_a_pip_of_its_own(runner, directory, wheel):
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    status, _, err = runner.shell(f"{python} -m venv v; {python} -m venv --copies --without-pip c; "
                                  "c/bin/python -c 'import sys; print(sys.prefix)'", directory,
                                  {**runner.loaded, **SETTINGS}, timeout=170)
    assert (status, err) == (0, b"")
    assert use(runner, directory, "v/bin/pip", wheel)[0] == EXPECTED[0]
