"""What is awaited before a process is copied."""

import threading
import time

from lamm.idle import wait_for_idle_threads


def test_threads_that_sleep_are_not_awaited():
    wake = threading.Event()
    sleeper = threading.Thread(target=wake.wait)
    sleeper.start()
    begin = time.monotonic()
    assert wait_for_idle_threads()
    assert time.monotonic() - begin < 2
    wake.set()
    sleeper.join()


def test_a_thread_at_work_is_awaited_but_not_for_ever():
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            sum(range(1000))

    worker = threading.Thread(target=work)
    worker.start()
    begin = time.monotonic()
    assert not wait_for_idle_threads(limit=0.3)
    assert 0.3 <= time.monotonic() - begin < 3
    threading.Timer(0.5, done.set).start()
    assert wait_for_idle_threads()
    assert done.is_set()
    worker.join()
