"""What a save does to the disk, in which order, and beside whom."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from drama.replay import ReplayBuffer

FRAME = 1 << 14
# Tells of every sync and rename of this process; a sync fails where it is told to, and may be slow.
SPY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void tell(const char *what, const char *path) {
    const char *log = getenv("SPY_LOG");
    FILE *file = log ? fopen(log, "a") : NULL;
    if (file) {
        fprintf(file, "%s %s\n", what, path);
        fclose(file);
    }
}

int fsync(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    tell("sync", path);
    const char *slow = getenv("SPY_SLOW"), *fails = getenv("SPY_FAILS");
    if (slow) usleep(atoi(slow));
    if (fails && strstr(path, fails)) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int rename(const char *from, const char *to) {
    tell("rename", to);
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}
"""

SAVER = f"""
import os, sys, threading, time
import numpy as np
from drama.replay import ReplayBuffer

buffer = ReplayBuffer(300, {{"obs": (({FRAME},), np.uint8)}})

def add(rows):
    no = np.zeros((rows, 1), bool)
    buffer.add_block(obs=np.zeros((rows, 1, {FRAME}), np.uint8), terminated=no, truncated=no)

add(200)
path = sys.argv[1]
"""


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that tells of syncs and renames."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("spy")
    (folder / "spy.c").write_text(SPY)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "spy.so"), str(folder / "spy.c"), "-ldl"]
    subprocess.run(command, check=True)
    return folder / "spy.so"


def spied(spy: Path, code: str, path: Path, **environment: str) -> tuple[str, list[list[str]]]:
    """What a script printed, and the syncs and renames that it made."""
    log = spy.with_name(f"{path.name}.log")
    environment |= {**os.environ, "LD_PRELOAD": str(spy), "SPY_LOG": str(log), **environment}
    done = subprocess.run(
        [sys.executable, "-c", SAVER + code, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line.split(" ", 1) for line in log.read_text().splitlines()]


def test_a_save_is_on_the_disk_before_it_takes_the_place_of_the_last(spy: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "replay"
    _, events = spied(spy, "buffer.save(path)", path)
    names = [f"{what} {Path(name).relative_to(tmp_path)}" for what, name in events]
    folders = [f"sync {tmp_path.joinpath(*path.relative_to(tmp_path).parts[:depth])}" for depth in (0, 1, 2)]
    told = [f"{what} {name}" for what, name in events]
    manifest = told.index(f"rename {path / 'manifest.json'}")
    # Every folder that is new has its name on the disk.
    assert all(told.index(folder) < manifest for folder in folders)
    chunks = [file.name for file in path.glob("chunk-*")]
    assert len(chunks) == 2
    own = "new/deeper/replay"
    for name in (*chunks, "manifest.json"):
        written, renamed = names.index(f"sync {own}/{name}.tmp"), names.index(f"rename {own}/{name}")
        assert written < renamed
        assert f"sync {own}" in names[renamed:]
    last = max(names.index(f"rename {own}/{name}") for name in chunks)
    assert f"sync {own}" in names[last:manifest]


@pytest.mark.parametrize("what", ["chunk-", "manifest.json", "replay"])
def test_a_disk_that_fails_is_an_error(spy: Path, tmp_path: Path, what: str) -> None:
    code = """
try:
    buffer.save(path)
except OSError as error:
    print(error.errno, error.filename)
"""
    printed, _ = spied(spy, code, tmp_path / "replay", SPY_FAILS=what)
    number, name = printed.split()
    assert int(number) == 5
    assert what in name
    assert not (tmp_path / "replay" / "manifest.json").exists() or what == "replay"


def test_rows_are_added_while_the_disk_is_slow(spy: Path, tmp_path: Path) -> None:
    """With every sync taking its time, rows go in and out long before the save is over."""
    code = """
saver = threading.Thread(target=buffer.save, args=(path,))
saver.start()
beside = 0
while saver.is_alive():
    add(1)
    buffer.sample(4, 2)
    beside += 1
    time.sleep(0.001)
saver.join()
loaded = ReplayBuffer.load(path)
print(beside, loaded.total, buffer.total)
"""
    printed, events = spied(spy, code, tmp_path / "replay", SPY_SLOW="60000")
    beside, saved, total = map(int, printed.split())
    assert len(events) >= 4
    # One add for each sync would come of a lock held meanwhile.
    assert beside > 3 * len(events)
    assert 200 <= saved <= total


def filled(rows: int) -> ReplayBuffer:
    buffer = ReplayBuffer(300, {"obs": ((FRAME,), np.uint8)})
    no = np.zeros((rows, 1), bool)
    buffer.add_block(obs=np.ones((rows, 1, FRAME), np.uint8), terminated=no, truncated=no)
    return buffer


def test_the_folder_of_another_buffer_is_refused(tmp_path: Path) -> None:
    one, other = filled(10), filled(20)
    one.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"manifest\.json: is the save of another buffer; save to another directory"):
        other.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    loaded = ReplayBuffer.load(tmp_path)
    loaded.save(tmp_path)
    one.save(tmp_path)
    assert len(ReplayBuffer.load(tmp_path)) == 10


def test_saves_of_the_version_before_are_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"body":{},"crc32":1,"format":"drama-replay","version":2}')
    message = r"manifest\.json: is of a version before 3, this build reads version 3"
    with pytest.raises(ValueError, match=message):
        ReplayBuffer.load(tmp_path)
    with pytest.raises(ValueError, match=message):
        filled(1).save(tmp_path)


def test_two_threads_that_save_one_buffer_take_turns(tmp_path: Path) -> None:
    buffer = filled(300)
    row = {"obs": np.ones((1, FRAME), np.uint8), "terminated": np.zeros(1, bool), "truncated": np.zeros(1, bool)}
    errors: list[BaseException] = []

    def save(path: Path) -> None:
        try:
            for _ in range(10):
                buffer.add(**row)
                buffer.save(path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(tmp_path / name,)) for name in ("a", "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for name in ("a", "b"):
        assert len(ReplayBuffer.load(tmp_path / name)) == 300
        assert len(list((tmp_path / name).iterdir())) == 4


def test_errors_of_the_system_are_told_as_python_tells_them(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as refused:
        ReplayBuffer.load(missing)
    assert str(refused.value) == f"[Errno 2] No such file or directory: '{missing}'"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file") as refused_storage:
        ReplayBuffer(10, {}, storage=tmp_path / "file" / "below")
    assert "os error" not in str(refused_storage.value)
    assert "PosixPath" not in str(refused_storage.value)
