"""Streams of files: every format, from here and from elsewhere, resumed at each sample."""

import io
import json
import os
import tarfile
import zipfile
from functools import partial
from itertools import chain, islice
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ai.data import Shards
from ai.data.storage.remote import opened
from ai.data.util import create_data_loader

N = 7  # samples a file


def tar(numbers, end=True):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        for n in numbers:
            for ending, content in (("CLS", str(n)), ("seg.txt", f"sample {n}")):
                member = tarfile.TarInfo(f"{'deep/' * (n % 3)}{'long' * 40 * (n % 2)}{n}.{ending}")
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content.encode()))
        size = packed.offset
    return file.getvalue() if end else file.getvalue()[:size]


def table(numbers):
    return pa.table({"n": list(numbers), "v": pa.FixedSizeListArray.from_arrays([n % 9 for n in numbers] * 2, 2)})


def parquet(numbers):
    file = io.BytesIO()
    pq.write_table(table(numbers), file, row_group_size=3)
    return file.getvalue()


def arrow(numbers, writer=pa.ipc.new_file):
    file = io.BytesIO()
    with writer(file, table(numbers).schema) as sink:
        sink.write_table(table(numbers), max_chunksize=3)
    return file.getvalue()


def arrays(numbers):
    file = io.BytesIO()
    np.savez(file, n=np.array(numbers), v=np.ones((len(numbers), 2), np.float32))
    return file.getvalue()


FORMATS = {
    "tar": (tar, lambda sample: int(sample["cls"])),
    "bare.tar": (lambda numbers: tar(numbers, end=False), lambda sample: int(sample["cls"])),
    "txt": (
        lambda numbers: "".join(f"{n}é\r\n" for n in numbers).encode("utf-8-sig"),
        lambda line: int(line.rstrip("é")),
    ),
    "jsonl": (lambda numbers: "\n\n".join(json.dumps({"n": n}) for n in numbers).encode(), lambda sample: sample["n"]),
    "parquet": (parquet, lambda sample: int(sample["n"])),
    "arrow": (arrow, lambda sample: int(sample["n"])),
    "hf.arrow": (lambda numbers: arrow(numbers, pa.ipc.new_stream), lambda sample: int(sample["n"])),
    "npz": (arrays, lambda sample: int(sample["n"])),
}


@pytest.fixture(params=FORMATS)
def made(request, tmp_path):
    """Two files of one format, here and in memory, and what tells the number of a sample."""
    write, number = FORMATS[request.param]
    memory = fsspec.filesystem("memory")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".hidden.txt").write_text("no sample")
    (tmp_path / "set" / "readme.md").write_text("no sample")
    (tmp_path / "set" / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "set" / "pipe.txt")
    for k in range(2):
        content = write(range(N * k, N * (k + 1)))
        (tmp_path / "set" / f"{k}.{request.param}").write_bytes(content)
        memory.pipe(f"/shards/{k}.{request.param}", content)
    memory.pipe("/shards/folder.txt/inner", b"no sample")
    yield tmp_path / "set", number
    memory.rm("/shards", recursive=True)


def test_every_format_gives_its_samples_from_here_and_from_elsewhere(made):
    folder, number = made
    ending = next(folder.glob("1.*")).name[1:]
    there = [f"memory://shards/{k}{ending}" for k in range(2)]
    here = [folder / f"{k}{ending}" for k in range(2)]
    patterns = [f"{where}/*{ending}" for where in (folder, "memory://shards")]
    for paths in (folder, str(folder), here, f"file://{folder}", "memory://shards", there, *patterns):
        assert list(map(number, Shards(paths))) == list(range(2 * N))


def test_a_pass_goes_on_at_every_sample(made):
    folder, number = made
    for cut in range(2 * N + 1):
        first, second = Shards(folder), Shards("memory://shards")
        used = [number(sample) for sample in islice(first, cut)]
        state = first.state_dict()
        second.load_state_dict(state)
        assert second.state_dict() == state
        rest = [number(sample) for sample in second]
        assert used + rest == list(range(2 * N))
        assert [number(sample) for sample in second] == list(range(2 * N))  # and the next pass is whole


def test_what_a_row_holds(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar([5]))
    (tmp_path / "a.parquet").write_bytes(parquet([5]))
    (sample,) = Shards(tmp_path / "a.tar")
    assert sample == {"__key__": f"deep/deep/{'long' * 40}5", "cls": b"5", "seg.txt": b"sample 5"}
    (row,) = Shards(tmp_path / "a.parquet")
    assert row["v"].tolist() == [5, 5]


@pytest.mark.parametrize("shuffle", [0, 5])
def test_a_loader_resumes_exactly(tmp_path, shuffle):
    for k in range(3):
        (tmp_path / f"{k}.npz").write_bytes(arrays(range(N * k, N * (k + 1))))

    def loader():
        return create_data_loader(Shards(tmp_path, shuffle=True, seed=3), 4, train=True, n_workers=0, shuffle=shuffle)

    whole = [batch["n"].tolist() for batch in islice(loader(), 21)]
    epochs = [list(chain(*whole))[3 * N * k : 3 * N * (k + 1)] for k in range(4)]
    assert all(sorted(epoch) == list(range(3 * N)) for epoch in epochs)
    assert len({tuple(n // N for n in epoch) for epoch in epochs}) > 1  # files in another order
    for cut in (1, 2, 5, 6, 11):
        first, second = loader(), loader()
        list(islice(first, cut))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [batch["n"].tolist() for batch in islice(second, 21 - cut)] == whole[cut:]


@pytest.mark.parametrize("how", [{}, {"train": True, "drop_last": False}, {"n_workers": 2}])
def test_nothing_comes_again_after_the_last_batch_of_a_pass(tmp_path, how):
    for k in range(3):
        (tmp_path / f"{k}.npz").write_bytes(arrays(range(N * k, N * (k + 1))))

    def loader():
        return create_data_loader(Shards(tmp_path, shuffle=True, seed=3), 4, **{"n_workers": 0, **how})

    with loader() as first, loader() as second:
        states, whole = [first.state_dict()], []
        for batch in islice(first, 11):
            whole.append(batch["n"].tolist())
            states.append(first.state_dict())
        assert sorted(chain(*whole[:6])) == list(range(3 * N))
        for cut in range(3, len(whole)):
            second.load_state_dict(json.loads(json.dumps(states[cut])))
            assert [batch["n"].tolist() for batch in islice(second, len(whole) - cut)] == whole[cut:]
        if "train" not in how:
            second.load_state_dict(states[-1])
            assert list(second) == []


def test_workers_read_files_of_their_own(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.npz").write_bytes(arrays(range(N * k, N * (k + 1))))
    with create_data_loader(Shards(tmp_path), N, n_workers=2) as loader:
        iterator = iter(loader)
        batches = [next(iterator)["n"]]
        state = loader.state_dict()
        batches += [batch["n"] for batch in iterator]
        assert [batch.tolist() for batch in batches] == [list(range(N * k, N * (k + 1))) for k in (0, 1, 2, 3)]
        loader.load_state_dict(state)
        assert torch.equal(torch.cat([batch["n"] for batch in loader]), torch.arange(N, 4 * N))


def test_workers_of_torch_read_files_of_their_own_too(tmp_path, monkeypatch):
    for k in range(4):
        (tmp_path / f"{k}.txt").write_text(f"{k}")
    monkeypatch.setattr("torch.utils.data._utils.worker._worker_info", SimpleNamespace(id=1, num_workers=3))
    assert list(Shards(tmp_path)) == ["1"]
    assert list(Shards([*sorted(tmp_path.iterdir()), tmp_path / "0.txt"])) == ["1", "0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", tar([1, 2], end=False)[:-1], "unexpected end of data"),
        ("a.tar", tar([1, 2], end=False)[:-700], "it goes on after byte .*, where a tar's end or a whole header must"),
        ("a.tar", tar([1, 2, 3]).replace(b"2.CLS\0", b"8.CLS\0", 1), "it goes on after byte .*"),
        ("a.tar", tar([1, 2]) + tar([3]), "it goes on after byte .*"),
        ("a.tar", tar([1, 2])[:700], r"a\.tar cannot be read"),
        ("a.tar", tar([1, 1]), r"it holds .*1\.CLS twice"),
        ("a.tar", tar([1, 2, 1]), "the files of .*1 lie apart in it: write it sorted"),
        ("a.tar", b"no tar" * 200, r"a\.tar cannot be read"),
        ("a.txt", b"\xff\n", "'utf-8' codec"),
        ("a.jsonl", b"{}\n{", r"a\.jsonl cannot be read"),
        ("a.npz", arrays(range(50))[:300], r"a\.npz cannot be read"),
        ("a.parquet", parquet([1])[:40], r"a\.parquet cannot be read"),
        ("a.arrow", arrow([1, 2])[:200], r"a\.arrow cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        list(Shards(tmp_path / name))


def test_what_is_no_shard_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    for path, error, message in (
        (tmp_path / "pipe.tar", FileNotFoundError, "pipe.tar has none"),
        (tmp_path, FileNotFoundError, "must name files that end in one of .tar, .txt, .* has none"),
        (tmp_path / "none.tar", FileNotFoundError, "none.tar has none"),
        ("memory://nowhere/*.tar", FileNotFoundError, "nowhere/.*has none"),
        ([], FileNotFoundError, "at least one file, got none"),
    ):
        with pytest.raises(error, match=message):
            Shards(path)
    with pytest.raises(TypeError, match="shuffle must be True or False, got 1000: samples are shuffled by"):
        Shards(tmp_path, shuffle=1000)
    for paths in (None, b"a.tar", 3):
        with pytest.raises(TypeError, match="paths must be a path, a URL, or a list of these, got"):
            Shards(paths)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shards must end in one of \.tar, .*, got .*a\.tar\.gz"):
        Shards(tmp_path / "a.tar.gz")
    uneven = io.BytesIO()
    np.savez(uneven, x=np.zeros(2), y=np.zeros(3))
    (tmp_path / "a.npz").write_bytes(uneven.getvalue())
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: .*one row a sample, got .*\(2,\)"):
        list(Shards(tmp_path / "a.npz"))


def test_a_tar_is_cut_into_samples_as_webdataset_has_it(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        for name in ("README", "./a.x/1.JPG", "./a.x/1.seg.png", "./a.x/.DS_Store", "2.jpg"):
            packed.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    mine = [(sample.pop("__key__"), set(sample)) for sample in Shards(tmp_path)]
    assert mine == [("./a.x/1", {"jpg", "seg.png"}), ("2", {"jpg"})]


def test_files_behind_chained_urls_are_found_and_told_apart():
    memory = fsspec.filesystem("memory")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name in "ab":
            packed.writestr(f"in/{name}.txt", f"{name}1\n{name}2\n")
            memory.pipe(f"/chained/in/{name}.txt", f"{name}1\n{name}2\n".encode())
    memory.pipe("/chained/all.zip", archive.getvalue())
    direct = Shards("memory://chained/in")
    for url in (
        "zip://in::memory://chained/all.zip",
        "zip://in/*.txt::memory://chained/all.zip",
        "zip://in/*.txt::simplecache::memory://chained/all.zip",
        "simplecache::memory://chained/in/*.txt",
        [f"zip://in/{name}.txt::memory://chained/all.zip" for name in "ab"],
    ):
        shards = Shards(url)
        assert list(shards) == ["a1", "a2", "b1", "b2"]
        assert all("::" in file for file in shards.files)  # through the cache, too
        assert shards.state_dict() == direct.state_dict()
    assert Shards(url[::-1]).state_dict()["files"] != direct.state_dict()["files"]
    memory.rm("/chained", recursive=True)


def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.txt").write_text(folder)
    state = Shards([tmp_path / "a", tmp_path / "b"]).state_dict()
    with pytest.raises(ValueError, match="in another order"):
        Shards([tmp_path / "b", tmp_path / "a"]).load_state_dict(state)


@pytest.mark.parametrize("where", ["here", "memory"])
def test_a_state_within_a_file_that_was_written_anew_is_refused(where, tmp_path):
    memory = fsspec.filesystem("memory")
    path = str(tmp_path / "a.txt") if where == "here" else "memory://anew/a.txt"
    write = (tmp_path / "a.txt").write_bytes if where == "here" else partial(memory.pipe, "/anew/a.txt")
    write(b"one\ntwo\n")
    shards = Shards(path)
    next(iter(shards))
    state = shards.state_dict()
    write(b"one more\ntwo\n")
    again = Shards(path)
    again.load_state_dict(state)
    with pytest.raises(ValueError, match=r"a\.txt cannot .* holds 13 bytes, and held 8 when the state was taken"):
        list(again)
    assert list(again) == ["one more", "two"]  # the pass after it is whole
    if where == "memory":
        memory.rm("/anew", recursive=True)


def four_files(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.npz").write_bytes(arrays(range(N * k, N * (k + 1))))
    return lambda: create_data_loader(Shards(tmp_path, shuffle=True, seed=3), N, train=True, n_workers=0, shuffle=5)


def test_ranks_read_files_of_their_own_and_resume_at_every_batch(tmp_path, monkeypatch):
    make, read = four_files(tmp_path), []
    monkeypatch.setattr("ai.data.shards.stream.opened", lambda path: read.append(path) or opened(path))
    whole = {}
    for rank in range(2):
        whole[rank] = [batch["n"].tolist() for batch in islice(make().shard(rank, 2), 8)]
        for cut in range(1, 8):
            first, second = make().shard(rank, 2), make().shard(rank, 2)
            list(islice(first, cut))
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            assert [batch["n"].tolist() for batch in islice(second, 8 - cut)] == whole[rank][cut:]
    files = [[{n // N for n in chain(*whole[rank][k : k + 2])} for k in range(0, 8, 2)] for rank in range(2)]
    for ours, theirs in zip(*files, strict=True):
        assert (len(ours), len(theirs), ours | theirs) == (2, 2, {0, 1, 2, 3})
    assert len(set(map(frozenset, files[0]))) > 1  # others in another pass
    read.clear()
    list(islice(make().shard(0, 2), 2))
    assert len(read) == 2
    other = make().shard(1, 2)
    other.load_state_dict(first.state_dict())
    assert next(iter(other))["n"].tolist() == whole[1][7]  # `first` is rank 1's
    wrong = make().shard(0, 2)
    wrong.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="or of another rank's"):
        next(iter(wrong))


def test_ranks_share_samples_where_they_cannot_share_files(tmp_path):
    make = four_files(tmp_path)
    thirds = [make().shard(rank, 3) for rank in range(3)]
    drawn = [torch.cat([batch["n"] for batch in islice(third, 4)]).tolist()[:9] for third in thirds]
    assert not thirds[0].state_dict()["is_part"]
    assert sum(map(len, map(set, drawn))) == len(set(chain(*drawn))) == 27
    checks = [Shards(tmp_path).part_of_rank(0, 3), Shards(tmp_path).part_of_rank(0, 2).part_of_rank(0, 2)]
    assert checks == [None, None]
    evaluated = [create_data_loader(Shards(tmp_path), 4, n_workers=0).shard(rank, 2) for rank in range(2)]
    assert [next(iter(rank))["n"].tolist() for rank in evaluated] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_position_that_was_shared_by_samples_is_gone_on_with(tmp_path):
    for k in range(2):
        (tmp_path / f"{k}.npz").write_bytes(arrays(range(N * k, N * (k + 1))))

    def make():
        return create_data_loader(Shards(tmp_path), 2, train=True, n_workers=0)

    begun = make()
    next(iter(begun))
    shared = begun.shard(1, 2)
    next(iter(shared))
    after = make().shard(1, 2)
    assert after.state_dict()["is_part"]
    after.load_state_dict(shared.state_dict())
    assert [next(iter(after))["n"].tolist() for _ in range(3)] == [[7, 9], [11, 13], [1, 3]]
    (tmp_path / "2.npz").write_bytes(arrays(range(3)))
    with pytest.raises(ValueError, match="is of a rank's own files, and these cannot be shared by the ranks"):
        make().shard(1, 2).load_state_dict(make().shard(1, 2).state_dict() | {"is_part": True})


def test_states_of_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n")
    state = Shards(tmp_path).state_dict()
    (tmp_path / "b.txt").write_text("3\n")
    with pytest.raises(ValueError, match="of other files"):
        Shards(tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match="format 2, known is 1"):
        Shards(tmp_path).load_state_dict({**state, "format": 2})
