"""Runs a command without what Windows lacks: python3 as_on_windows.py COMMAND.py ARGUMENTS"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys

for name in ('fcntl', 'resource', 'termios', 'pwd', 'grp'):
    sys.modules[name] = None  # ImportError
for name in ('SIGHUP', 'SIGPIPE', 'SIGKILL', 'SIGUSR1', 'SIGUSR2'):
    delattr(signal, name)
subprocess.Popen.kill = subprocess.Popen.terminate  # the same there
if hasattr(os, 'sched_getaffinity'):
    del os.sched_getaffinity
_library = ctypes.CDLL


def library(name, *given, **more):
    if name is None:
        raise TypeError('the C library itself cannot be had by None')
    return _library(name, *given, **more)


ctypes.CDLL = library
_open = os.open


def open_file(path, flags, *given, **more):
    if os.path.isdir(path):
        raise PermissionError(13, 'Permission denied', path)
    return _open(path, flags, *given, **more)


os.open = open_file
_replace = os.replace


def replace(source, target, **more):
    if os.path.isdir(target):
        raise PermissionError(13, 'Access is denied', source)
    return _replace(source, target, **more)


os.replace = replace
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
