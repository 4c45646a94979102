"""What a service keeps: bounded by number, bytes and time."""

import threading

from distmeta.serving.kept import Kept


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_least_recently_used_goes_first():
    kept = Kept[int](3, 10**9, 60)
    for n in range(3):
        assert kept.put(str(n), n, 1)
    assert kept.get("0") == 0  # used: now "1" is the oldest
    kept.put("3", 3, 1)
    assert [kept.get(str(n)) for n in range(4)] == [0, None, 2, 3]


def test_bytes_bound_it_too_and_what_is_too_large_is_not_kept():
    kept = Kept[str](100, 10, 60)
    assert kept.put("a", "a", 6)
    assert kept.put("b", "b", 6)
    assert kept.get("a") is None
    assert kept.get("b") == "b"
    assert not kept.put("c", "c", 11)
    assert kept.get("c") is None
    assert kept.get("b") == "b"
    assert kept.put("b", "B", 10)  # in place of itself
    assert len(kept) == 1


def test_a_value_ends_some_time_after_its_last_use():
    clock = Clock()
    kept = Kept[str](100, 100, 60, clock=clock)
    kept.put("a", "a", 1)
    kept.put("b", "b", 1)
    clock.now = 50
    assert kept.get("a") == "a"
    clock.now = 100
    assert kept.get("a") == "a"
    assert kept.get("b") is None
    assert len(kept) == 1
    clock.now = 160
    assert len(kept) == 0


def test_a_dropped_value_frees_its_bytes():
    kept = Kept[str](100, 10, 60)
    kept.put("a", "a", 10)
    assert kept.drop("a")
    assert not kept.drop("a")
    kept.put("b", "b", 5)
    kept.put("c", "c", 5)
    assert len(kept) == 2


def test_threads_may_share_it():
    kept = Kept[int](50, 10**6, 60)

    def work(seed):
        for n in range(2000):
            kept.put(str((n * seed) % 97), n, 3)
            kept.get(str(n % 97))
            kept.drop(str((n + seed) % 97))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) <= 50
    assert kept._bytes == 3 * len(kept)
