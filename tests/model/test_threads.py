import os

import pytest
import torch

from subfit.model import threads

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def quotas(folder, found):
    for group, quota in found.items():
        (folder / "root" / group).mkdir(parents=True, exist_ok=True)
        (folder / "root" / group / "cpu.max").write_text(f"{quota}\n")
    return folder / "root"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, 1000),
        ({"": "max 100000"}, 1000),
        ({"": "max 100000", "job": "200000 100000"}, 2),
        ({"job": "400000 100000", "job/task": "max 100000"}, 4),
        ({"job": "300000 100000", "job/task": "150000 100000", "other": "1000 100000"}, 2),  # one and a half, rounded up
        ({"job/task": "5000 100000"}, 1),
        ({"job": "not a quota"}, 1000),
    ],
)
def test_quotas_of_the_group_and_of_those_around_it(tmp_path, monkeypatch, found, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1000), raising=False)
    (tmp_path / "cgroup").write_text("0::/job/task\n")
    assert threads.usable_cores(quotas(tmp_path, found), tmp_path / "cgroup") == expected


def test_in_a_container_the_group_of_the_process_is_the_root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1000), raising=False)
    (tmp_path / "cgroup").write_text("0::/\n")
    assert threads.usable_cores(quotas(tmp_path, {"": "200000 100000"}), tmp_path / "cgroup") == 2
    assert threads.usable_cores(tmp_path / "root", tmp_path / "missing") == 2


def test_a_process_uses_no_more_than_its_affinity():
    assert 1 <= threads.usable_cores() <= CORES


@pytest.mark.parametrize(("setting", "before", "after"), [(None, 64, 2), (None, 1, 1), ("64", 64, 64)])
def test_threads_are_only_ever_lowered_and_the_users_number_holds(monkeypatch, setting, before, after):
    now = [before]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if setting:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    threads.limit_threads()
    assert now == [after]
