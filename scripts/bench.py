"""How fast vaex trains: images per second of its step, of a loop as tutorials write it, and of the step's own matrix
products and convolutions alone, which no training loop can beat.

    python scripts/bench.py                               # every case on the CPU, about ten minutes
    python scripts/bench.py --device cuda                 # the same on a GPU
    python scripts/bench.py --cases mlp --rounds 25 --json bench.json

All contenders of a case take turns, in a new order in every round, so that a busy machine slows them alike. What counts
are the medians of the ratios within a round. Each contender runs in a process of its own.
"""

import argparse
import atexit
import gzip
import itertools
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import MNIST, ImageFolder
from tqdm import tqdm

from vaex.architectures import ladder, vit
from vaex.build import build
from vaex.config.schema import check, config_dir
from vaex.data.dataset import Images, Source
from vaex.data.mnist import EMBEDDED
from vaex.data.stream import IndexStream
from vaex.training.capture import CapturedStep, compile_stacked, compile_step
from vaex.training.memory import keep_freed_memory
from vaex.training.stacked import StackedStep
from vaex.training.step import TrainingStep

Run = Callable[[int], None]  # takes that many training steps
TUTORIAL, IN_MEMORY = "tutorial loop", "tutorial loop, pictures decoded before"


# The networks of tutorials. vaex's have the same layers.


class TutorialMLP(nn.Module):
    """784-400-20, as in pytorch/examples/vae."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x.view(-1, 784)))
        mean, log_var = self.fc21(h), self.fc22(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))).view_as(x), mean, log_var


class TutorialConv(nn.Module):
    """Strided 4 × 4 convolutions and one hidden layer."""

    def __init__(self, channels: int, size: int, widths: list[int], hidden: int = 256, latent: int = 20) -> None:
        super().__init__()
        side = size >> len(widths)
        down: list[nn.Module] = []
        for inputs, outputs in zip([channels, *widths], widths, strict=False):
            down += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        flat = widths[-1] * side * side
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU())
        self.mean, self.log_var = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        up: list[nn.Module] = [nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, flat), nn.ReLU()]
        up += [nn.Unflatten(1, (widths[-1], side, side))]
        sizes = [size >> n for n in range(len(widths) + 1)][::-1]
        outputs_up = [*widths[::-1][1:], channels]
        for n, (inputs, outputs) in enumerate(zip(widths[::-1], outputs_up, strict=True)):
            up += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, output_padding=sizes[n + 1] % 2)]
            up += [nn.ReLU()] if n < len(widths) - 1 else [nn.Sigmoid()]
        self.decoder = nn.Sequential(*up)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        return self.decoder(z), mean, log_var


class TutorialViT(nn.Module):
    """After the tutorial on transformers as autoencoders: vaex's encoder and decoder, with PyTorch's own blocks."""

    def __init__(self, latent: int = 20) -> None:
        super().__init__()
        shape, sizes = (3, 64, 64), {"patch_size": 8, "hidden": 256, "depth": 4, "heads": 4, "mlp_ratio": 4}
        self.encoder = vit.Encoder(image_shape=shape, out_features=2 * latent, **sizes)
        self.decoder = vit.Decoder(in_features=latent, image_shape=shape, out_channels=3, **sizes)
        for blocks in (self.encoder.blocks, self.decoder.blocks):
            for n, block in enumerate(blocks):
                if isinstance(block, nn.TransformerEncoderLayer):
                    blocks[n] = nn.TransformerEncoderLayer(
                        256, 4, 1024, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
                    )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        return torch.sigmoid(self.decoder(z)), mean, log_var


class TutorialLadder(nn.Module):
    """vaex's hierarchical networks in a plain loop."""

    def __init__(self, widths: list[int], groups: list[int], latent_channels: int) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"image_shape": (1, 28, 28), "widths": widths, "activation": "silu", "recompute": False}
        self.encoder = ladder.Encoder(depth=2, **sizes)
        self.decoder = ladder.Decoder(out_channels=1, groups=groups, depth=1, latent_channels=latent_channels, **sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(1, len(x), self.decoder.latent_dim, device=x.device)
        result = self.decoder.infer(self.encoder(x), noise)
        mean, log_var = result.z[0] - result.log_std[0].exp() * noise[0], 2 * result.log_std[0]
        return torch.sigmoid(result.output[0]), mean, log_var


class InMemory(Dataset[tuple[Tensor, int]]):
    """Arrays that become PIL images and then tensors, as torchvision's CIFAR10 has it."""

    def __init__(self, images: Images) -> None:
        self.arrays = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[n])), 0


def jpeg_folder(root: Path) -> Dataset[Any]:
    """Files of CelebA's size, decoded, resized and cropped each time, as tutorials on it do."""
    (root / "0").mkdir()
    for n, array in enumerate(InMemory(pictures(height=218, width=178, count=512).train).arrays):
        Image.fromarray(array).save(root / "0" / f"{n:03}.jpg", quality=90)
    return ImageFolder(
        str(root), transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])
    )


def idx_files(root: Path) -> Dataset[Any]:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in EMBEDDED.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return MNIST(str(root), train=True, transform=transforms.ToTensor())


def pictures(*, height: int = 64, width: int = 64, count: int = 4096) -> Source:
    """Colored blobs with some noise: what is on them makes no difference to the speed of training."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.randn(count, 3, height, width, generator=generator) * 0.03
    pixels = ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)
    images = Images(pixels, torch.zeros(count, dtype=torch.int64))
    return Source(train=images, test=Images(pixels[:256], images.labels[:256]), classes=1)


@dataclass(frozen=True)
class Case:
    what: str
    overrides: list[str]
    batch_size: int
    network: Callable[[], nn.Module]
    bce: bool = False  # the loss is cross-entropy, not the sum of squares


SQUARES = ["likelihood=gaussian", "likelihood/scale=fixed", "likelihood.scale.value=0.70710678"]
COLORS = ["~dataset.source", "+dataset.source._target_=bench.pictures", "dataset.validation=256"]
CASES = {
    "mlp": Case(
        "MLP 784-400-20, MNIST",
        ["architecture.hidden=[400]", "architecture.activation=relu", "likelihood=cross_entropy"],
        128,
        TutorialMLP,
        bce=True,
    ),
    "conv28": Case(
        "conv 32-64-128, MNIST",
        ["architecture=conv", "architecture.activation=relu", *SQUARES],
        128,
        lambda: TutorialConv(1, 28, [32, 64, 128]),
    ),
    "conv64": Case(
        "conv 32-64-128-256, 64 × 64 color",
        [
            "architecture=conv",
            "architecture.widths=[32,64,128,256]",
            "architecture.activation=relu",
            *SQUARES,
            *COLORS,
        ],
        64,
        lambda: TutorialConv(3, 64, [32, 64, 128, 256]),
    ),
    "vit64": Case(
        "ViT, patch 8, width 256, depth 4 + 4, 64 × 64 color",
        ["architecture=vit", "architecture.patch_size=8", *SQUARES, *COLORS],
        64,
        TutorialViT,
    ),
    "ladder28": Case(
        "ladder 32-64-64 with 5 groups, MNIST",
        ["architecture=ladder", "latent_dim=8", "likelihood=cross_entropy"],
        64,
        lambda: TutorialLadder([32, 64, 64], [1, 2, 2], 8),
        bce=True,
    ),
}


# What takes part.


def tutorial(case: Case, device: torch.device, in_memory: bool = False) -> Run:
    """A DataLoader that converts image by image, eager Adam, `.item()` in every step."""
    color = COLORS[0] in case.overrides
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root)
    data = InMemory(pictures().train) if in_memory else jpeg_folder(root) if color else idx_files(root)
    # On a CPU, workers would take the cores from the training; examples have them beside a GPU only.
    workers: dict[str, Any] = (
        {"num_workers": len(os.sched_getaffinity(0)), "pin_memory": True} if device.type == "cuda" else {}
    )
    loader: DataLoader[Any] = DataLoader(data, batch_size=case.batch_size, shuffle=True, drop_last=True, **workers)
    torch.manual_seed(0)
    model = case.network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batches() -> Iterator[Tensor]:
        while True:
            for x, _ in loader:
                yield x

    endless = batches()
    total = 0.0

    def run(steps: int) -> None:
        nonlocal total
        for _ in range(steps):
            x = next(endless).to(device)
            optimizer.zero_grad()
            out, mean, log_var = model(x)
            distortion = (
                F.binary_cross_entropy(out, x, reduction="sum") if case.bce else F.mse_loss(out, x, reduction="sum")
            )
            loss = distortion - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
            loss.backward()
            total += loss.item()
            optimizer.step()

    return run


def training_step(case: Case, device: torch.device, *settings: str) -> tuple[TrainingStep, IndexStream]:
    overrides = [*case.overrides, f"batch_size={case.batch_size}", f"device={device}", *settings]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = check(compose("train", overrides))
    with patch.dict(os.environ, VAEX_TRUST="bench"):  # a config may name only trusted functions, and COLORS names one
        experiment = build(config)
    experiment.model.train()
    step = TrainingStep(experiment, experiment.dataset.train.to(device), config.trainer.clip_norm)
    if config.trainer.compile == "true":
        compile_step(step)
    return step, IndexStream(len(experiment.dataset.train), config.batch_size, config.seed, device)


def ours(case: Case, device: torch.device, *settings: str, captured: bool = False) -> Run:
    """vaex's step, with its sums read every 50 steps, as in a run."""
    step, stream = training_step(case, device, *settings)
    take = CapturedStep(step, (case.batch_size,)) if captured else step
    return numbered(lambda number: take(stream.batch(number)), [step])


def together(case: Case, device: torch.device, runs: int, *settings: str, captured: bool = False) -> Run:
    """One step of vaex for `runs` runs, which differ in their seeds (see vaex.training.stacked)."""
    parts = [training_step(case, device, f"seed={seed}", *settings) for seed in range(runs)]
    steps, streams = [step for step, _ in parts], [stream for _, stream in parts]
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(runs)]
    stacked = StackedStep(steps, generators, case.batch_size)
    if "trainer.compile=true" in settings:
        compile_stacked(stacked)
    take = CapturedStep(stacked, (runs, case.batch_size), generators) if captured else stacked
    return numbered(lambda number: take(torch.stack([stream.batch(number) for stream in streams])), steps)


def numbered(take: Callable[[int], None], steps: Sequence[TrainingStep]) -> Run:
    """Call `take` with the number of each step, and read the sums of `steps` after every 50 of them."""
    numbers = itertools.count(1)

    def run(count: int) -> None:
        for number in itertools.islice(numbers, count):
            take(number - 1)
            if number % 50 == 0:
                for step in steps:
                    step.sums.take()

    return run


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


class Recorder(TorchDispatchMode):
    """Keeps every matrix product, convolution and attention of what runs under it, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS or "scaled_dot_product" in name:
            detached_args = torch.utils._pytree.tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, args)
            self.calls.append((func, detached_args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def products(case: Case, device: torch.device, *settings: str) -> Run:
    """The matrix products and convolutions of one of vaex's steps, and nothing else; on a GPU as one CUDA graph."""
    step, stream = training_step(case, device, *settings)
    with Recorder() as recorder:
        step(stream.batch(0))

    @torch.no_grad()
    def once() -> None:
        for function, arguments, keywords in recorder.calls:
            function(*arguments, **keywords)

    take = once
    if device.type == "cuda":
        graph, side_stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        with torch.cuda.stream(side_stream):
            once()  # outside of the graph, so that the libraries choose their algorithms
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side_stream):
            once()
        take = graph.replay

    def run(steps: int) -> None:
        for _ in range(steps):
            take()

    return run


def contenders(case: Case, device: torch.device) -> dict[str, Callable[[Case], Run]]:
    def vaex(*settings: str, captured: bool = False) -> Callable[[Case], Run]:
        return lambda case: ours(case, device, *settings, captured=captured)

    chosen: dict[str, Callable[[Case], Run]] = {
        TUTORIAL: lambda case: tutorial(case, device),
        IN_MEMORY: lambda case: tutorial(case, device, in_memory=True),
        "products alone, float32": lambda case: products(case, device),
        "products alone, bf16": lambda case: products(case, device, "precision=bf16"),
        "float32": vaex(),
        "float32, compiled": vaex("trainer.compile=true"),
        "bf16": vaex("precision=bf16"),
        "bf16, compiled": vaex("precision=bf16", "trainer.compile=true"),
    }
    if device.type == "cuda":
        chosen |= {
            "float32, captured": vaex(captured=True),
            "float32, compiled, captured": vaex("trainer.compile=true", captured=True),
            "bf16, captured": vaex("precision=bf16", captured=True),
            "bf16, compiled, captured": vaex("precision=bf16", "trainer.compile=true", captured=True),
        }
    if COLORS[0] not in case.overrides:
        del chosen[IN_MEMORY]
    return chosen


# Timing. Each contender has a process of its own, and they run one at a time.


def serve(make: Callable[[Case], Run], case: Case, device: torch.device) -> None:
    """Read a number of steps a line, answer with the seconds that they took; at the end with the peak memory in MB."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as in `vaex train`, for every contender
    run = make(case)
    run(6)  # compiles, captures, allocates
    for line in sys.stdin:
        synchronize(device)
        started = time.perf_counter()
        run(int(line))
        synchronize(device)
        print(time.perf_counter() - started, flush=True)
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated(device) / 1e6)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Worker:
    def __init__(self, case: str, contender: str, options: list[str]) -> None:
        command = [sys.executable, __file__, "--cases", case, "--serve", contender, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, steps: int) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def peak_memory(self) -> float:
        """MB; ends the process. On a GPU what PyTorch allocated there, otherwise all that the process had."""
        return float(self.process.communicate()[0])


def measure(
    case: str, device: torch.device, rounds: int, seconds: float, options: list[str]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Images a second of each contender in each round, and its peak memory."""
    workers, steps = {}, {}
    for name in tqdm(contenders(CASES[case], device), desc="warm-up", leave=False, disable=None):
        workers[name] = Worker(case, name, options)
        steps[name] = max(2, round(seconds * 4 / workers[name].seconds(4)))
    rates: dict[str, list[float]] = {name: [] for name in workers}
    order = list(workers)
    for n in tqdm(range(rounds), desc="rounds", leave=False, disable=None):
        random.Random(n).shuffle(order)  # none always follows one that heats the processor or empties its caches
        for name in order:
            rates[name].append(CASES[case].batch_size * steps[name] / workers[name].seconds(steps[name]))
    return rates, {name: worker.peak_memory() for name, worker in workers.items()}


def table(case: Case, rates: dict[str, list[float]], memory: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    for name, values in rates.items():
        own_limit = "products alone, bf16" if "bf16" in name else "products alone, float32"

        def ratio(other: str, values: list[float] = values) -> float:
            return statistics.median(a / b for a, b in zip(values, rates[other], strict=True))

        rate = statistics.median(values)
        rows.append(
            {
                "mode": name,
                "images_per_second": rate,
                "ms_per_step": 1e3 * case.batch_size / rate,
                "against_tutorial": ratio(TUTORIAL),
                "against_products": ratio(own_limit),
                "peak_mb": memory[name],
            }
        )
    return rows


def markdown(case: Case, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"**{case.what}, batch {case.batch_size}**",
        "",
        "| | images/s | ms a step | × tutorial loop | × its products alone | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['mode']} | {row['images_per_second']:,.0f} | {row['ms_per_step']:.3g} | "
            f"{row['against_tutorial']:.2f} | {row['against_products']:.2f} | {row['peak_mb']:,.0f} |"
        )
    return "\n".join(lines)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        models = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{name}; PyTorch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each contender in each round")
    parser.add_argument("--threads", type=int, help="of the CPU; default: as PyTorch chooses")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.serve:
        if arguments.serve not in (TUTORIAL, IN_MEMORY):
            keep_freed_memory()  # as `vaex train` does
        case = CASES[arguments.cases[0]]
        serve(contenders(case, device)[arguments.serve], case, device)
        return
    record: dict[str, Any] = {"machine": machine(device), "rounds": arguments.rounds, "cases": {}}
    print(record["machine"])
    options = ["--device", arguments.device] + (["--threads", str(arguments.threads)] if arguments.threads else [])
    for name in arguments.cases:
        rates, memory = measure(name, device, arguments.rounds, arguments.seconds, options)
        rows = table(CASES[name], rates, memory)
        record["cases"][name] = {"rows": rows, "rates": rates}
        print("\n" + markdown(CASES[name], rows), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
