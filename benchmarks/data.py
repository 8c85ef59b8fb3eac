"""How fast is the data? Ours beside the peers in one run, alternating, medians, one torch thread.

Run: `python benchmarks/data.py [memory] [workers] [images] [generated]` (all four without arguments);
`python benchmarks/data.py paths [epochs]` for the memory of workers over 50 epochs of a million paths. A peer that is
not installed (fastai, HuggingFace datasets) is said to be missing.
`python -m ai.examples.reproduce datagen-soak` is 20 minutes of a Datagen under random worker kills.

Targets: in memory ≥ 70 % of `index_select` with fresh allocation; workers ≥ torch's from samples of 150 kB on, in wall
and processor time; images: first pass ≥ torchvision's decoder, later
passes ≥ 20 times that; generated: ≥ 200 MB/s and ≥ 20,000 small episodes/s with 2 workers.
"""

import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from ai.data import Datagen, Dataset, ImgDataset, ReplayBuffer

BATCH = 128
LIMIT = "index_select, fresh allocation (the limit)"


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {os.cpu_count()} CPUs")
    if arguments[:1] == ["paths"]:
        million_paths(int(arguments[1]) if len(arguments) > 1 else 50)
    else:
        for name, table in (("memory", memory), ("workers", workers), ("images", images), ("generated", generated)):
            if not arguments or name in arguments:
                table()


# In memory


class Items(TorchDataset):
    """A map-style dataset that gives one sample at a time."""

    def __init__(self, x, y, normalise):
        self.x, self.y, self.normalise = x, y, normalise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i]
        return (x.float() / 127.5 - 1 if self.normalise else x), self.y[i]


class Batched(Items):
    """The same with a whole batch at a time."""

    def __getitems__(self, rows):
        rows = torch.tensor(rows)
        return to_float(self.x.index_select(0, rows)), self.y.index_select(0, rows)


def to_float(x):
    return x.to(torch.float32).mul_(1 / 127.5).sub_(1)


def memory() -> None:
    for name, shape, n in (("MNIST", (1, 28, 28), 60_000), ("CIFAR", (3, 32, 32), 50_000)):
        x = torch.randint(256, (n, *shape), dtype=torch.uint8)
        y = torch.randint(10, (n,), dtype=torch.uint8)
        ours = Dataset({"x": x, "y": y}, postprocess={"x": to_float}).loader(BATCH, train=True)

        def limit(n_batches, x=x, y=y):
            order = torch.randperm(len(x))
            for k in range(n_batches):
                rows = order[k * BATCH : (k + 1) * BATCH]
                yield to_float(x.index_select(0, rows)), y.index_select(0, rows)

        def reused(n_batches, x=x, y=y):
            order = torch.randperm(len(x))
            stored, batch, labels = x[:BATCH].clone(), x[:BATCH].float(), y[:BATCH].clone()
            for k in range(n_batches):
                rows = order[k * BATCH : (k + 1) * BATCH]
                torch.index_select(x, 0, rows, out=stored)
                torch.index_select(y, 0, rows, out=labels)
                yield batch.copy_(stored).mul_(1 / 127.5).sub_(1), labels

        def torch_loader(dataset, n_workers=0):
            # The peers run the full epoch's shuffle as well; only its first batches are timed.
            loader = TorchLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=n_workers,
                                 collate_fn=(lambda b: b) if isinstance(dataset, Batched) else None)  # fmt: skip
            return lambda k: islice(loader, k)

        def then_to_float(batches):
            return lambda k: ((to_float(x), y) for x, y in batches(k))

        methods: dict[str, tuple[Callable, int] | None] = {
            LIMIT: (limit, 300),
            "index_select into a reused buffer": (reused, 300),
            "ours": (lambda k, ours=ours: islice(iter(ours), k), 300),
            "torch DataLoader over __getitems__": (torch_loader(Batched(x, y, True)), 100),
            "torch DataLoader over TensorDataset": (then_to_float(torch_loader(TensorDataset(x, y))), 50),
            "fastai DataLoader": None,
            "torch DataLoader, normalise per item": (torch_loader(Items(x, y, True)), 30),
            "the same, 2 workers": (torch_loader(Items(x, y, True), 2), 60),
            "HuggingFace datasets, torch format": None,
        }
        if find_spec("fastai"):
            methods["fastai DataLoader"] = then_to_float(fastai_loader(TensorDataset(x, y))), 50
        if find_spec("datasets"):
            methods["HuggingFace datasets, torch format"] = then_to_float(huggingface_loader(x, y)), 15
        rates: dict[str, list[float]] = {method: [] for method, how in methods.items() if how}
        for repeat in range(9):
            for method in sorted(rates, reverse=bool(repeat % 2)):
                run, n_batches = methods[method]  # type: ignore[misc]
                iterator = iter(run(n_batches))
                next(iterator)  # starting, shuffling
                start = time.perf_counter()
                n_done = sum(1 for _ in iterator)
                rates[method].append(n_done * BATCH / (time.perf_counter() - start))
        print(f"\n{name} shape, uint8 {shape} → float32 in [-1, 1], batch {BATCH}: samples/s (share of the limit)")
        medians = {method: statistics.median(r[1:]) for method, r in rates.items()}
        for method in methods:
            if method in medians:
                print(f"  {method:45} {medians[method]:12,.0f} {medians[method] / medians[LIMIT]:7.0%}")
            else:
                print(f"  {method:45} not installed")


def fastai_loader(dataset):
    from fastai.data.load import DataLoader

    loader = DataLoader(dataset, bs=BATCH, shuffle=True, drop_last=True, num_workers=0)
    return lambda k: islice(loader, k)


def huggingface_loader(x, y, n=10_000):
    import datasets

    features = datasets.Features(x=datasets.Array3D(tuple(x.shape[1:]), "uint8"), y=datasets.Value("uint8"))
    rows = datasets.Dataset.from_dict({"x": x[:n].numpy(), "y": y[:n].numpy()}, features=features)
    loader = TorchLoader(rows.with_format("torch"), BATCH, shuffle=True, drop_last=True)
    return lambda k: ((batch["x"], batch["y"]) for batch in islice(loader, k))


# Workers


class Stored(TorchDataset):
    """Samples in memory, each given by a function of a worker."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 1000 * len(self.x)  # an epoch's end would empty its queue

    def __getitem__(self, i):
        return as_stored(self.x[i % len(self.x)])


def as_stored(x):
    return x


def workers(n_workers: int = 2, repeats: int = 5) -> None:
    """Samples that cost nothing to make: what is left is the way to a worker and back, and a copy by who uses them."""
    print(
        f"\n{n_workers} workers, preprocess without work, each batch copied out: samples/s of ours, of torch's "
        "DataLoader,\nours / torch's; and processor time, µs a sample of ours, of torch's, torch's / ours"
    )
    sizes = {
        "3 kB, uint8 3×32×32": (torch.uint8, (3, 32, 32), 128, 80),
        "150 kB, uint8 3×224×224": (torch.uint8, (3, 224, 224), 64, 32),
        "600 kB, float32 3×224×224": (torch.float32, (3, 224, 224), 32, 32),
        "1 MB, float32 512×512": (torch.float32, (512, 512), 32, 32),
    }
    for name, (dtype, shape, batch, n_batches) in sizes.items():
        x = torch.ones((4 * batch, *shape), dtype=dtype)
        there = torch.empty_like(x[:batch])
        ours = Dataset(x, as_stored).loader(batch, train=True, n_workers=n_workers)
        theirs = iter(TorchLoader(Stored(x), batch, shuffle=True, num_workers=n_workers))
        ways = {
            "ours": (iter(ours), ours._producer.pids),
            "torch's": (theirs, [worker.pid for worker in theirs._workers]),
        }
        walls: dict[str, list[float]] = {way: [] for way in ways}
        works: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(repeats + 1):
            for way in sorted(ways, reverse=bool(repeat % 2)):
                batches, pids = ways[way]
                for made in islice(batches, 4 * n_workers):  # starting, and what was made ahead meanwhile
                    there.copy_(made)
                wall, work = time.perf_counter(), processor_s(pids)
                for made in islice(batches, n_batches):
                    there.copy_(made)
                walls[way].append((time.perf_counter() - wall) / n_batches / batch)
                works[way].append((processor_s(pids) - work) / n_batches / batch)
        ours.close()
        del theirs, ways
        (wall, wall_of_torch), (work, work_of_torch) = (
            [statistics.median(seconds[way][1:]) for way in ("ours", "torch's")] for seconds in (walls, works)
        )
        print(f"  {name:28} {1 / wall:8,.0f} {1 / wall_of_torch:8,.0f} {wall_of_torch / wall:6.2f}", end="")
        print(f" {work * 1e6:10.0f} {work_of_torch * 1e6:8.0f} {work_of_torch / work:6.2f}", flush=True)


def processor_s(pids: list[int]) -> float:
    """Seconds of processor time of this process and of others."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return time.process_time() + sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


# Images


def pillow(path):
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))


def torchvision_io(path):
    import torchvision.io
    from torchvision.transforms.v2 import functional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = torchvision.io.decode_image(torchvision.io.read_file(path), torchvision.io.ImageReadMode.RGB)
    return functional.resize(pixels, [64, 64], antialias=True)


class Files(TorchDataset):
    """Images decoded by the workers of torch's loader."""

    def __init__(self, files, decode):
        self.files, self.decode = files, decode

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.decode(self.files[i])


def images(n: int = 600) -> None:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        files = []
        for i in range(n):
            pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
            files.append(f"{folder}/{i:04}.jpg")
            Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC).save(files[-1], quality=90)
        size = sum(map(os.path.getsize, files)) / n / 1e3

        times: dict[str, list[float]] = {
            name: []
            for name in (
                "PIL",
                "PIL, 2 processes",
                "torchvision.io",
                "torchvision.io, 2 processes",
                "ours, first pass",
                "ours, later",
            )
        }
        torchvision_io(files[0])
        for repeat in range(5):
            for name, decode in (("PIL", pillow), ("torchvision.io", torchvision_io)):
                start = time.perf_counter()
                for path in files:
                    decode(path)
                times[name].append(n / (time.perf_counter() - start))
                loader = TorchLoader(Files(files, decode), 32, num_workers=2)
                start = time.perf_counter()
                for _ in loader:
                    pass
                times[f"{name}, 2 processes"].append(n / (time.perf_counter() - start))
            cache = f"{folder}/packs{repeat}"
            start = time.perf_counter()
            loader = ImgDataset(folder, 64, fit="stretch", cache=cache).loader(BATCH)
            for _ in loader:
                pass
            times["ours, first pass"].append(n / (time.perf_counter() - start))
            start = time.perf_counter()
            loader = ImgDataset(folder, 64, fit="stretch", cache=cache).loader(BATCH)
            for _ in range(20):
                for _ in loader:
                    pass
            times["ours, later"].append(20 * n / (time.perf_counter() - start))
        print(f"\n{n} JPEGs of {size:.0f} kB, 400×300 → 64×64, in batches (ours): images/s (ratio to torchvision.io)")
        reference = statistics.median(times["torchvision.io"])
        for name, rates in times.items():
            print(f"  {name:45} {statistics.median(rates):12,.0f} {statistics.median(rates) / reference:7.1f}")


# Generated


class Ready:
    """Episodes that cost nothing to make: what is left is the way to the trainer."""

    def __init__(self, n_steps: int, n_floats: int) -> None:
        self.n_steps, self.n_floats = n_steps, n_floats

    def start(self, seed, worker):  # noqa: D102
        n = self.n_steps
        self.episode = {
            "obs": np.zeros((n + 1, self.n_floats), np.float32),
            "action": np.zeros(n, np.int64),
            "reward": np.zeros(n, np.float32),
            "policy": np.zeros((n, 9), np.float32),
            "value": np.zeros(n, np.float32),
        }

    def __next__(self):
        return self.episode

    def update_params(self, state_dict, version):  # noqa: D102
        pass


def generated(seconds: float = 5.0) -> None:
    print(f"\nDatagen, 2 workers, {seconds:.0f} s each, into the replay buffer while the trainer draws 10 batches/s")
    for name, n_steps, n_floats in (
        ("small: 8 steps of 9 floats", 8, 9),
        ("large: 100 steps of 84×84 floats", 100, 7056),
    ):
        with Datagen(Ready(n_steps, n_floats)).loader(BATCH, n_workers=2, buffer=ReplayBuffer(5000)) as loader:
            next(loader)
            row = sum(c.nbytes for c in loader.buffer.columns.values()) / len(loader.buffer.column("action"))
            begin = loader.stats()
            start = time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds:
                next(loader)
                time.sleep(0.1)
            end = loader.stats()
        rate = (end["episodes"] - begin["episodes"]) / passed
        print(f"  {name:45} {rate:12,.0f} episodes/s {rate * (n_steps + 1) * row / 1e6:10,.0f} MB/s")


# Long runs


def resident_mb(pid: int | str = "self") -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def million_paths(n_epochs: int = 50) -> None:
    paths = [f"/data/images/{i // 1000:04}/{i:07}.jpg" for i in range(1_000_000)]
    with Dataset(paths, len_of_path).loader(5000, train=True, n_workers=2) as loader:
        pool = loader._producer
        iterator = iter(loader)
        print("1,000,000 paths: epoch, resident MB of the parent, of each worker")
        for epoch in range(n_epochs):
            for _ in range(len(loader)):
                next(iterator)
            if epoch in (0, 1, 4, 9, 19, 29, 39, n_epochs - 1):
                print(
                    f"  {epoch + 1:3} {resident_mb():8.1f} {[round(resident_mb(pid), 1) for pid in pool.pids]}",
                    flush=True,
                )


def len_of_path(path):
    return np.float32(len(path))


if __name__ == "__main__":
    main(sys.argv[1:])
