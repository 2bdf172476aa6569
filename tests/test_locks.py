"""Whoever locks a file: held by another, on NFS, on a file system without locks, on another machine."""

import errno
import fcntl
import os
import re
from types import SimpleNamespace

import pytest

import soco_lib
from soco_lib import BookError
from soco_lib.config import Pretrain
from soco_lib.data import shards
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.runs import locks
from soco_lib.runs.folder import Run
from soco_lib.studies import prepare


def a_run(folder, pictures):
    Run.start("run", "pretrain", ProposalConfig(), folder).lock()


def a_look_at_a_run(folder, pictures):
    assert not locks.is_taken(Run.start("run", "pretrain", ProposalConfig(), folder).folder / ".lock")


def a_study(folder, pictures):
    with locks.exclusive(folder / ".study-toy.lock", "study"):
        pass


def proposals_of_a_study(folder, pictures):
    cfg = Pretrain(str(pictures), str(folder / "proposals"))
    study = SimpleNamespace(scenes={}, lists={}, stores={cfg.proposals: {"generator": "random", "count": 2}})
    prepare.prepare(study, [cfg], lambda line: None)


def a_participant(folder, pictures):
    build_store(open_source(str(pictures)), ProposalConfig("random", count=2), folder / "store", workers=1)


USERS = [a_run, a_look_at_a_run, a_study, proposals_of_a_study, a_participant]


def fails_with(number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    return flock


def modules_with(text):
    return [path.name for path in (soco_lib.ROOT / "soco_lib").rglob("*.py") if text in path.read_text()]


@pytest.mark.parametrize("user", USERS)
def test_a_lock_is_asked_of_a_file_that_is_open_for_it_as_nfs_wants(user, tmp_path, pictures, monkeypatch):
    real, asked = fcntl.flock, []

    def nfs(file, operation):
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        asked.append(operation)
        unfit = os.O_WRONLY if operation & fcntl.LOCK_SH else os.O_RDONLY
        if operation != fcntl.LOCK_UN and mode == unfit:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    user(tmp_path, pictures)
    assert asked


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])
@pytest.mark.parametrize("user", USERS)
def test_a_file_system_without_locks_is_one_line_with_the_remedy(user, number, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails_with(number))
    with pytest.raises(BookError) as error:
        user(tmp_path, pictures)
    said, why = str(error.value), re.escape(os.strerror(number))
    assert re.fullmatch(rf"{tmp_path}\S* takes no file locks \({why}\): use a folder on a local disk .*", said)
    assert "Lustre with -o flock" in said and "another" not in said


def test_held_by_another_is_not_without_locks(tmp_path):
    with locks.lockable(tmp_path / "lock") as one, locks.lockable(tmp_path / "lock") as other:
        assert locks.take(one, shared=True) and locks.take(other, shared=True)
        assert not locks.take(one)
        locks.free(other)
        assert locks.take(one) and not locks.take(other, shared=True)


def test_a_lock_removed_on_another_machine_is_waited_for_and_not_an_error(tmp_path, monkeypatch):
    """ESTALE: another participant has merged, and with the shards the lock is gone."""
    parts = shards.shard_paths(tmp_path / "shards", 4, 4)
    parts[0].parent.mkdir()
    monkeypatch.setattr(fcntl, "flock", fails_with(errno.ESTALE))
    monkeypatch.setattr(shards, "POLL", 0)
    looks = iter([False, False, True, True])
    done = type("Done", (), {"exists": lambda self: next(looks)})()
    made = []
    with shards.to_merge(parts, done, (0, 1), made.append, print) as ours:
        assert not ours and not made


def test_only_one_module_asks_the_system_for_locks():
    assert modules_with("flock(") == ["locks.py"]


def test_only_one_module_replaces_files_and_only_one_looks_after_the_parent():
    assert modules_with("os.replace(") == ["files.py"]
    assert modules_with("_SET_PARENT_DEATH_SIGNAL") == modules_with("getppid") == ["machine.py"]
