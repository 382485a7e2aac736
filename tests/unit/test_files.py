"""Files that are written whole, and what killed processes leave of them."""

import signal
import subprocess
import sys
import textwrap

import pytest

from tacfast import _files
from tacfast._files import check_writable, only_process, write_atomically

pytest.importorskip("fcntl")

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tacfast import _files
    path, where = sys.argv[1:]
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if where == "write":
        Path.replace = die
        _files.write_atomically(path, b"half")
    elif where == "check":
        Path.write_bytes = die
        _files.check_writable(path)
    else:
        with _files.only_process(path, "path"):
            die()
"""


@pytest.mark.parametrize("where", ["write", "check", "lock"])
def test_what_a_killed_process_leaves_is_gone_after_the_next_one(tmp_path, where):
    path, other = tmp_path / ("n" * 250 if where != "lock" else "name"), tmp_path / ".other.tmp"
    other.write_bytes(b"of somebody else")
    code = [sys.executable, "-c", textwrap.dedent(KILLED), path, where]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with only_process(tmp_path / "name", "path"):
        write_atomically(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([other, path])
    assert path.read_bytes() == b"whole"


def test_what_is_being_written_is_left_alone(tmp_path):
    path = tmp_path / "file"
    with _files._temporary(path) as temporary:
        temporary.write_bytes(b"first")
        write_atomically(path, b"second")
        check_writable(path)
        temporary.replace(path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_released_by_an_error_too(tmp_path):
    def fail():
        with only_process(tmp_path / "file", "path"):
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
