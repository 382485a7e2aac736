"""Files that are written whole, and what killed processes leave of them."""

import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

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
    path, other = tmp_path / ("n" * 250), tmp_path / ".other.tmp"
    other.write_bytes(b"of somebody else")
    code = [sys.executable, "-c", textwrap.dedent(KILLED), path, where]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with only_process(path, "path"):
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


def enter(path):
    with only_process(path, "resume"):
        pass


def test_threads_of_one_process_do_not_share_a_file(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    with ThreadPoolExecutor(1) as threads:
        with only_process(path, "resume"):
            for name in (path, link):
                with pytest.raises(BlockingIOError, match=f"resume: another thread works with {name}, wait for it"):
                    threads.submit(enter, name).result()
            threads.submit(enter, tmp_path / "other").result()
            code = [sys.executable, "-c", textwrap.dedent(KILLED), path, "lock"]  # still kept from it
            assert b"another process works with" in subprocess.run(code, check=False, capture_output=True).stderr
        threads.submit(enter, path).result()


def test_what_cannot_be_locked_is_named(tmp_path):
    gone = tmp_path / "gone" / "file"
    for _ in range(2):  # and is not held after that
        with pytest.raises(FileNotFoundError) as caught:
            enter(gone)
        assert caught.value.filename == str(gone)


def test_errors_of_what_is_done_meanwhile_stay_as_they_are(tmp_path):
    error = OSError(5, "broken", "another file")
    with pytest.raises(OSError, match="broken") as caught, only_process(tmp_path / "file", "path"):
        raise error
    assert caught.value is error
    assert error.filename == "another file"


def test_a_lock_is_recognised(tmp_path):
    with only_process(tmp_path / "file", "path"):
        (lock,) = tmp_path.iterdir()
    assert lock.suffix == ".lock"
