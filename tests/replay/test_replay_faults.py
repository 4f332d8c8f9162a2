"""The replay buffer under kills, full disks, threads, long runs and files that are not its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drama.replay import DynamicFrequency, ReplayBuffer, Uniform

FRAME = 1 << 14
ROWS = 300
BLOCK = 40

WRITER = f"""
import sys
from pathlib import Path
import numpy as np
from drama.replay import ReplayBuffer

path = Path(sys.argv[1])
if (path / "manifest.json").exists():
    buffer = ReplayBuffer.load(path)
else:
    buffer = ReplayBuffer({ROWS}, {{"t": ((), np.int64), "obs": (({FRAME},), np.uint8)}})
no = np.zeros(({BLOCK}, 1), bool)
print("ready", buffer.total, flush=True)
while True:
    t = (buffer.total + np.arange({BLOCK}))[:, None]
    obs = (t % 251).astype(np.uint8)[..., None].repeat({FRAME}, 2)
    buffer.add_block(t=t, obs=obs, terminated=no, truncated=no)
    print("saving", buffer.total, flush=True)
    buffer.save(path)
    print("saved", buffer.total, flush=True)
"""


def kill_once(path: Path, delay: float) -> tuple[int, bool]:
    """Let a writer go on from the last save and kill it; what it reported last, and whether it was saving then."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        assert lines[0].startswith("ready"), "the writer did not start"
        time.sleep(delay)
        writer.kill()
        lines += list(writer.stdout)
    events = [line.split() for line in lines if line.endswith("\n")]
    saved = max(int(total) for kind, total in events if kind != "saving")
    return saved, events[-1][0] == "saving"


def kill_many(path: Path, kills: int) -> None:
    """Kill writers over one directory; each goes on from what the one before left."""
    random = np.random.default_rng(kills)
    while_saving = 0
    for _ in range(kills):
        saved, saving = kill_once(path, random.uniform(0, 0.12))
        while_saving += saving
        if saved == 0 and not (path / "manifest.json").exists():
            continue
        loaded = ReplayBuffer.load(path)
        # The save under way may have been finished but not reported.
        assert loaded.total in ((saved, saved + BLOCK) if saving else (saved,))
        assert len(loaded) == min(loaded.total, ROWS)
        oldest = loaded.total - len(loaded)
        batch = loaded.gather([oldest], len(loaded))
        np.testing.assert_array_equal(batch["t"][0], np.arange(oldest, loaded.total))
        assert (batch["obs"][0] == (batch["t"][0] % 251)[:, None]).all()
        np.testing.assert_array_equal(batch["is_first"][0], batch["t"][0] == 0)
    assert while_saving >= kills // 4
    loaded.save(path)
    chunks = {file.name for file in path.iterdir() if file.name.startswith("chunk")}
    assert len({name.rsplit("-", 1)[0] for name in chunks}) == len(chunks), "a file that no save needs was left"


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path / "replay", 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path / "replay", 200)


def large(total: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(ROWS, {"t": ((), np.int64), "obs": ((FRAME,), np.uint8)})
    grow(buffer, total)
    return buffer


def grow(buffer: ReplayBuffer, count: int) -> None:
    t = (buffer.total + np.arange(count))[:, None]
    obs = (t % 251).astype(np.uint8)[..., None].repeat(FRAME, 2)
    no = np.zeros((count, 1), bool)
    buffer.add_block(t=t, obs=obs, terminated=no, truncated=no)


def steps(buffer: ReplayBuffer) -> list[int]:
    """The steps held, oldest first, after a check of their frames."""
    batch = buffer.gather([buffer.total - len(buffer)], len(buffer))
    assert (batch["obs"][0] == (batch["t"][0] % 251)[:, None]).all()
    return batch["t"][0].tolist()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [0, 10, 1 << 20])
def test_a_file_that_cannot_grow_leaves_buffer_and_save(tmp_path: Path, size: int) -> None:
    buffer = large(200)
    buffer.save(tmp_path)
    grow(buffer, 250)
    with largest_file(size), pytest.raises(OSError, match="chunk-"):
        buffer.save(tmp_path)
    assert steps(buffer) == list(range(150, 450))
    assert steps(ReplayBuffer.load(tmp_path)) == list(range(200))
    buffer.save(tmp_path)
    assert steps(ReplayBuffer.load(tmp_path)) == list(range(150, 450))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_leaves_buffer_and_save(small_disk: Path) -> None:
    buffer = large(200)
    buffer.save(small_disk / "replay")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(9 << 20))
    grow(buffer, 250)
    with pytest.raises(OSError, match="No space left on device") as refused:
        buffer.save(small_disk / "replay")
    assert "chunk-" in str(refused.value)
    assert steps(buffer) == list(range(150, 450))
    assert steps(ReplayBuffer.load(small_disk / "replay")) == list(range(200))
    # A save needs room beside the one in place; here there is room for one only.
    for file in (small_disk / "replay").iterdir():
        file.unlink()
    buffer.save(small_disk / "replay")
    assert steps(ReplayBuffer.load(small_disk / "replay")) == list(range(150, 450))


def run_together(work: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in work]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    if errors:
        raise errors[0]


def test_threads_see_whole_blocks_only(tmp_path: Path) -> None:
    """Adders write blocks of five rows, the first of them first of an episode; no draw shows a part of one torn off."""
    buffer = ReplayBuffer(401, {"x": ((), np.int64), "obs": ((64,), np.uint8)}, num_envs=3)
    frequency = DynamicFrequency()
    running = threading.Event()
    blocks, adders = 400, 3
    done: list[int] = []

    def adder(number: int) -> Callable[[], None]:
        def work() -> None:
            try:
                for block in range(blocks):
                    x = (number * 1_000_000 + block * 5 + np.arange(5))[:, None].repeat(3, 1)
                    obs = (x % 251).astype(np.uint8)[..., None].repeat(64, 2)
                    buffer.add_block(x=x, obs=obs, terminated=x % 5 == 4, truncated=np.zeros_like(x, bool))
                    running.set()
            finally:
                done.append(number)
                running.set()

        return work

    def check(batch: dict[str, npt.NDArray[Any]]) -> None:
        x = batch["x"]
        assert (batch["obs"] == (x % 251)[..., None]).all()
        np.testing.assert_array_equal(batch["terminated"], x % 5 == 4)
        np.testing.assert_array_equal(batch["is_first"], x % 5 == 0)
        inside = x[:, 1:] % 5 != 0
        np.testing.assert_array_equal((x[:, 1:] - x[:, :-1])[inside], 1)

    def sampler(number: int) -> Callable[[], None]:
        samplers = [Uniform(), Uniform(replacement=False), frequency.world_model, frequency.imagination]

        def work() -> None:
            running.wait()
            while len(done) < adders:
                for each in samplers[number:] + samplers[:number]:
                    with contextlib.suppress(ValueError):  # too few starts in the beginning
                        check(buffer.sample(8, 7, sampler=each))

        return work

    def saver() -> None:
        running.wait()
        while len(done) < adders:
            buffer.save(tmp_path)
            loaded = ReplayBuffer.load(tmp_path)
            assert loaded.total % 5 == 0
            if len(loaded) >= 30:
                check(loaded.sample(8, 7))

    run_together([*(adder(n) for n in range(adders)), *(sampler(n) for n in range(3)), saver, saver])
    assert buffer.total == 5 * blocks * adders


def resident() -> int:
    """Bytes of memory in use by this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_stays_flat(tmp_path: Path) -> None:
    buffer = ReplayBuffer(20_000, {"x": ((), np.int64), "obs": ((256,), np.uint8)}, num_envs=4)
    frequency = DynamicFrequency()
    row: dict[str, npt.NDArray[Any]] = {"x": np.zeros(4, np.int64), "obs": np.zeros((4, 256), np.uint8)}
    row |= {"terminated": np.zeros(4, bool), "truncated": np.zeros(4, bool)}
    bad = row | {"x": np.zeros(3, np.int64)}

    def use(adds: int) -> None:
        for count in range(adds):
            buffer.add(**row)
            if count % 50 == 49:
                for sampler in (Uniform(), frequency.world_model, frequency.imagination):
                    buffer.sample(16, 8, sampler=sampler)
            if count % 50_000 == 0:
                buffer.save(tmp_path)
                frequency.state_dict()
                with contextlib.suppress(ValueError):
                    buffer.add(**bad)

    use(50_000)
    before = resident()
    use(1_000_000)
    assert resident() - before < 8 << 20


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sound save of two chunks."""
    path = tmp_path / "replay"
    large(200).save(path)
    assert len(list(path.glob("chunk-*"))) == 2
    return path


@pytest.mark.parametrize("target", ["manifest.json", "chunk-*-000001-00000001.bin"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"PK\x03\x04" + bytes(100), b"\x93NUMPY\x01\0", b"{}", b"[" * 100_000, b"\xff\xfe", "cut"],
    ids=["empty", "zeros", "zip", "npy", "object", "nested", "utf16", "cut"],
)
def test_foreign_content_is_refused(saved: Path, target: str, content: bytes | str) -> None:
    (path,) = saved.glob(target)
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path.name}: "):
        ReplayBuffer.load(saved)


@pytest.mark.parametrize("target", ["manifest.json", "chunk-*-000001-00000001.bin"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and devices that are files")
def test_what_is_not_a_regular_file_is_refused(saved: Path, target: str, kind: str) -> None:
    (path,) = saved.glob(target)
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{path.name}: is not a regular file"):
        ReplayBuffer.load(saved)


def test_chunks_may_not_change_places(saved: Path) -> None:
    first, second = sorted(saved.glob("chunk-*"))
    first.rename(saved / "aside")
    second.rename(first)
    (saved / "aside").rename(second)
    with pytest.raises(ValueError, match=r"chunk-.*-000000-"):
        ReplayBuffer.load(saved)


def test_files_of_others_are_left_alone(saved: Path) -> None:
    others = ["notes.txt", "chunk-notes.bin", "chunk-000001.bin", "manifest.json.bak", "x.tmp"]
    for name in others:
        (saved / name).write_text("mine")
    buffer = ReplayBuffer.load(saved)
    grow(buffer, 1)
    buffer.save(saved)
    assert all((saved / name).read_text() == "mine" for name in others)
    assert steps(ReplayBuffer.load(saved)) == list(range(201))


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="permissions do not bind this user")
def test_a_directory_that_cannot_be_written_is_named(saved: Path) -> None:
    saved.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="replay"):
            large(200).save(saved)
    finally:
        saved.chmod(0o700)
    assert steps(ReplayBuffer.load(saved)) == list(range(200))
