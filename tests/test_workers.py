"""Work in several processes: order, errors, and nobody left behind."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from drpose.ground.workers import run_tasks

PARENT = """
import os, time
from drpose.ground.workers import run_tasks

if __name__ == "__main__":
    run_tasks(os.getppid, [()] * 4, 2)
    import multiprocessing
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_questions(workers):
    assert run_tasks(math.factorial, [(number,) for number in (5, 3, 8, 0)], workers) == [120, 6, 40320, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_is_raised_and_the_next_call_works(workers):
    with pytest.raises(ValueError, match="negative"):
        run_tasks(math.factorial, [(3,), (-1,), (4,)], workers)
    assert run_tasks(math.factorial, [(3,), (4,)], workers) == [6, 24]


def test_too_few_workers_are_one_sentence():
    with pytest.raises(ValueError, match="'workers' is 0, but needs to be at least 1"):
        run_tasks(math.factorial, [(3,), (4,)], 0)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat") as status:
        return status.read().rsplit(") ", 1)[1][0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2 and all(map(is_alive, children))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    ends = time.monotonic() + 60
    while any(map(is_alive, children)) and time.monotonic() < ends:
        time.sleep(0.2)
    assert not any(map(is_alive, children))
