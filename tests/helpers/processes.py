"""Commands in processes of their own, to be interrupted and killed."""

import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


class Process:
    """A process of its own group whose lines are kept."""

    def __init__(self, command, log, **options):
        self.log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                list(map(str, command)),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
                start_new_session=True,
                **options,
            )

    @property
    def text(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, word, count=1):
        """Until the word was said so often, or the process is over."""
        while self.text.count(word) < count and self.popen.poll() is None:
            time.sleep(0.01)

    def wait_for_changes(self, folder, count):
        """Until files in a folder have come, gone or changed so often, or the process is over."""
        before, seen = snapshot(folder), 0
        while seen < count and self.popen.poll() is None:
            now = snapshot(folder)
            seen, before = seen + (now != before), now
            time.sleep(0.0005)

    def finish(self, seconds):
        """Wait that long; whether it ended by itself."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self):
        """SIGKILL to the process alone, not to those that it started."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


def snapshot(folder):
    """Names of the files in a folder, with the time of their last change."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}
