"""Commands leave nothing in the home but our own cache, look no name up, and need no home."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import exported
import pytest
from conftest import REPOSITORY, TINY
from exporting import HAS_CONVERTER
from PIL import Image

from installation import installed

# The functions of the C library by which names are looked up and connections made, all of which
# libraries in Python and in C++ go through; each writes down what it is asked for.
WATCH = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void note(const char *what, const char *whom) {
  FILE *file = fopen(getenv("WATCHED"), "a");
  if (file) { fprintf(file, "%s %s\n", what, whom); fclose(file); }
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  struct in6_addr numbers;
  if (node && strcmp(node, "localhost") && inet_pton(AF_INET, node, &numbers) != 1 &&
      inet_pton(AF_INET6, node, &numbers) != 1)
    note("getaddrinfo", node);
  int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  return real(node, service, hints, found);
}
struct hostent *gethostbyname(const char *name) {
  note("gethostbyname", name);
  struct hostent *(*real)(const char *) = dlsym(RTLD_NEXT, "gethostbyname");
  return real(name);
}
int connect(int socket, const struct sockaddr *address, socklen_t size) {
  const struct sockaddr_in *inet = (const void *)address;
  if (address->sa_family == AF_INET && ntohl(inet->sin_addr.s_addr) >> 24 != 127)
    note("connect", inet_ntoa(inet->sin_addr));
  int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return real(socket, address, size);
}
"""
HOMES = ('XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'MPLCONFIGDIR', 'ORT_DISABLE_TELEMETRY', 'LD_PRELOAD')


class Home:
    """An empty one, and commands that are watched."""

    def __init__(self, folder: Path, watch: dict[str, str]) -> None:
        self.path, self._watched = folder / 'home', folder / 'watched'
        self.path.mkdir()
        kept = {name: value for name, value in os.environ.items() if name not in HOMES}
        own = {'HOME': str(self.path), 'USERPROFILE': str(self.path), 'CUSTOM_DEVICE_ROOT': ''}
        self.environment = {**kept, **own, **watch, 'WATCHED': str(self._watched)}

    def start(self, cwd: Path, *arguments: object, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, cwd: Path, script: str, *arguments: object) -> str:
        """What a command has printed."""
        process = self.start(cwd, REPOSITORY / script, *arguments)
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        self.require_untouched()
        return output

    def require_untouched(self) -> None:
        ours = self.path / '.cache' / 'wide-resnet-resnext'
        found = [path for path in self.path.rglob('*') if path not in (ours, ours.parent)]
        assert [path for path in found if ours not in path.parents] == []
        asked = self._watched.read_text() if self._watched.exists() else ''
        assert asked == ''


@pytest.fixture(scope='module')
def watch(tmp_path_factory):
    """For the environment: the library above. Without a compiler, files alone are looked at."""
    compiler, folder = shutil.which('gcc'), tmp_path_factory.mktemp('watch')
    if compiler is None or not sys.platform.startswith('linux'):
        return {}
    (folder / 'watch.c').write_text(WATCH)
    command = [compiler, '-shared', '-fPIC', '-o', folder / 'watch.so', folder / 'watch.c', '-ldl']
    subprocess.run(command, check=True)
    return {'LD_PRELOAD': str(folder / 'watch.so')}


@pytest.fixture
def home(tmp_path, watch):
    return Home(tmp_path, watch)


@pytest.fixture(scope='module')
def run(tmp_path_factory, watch):
    """A run that such a train.py has made."""
    folder = tmp_path_factory.mktemp('trained')
    settings = (*TINY, 'train.epochs=1', 'train.to_static=true', 'output.dir=run')
    Home(folder, watch).run(folder, 'train.py', '-o', *settings)
    return folder / 'run'


@pytest.fixture
def picture(tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path / 'a.png')
    return tmp_path / 'a.png'


def test_the_watch_sees_a_look_up(home, tmp_path, watch):
    if not watch:
        pytest.skip('needs gcc')
    program = "import socket\ntry: socket.getaddrinfo('name.invalid', 80)\nexcept OSError: pass"
    home.start(tmp_path, '-c', program).communicate()
    with pytest.raises(AssertionError, match=r'getaddrinfo name\.invalid'):
        home.require_untouched()


def test_export(run, home, tmp_path):
    forms = ['--onnx', '--int8'] if HAS_CONVERTER else []
    home.run(tmp_path, 'export.py', '-w', run, '--output', 'out', *forms)


@pytest.mark.slow
def test_eval(run, home, tmp_path):
    home.run(tmp_path, 'eval.py', '-w', run)


def test_predict_with_every_engine(home, tmp_path, picture):
    for engine in ('paddle', *filter(installed, ('onnxruntime', 'openvino') * exported.HAS_ONNX)):
        home.run(tmp_path, 'deploy/predict.py', exported.folder(), picture, '--engine', engine)


@pytest.mark.slow
def test_benchmark(home, tmp_path):
    figures = ('--seconds', '0.1', '--batch-sizes', '1', '--threads', '1', '--plot', 'figures.png')
    home.run(tmp_path, 'deploy/benchmark.py', exported.folder(), *figures)


@pytest.mark.slow
def test_serve(home, tmp_path):
    process = home.start(tmp_path, REPOSITORY / 'deploy/serve.py', exported.folder(), '--port', 0)
    for line in process.stdout:
        if 'http://' in line:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    home.require_untouched()


# A user id that has no line in /etc/passwd, as of `docker run --user 1234`, and no HOME.
NOBODY = """
import os, pwd, runpy, sys
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
for name in ('HOME', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME'):
    os.environ.pop(name, None)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('engine', ['openvino', 'onnxruntime', 'paddle'])
def test_every_engine_runs_for_a_user_without_a_home(home, tmp_path, picture, engine):
    if engine != 'paddle' and not (exported.HAS_ONNX and installed(engine)):
        pytest.skip(f'needs {engine}, and paddle2onnx')
    command = (REPOSITORY / 'deploy/predict.py', exported.folder(), picture, '--engine', engine)
    process = home.start(tmp_path, '-c', NOBODY, *command)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert str(picture) in output
    home.require_untouched()


def another_user() -> dict[str, object]:
    """For subprocess: a user id without rights or a home, as of `docker run --user`."""
    own: dict[str, object] = {'user': 65534, 'group': 65534, 'extra_groups': []}
    if os.name != 'posix' or os.geteuid() != 0:
        pytest.skip('only root can start a process of another user')
    for readable in (['-c', 'import numpy'], ['-c', f'open({str(REPOSITORY / "train.py")!r})']):
        try:
            done = subprocess.run([sys.executable, *readable], cwd='/', capture_output=True, **own)
        except PermissionError:
            done = None
        if done is None or done.returncode:
            pytest.skip("another user may not read this user's Python or this folder")
    return own


@pytest.mark.parametrize(
    'user',
    [
        pytest.param('with a home that cannot be made', marks=pytest.mark.slow),
        'with the home of another',
        pytest.param('without', marks=pytest.mark.slow),
    ],
)
def test_training_and_its_export_need_no_home(home, user):
    """The first is imitated, which root can do, too: below a device no folder is made."""
    homes = {'without': '/', 'with the home of another': '/root'}
    own = another_user() if user in homes else {}
    home.environment |= {'HOME': homes.get(user, '/dev/null/home')}
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for one user alone
        os.chmod(folder, 0o777)
        for arguments in (
            ('train.py', '-c', 'quickstart', '-o', *TINY, 'train.epochs=1'),
            ('export.py', '-w', 'output/quickstart'),
        ):
            process = home.start(folder, REPOSITORY / arguments[0], *arguments[1:], **own)
            output, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            assert 'ermission denied' not in errors
            assert 'warning' not in output + errors
