"""A run in several processes is the run of one: the same weights and numbers up to rounding, and one folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_NETWORKS, Ran, composed, fork, results
from safetensors.torch import load_file
from test_step import KINDS, distance, names

from vaex import cli
from vaex.build import build
from vaex.errors import UserError
from vaex.evaluation.bound import Numbers, evaluate
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.split import Share, Totals
from vaex.experiment import Experiment
from vaex.objectives import Batch
from vaex.train import build_in_all, check_divisible
from vaex.training.checkpoint import Checkpoints
from vaex.training.distributed import Processes
from vaex.training.step import TrainingStep

Here = Callable[..., Path]

# Clipped, since the gradient of the whole batch has another norm than that of a part; with noise of each kind.
NOISY = ["device=cpu", "trainer.clip_norm=20", "corruption=masking", "dataset.dequantize=uniform"]
COMMON = ["steps=40", "trainer.log_every=5", "figures.kinds=[samples]", "figures.images=4", *NOISY]
NETWORKS = {name: [f"architecture={name}", *sizes] for name, sizes in SMALL_NETWORKS.items()}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def torchrun(monkeypatch: pytest.MonkeyPatch, rank: int, port: int) -> None:
    """Set the environment of one of torchrun's two processes."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")


class Launched:
    """The real command under torchrun, in two processes."""

    def __init__(self, cwd: Path, *arguments: str, script: str = "") -> None:
        if script:
            (cwd / "script.py").write_text(script + "\nfrom vaex.cli import main\nmain()\n")
        self.process = subprocess.Popen(
            [*TORCHRUN, *(["script.py"] if script else ["-m", "vaex"]), "train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"},
        )

    def worker(self, rank: int) -> int:
        """Its process number."""
        launcher = self.process.pid
        for child in map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()):
            if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
                return child
        raise AssertionError(f"no process of rank {rank}")

    def ended(self) -> Ran:
        out, error = self.process.communicate(timeout=300)  # on a loaded machine; a hang would last 30 minutes
        return Ran(self.process.returncode, out, error)


def alone(ran: Ran) -> str:
    """The only line that vaex prints beside the report of torchrun; there is no traceback through vaex."""
    assert ran.code != 0, ran.out
    lines = [line for line in ran.error.splitlines() if line.startswith("vaex:")]
    assert len(lines) == 1 and f'File "{Path(cli.__file__).parent}' not in ran.error, ran.error
    return lines[0]


def flat(numbers: dict[str, Any]) -> dict[str, float]:
    """A list's items by their places."""
    lists = {
        f"{name}[{n}]": v for name, value in numbers.items() if isinstance(value, list) for n, v in enumerate(value)
    }
    return {name: value for name, value in numbers.items() if not isinstance(value, list)} | lists


def same_within_rounding(one: Path, other: Path) -> None:
    """Weights, metrics and results. Means over two parts are rounded otherwise than over the whole.

    Gradients then differ by some 1e-7 of what they are, and Adam makes more of it where they are next to nothing: at
    most 4e-5 in a weight, and 3e-6 of them all, were measured. A step is 1e-3 long: one that is left out, or a noise
    that is drawn otherwise, makes the weights differ by 1e-2 of them all.
    """
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    for weights in (ours, theirs):  # the bias of attention's keys has no effect: its gradient is all rounding
        for name in [name for name in weights if name.endswith("in_proj_bias")]:
            del weights[name]
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=0, atol=2e-4), name
    assert distance(ours, theirs) < 3e-5 * distance(theirs, {name: 0 * tensor for name, tensor in theirs.items()})
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    assert len(lines[0]) > 5
    for mine, its in zip(*lines, strict=True):
        assert flat(mine) == pytest.approx(flat(its), rel=1e-4, abs=1e-6)
    tested = [{k: v for k, v in results(run).items() if k.startswith(("test/", "beta/"))} for run in (one, other)]
    texts = [{k: tests.pop(k) for k in list(tests) if isinstance(tests[k], str)} for tests in tested]
    assert texts[0] == texts[1]
    assert flat(tested[0]) == pytest.approx(flat(tested[1]), rel=1e-4, abs=1e-6)
    figures = [sorted(path.relative_to(run) for path in (run / "figures").rglob("*.*")) for run in (one, other)]
    assert figures[0] == figures[1]


def test_two_processes_are_one(here: Here, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks of this one, in the environment that torchrun gives its processes."""
    arguments = [*tiny, *COMMON]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def train(rank: int) -> None:
        torchrun(monkeypatch, rank, port)
        here(*arguments, folder="two")

    outputs = [tmp_path / f"{rank}.log" for rank in range(2)]
    children = [fork(partial(train, rank), output) for rank, output in enumerate(outputs)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    first, second = (output.read_text() for output in outputs)
    assert codes == [0, 0], first + second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.log", "1.log", "two"]
    assert "steps of 32 on 2 processes, each on cpu" in first and first.count("TensorBoard") == 1
    assert "TensorBoard" not in second
    assert "ranks: 2" in (tmp_path / "two" / "config.yaml").read_text()
    same_within_rounding(tmp_path / "two", here(*arguments, folder="one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        NETWORKS["conv"],
        [*NETWORKS["resnet"], "optimizer=adamw"],
        [*NETWORKS["vit"], "objective=iwae", "conditional=true"],
        [*NETWORKS["mlp"], "objective=ae", "optimizer.fused=false"],
        [*NETWORKS["mlp"], "dataset.resident=false", "objective.warmup=20"],
        [*NETWORKS["conv"], "trainer.compile=true", "steps=30"],
    ],
    ids=names,
)
def test_two_processes_of_torchrun_are_one(kind: list[str], here: Here, small: list[str], tmp_path: Path) -> None:
    ran = Launched(tmp_path, *small, *COMMON, *kind, "hydra.run.dir=two").ended()
    assert ran.code == 0, ran.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]
    assert "steps of 32 on 2 processes, each on cpu" in ran.out and ran.out.count("TensorBoard") == 1
    assert "ranks: 2" in (tmp_path / "two" / "config.yaml").read_text()
    same_within_rounding(tmp_path / "two", here(*small, *COMMON, *kind, folder="one"))


LONG = ["epochs=6", "trainer.log_every=5", "figures.kinds=[samples]", "figures.images=4", "figures.every=1", *NOISY]
SLOWLY = """
import time
from vaex.training.step import TrainingStep
take_step = TrainingStep.__call__
def slowly(self, index):
    take_step(self, index)
    time.sleep(0.05 * (int(self.step) > 40))
TrainingStep.__call__ = slowly
"""


def stopped(cwd: Path, number: int, rank: int | None, *arguments: str) -> str:
    """Send a signal to a run, or to one of its processes, after its first checkpoint. Returns the line of vaex's."""
    launched = Launched(cwd, *arguments, "hydra.run.dir=parts", script=SLOWLY)
    while not list((cwd / "parts" / "checkpoints").glob("*.pt")):
        assert launched.process.poll() is None, launched.ended().error
        time.sleep(0.01)
    os.kill(launched.process.pid if rank is None else launched.worker(rank), number)
    ran = launched.ended()
    assert not (cwd / "parts" / "results.json").exists(), "the run ended before the signal came"
    return "" if (number, rank) == (signal.SIGKILL, 0) else alone(ran)


@pytest.mark.slow
def test_a_run_whose_process_was_killed_continues_in_a_single_one(here: Here, tiny: list[str], tmp_path: Path) -> None:
    whole = here(*tiny, *LONG, folder="whole")
    said = stopped(tmp_path, signal.SIGKILL, 1, *tiny, *LONG)
    assert "another process of this run has ended" in said and "vaex train resume=parts continues" in said
    here("resume=parts", folder=None)
    same_within_rounding(tmp_path / "parts", whole)


@pytest.mark.slow
def test_a_run_that_torchrun_was_asked_to_stop_saves_itself_and_continues(
    here: Here, tiny: list[str], tmp_path: Path
) -> None:
    whole = here(*tiny, *LONG, folder="whole")
    said = stopped(tmp_path, signal.SIGTERM, None, *tiny, *LONG)
    assert "interrupted: stopped at step" in said
    parts = tmp_path / "parts"
    step = Checkpoints(parts / "checkpoints").steps()[-1]
    assert json.loads((parts / "status.json").read_text())["reason"].startswith(f"stopped at step {step} of")
    ran = Launched(tmp_path, "resume=parts").ended()
    assert ran.code == 0 and f"continuing from step {step} of" in ran.out, ran.error
    same_within_rounding(parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, rank", [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGUSR1, 0)]
)
def test_a_run_continues_after_a_signal_to_any_process(
    number: int, rank: int, here: Here, tiny: list[str], tmp_path: Path
) -> None:
    whole = here(*tiny, *LONG, folder="whole")
    stopped(tmp_path, number, rank, *tiny, *LONG)
    assert Launched(tmp_path, "resume=parts").ended().code == 0
    same_within_rounding(tmp_path / "parts", whole)


@pytest.mark.slow
def test_a_run_of_a_single_process_continues_in_two(
    here: Here, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = here(*tiny, *LONG, "trainer.weights=best", folder="whole")
    with monkeypatch.context() as patched:
        original, calls = TrainingStep.__call__, iter(range(100))
        patched.setattr(
            TrainingStep,
            "__call__",
            lambda step, index: original(step, index) or (next(calls) == 45 and os.kill(os.getpid(), signal.SIGTERM)),
        )
        with pytest.raises(SystemExit):
            here(*tiny, *LONG, "trainer.weights=best", folder="parts")
    ran = Launched(tmp_path, "resume=parts").ended()
    assert ran.code == 0 and "continuing from step 46 of" in ran.out, ran.error
    same_within_rounding(tmp_path / "parts", whole)


RAISES = """
import os
from vaex.errors import UserError
from vaex.training.session import Session
from vaex.training.step import TrainingStep
"""
FAULTS = {
    "only rank 1 has it": (
        "def step(self, *_): raise UserError('no more of this')\n"
        "if os.environ['RANK'] == '1': TrainingStep.__call__ = step",
        "process 1: no more of this",
    ),
    "a full disk": (
        "import errno\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'x')\n"
        "import vaex.training.checkpoint\nvaex.training.checkpoint.replace_file = full",
        "step-32.pt: can't be written (No space left on device)",
    ),
    "all processes have it": (
        "def slowly(self, *arguments, save=Session.save, **options):\n"
        "    import time; time.sleep(1 if self.writer.writes else 0)\n"
        "    return save(self, *arguments, **options)\nSession.save = slowly",
        "training diverged at step 2",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_ends_all_processes_with_one_line(fault: str, tiny: list[str], tmp_path: Path) -> None:
    code, message = FAULTS[fault]
    diverges = ["optimizer.lr=1e20", "schedule=constant"] if "diverged" in message else []
    ran = Launched(tmp_path, *tiny, *LONG, *diverges, "hydra.run.dir=run", script=RAISES + code).ended()
    assert message in alone(ran)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, rank=1, port=1)


@pytest.mark.parametrize("sweep", ["-m", "--multirun", "hydra.mode=MULTIRUN", "hydra/launcher=joblib"])
def test_a_sweep_is_not_for_torchrun(
    sweep: str, second_of_two: None, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(cli.run, "train", [sweep, "beta=1"]) == "", "the first process says it"
    monkeypatch.setenv("RANK", "0")
    assert f"{sweep}: torchrun starts one run" in said(cli.run, "train", [sweep, "beta=1"])
    assert not list(tmp_path.iterdir())


def test_a_process_beside_the_first_makes_no_folder_and_says_nothing_of_a_bad_value(
    second_of_two: None, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(cli.run, "train", ["beta=-1", "hydra.run.dir=run", "resume=elsewhere"]) == ""
    assert not list(tmp_path.iterdir())


def test_what_is_no_mean_over_the_batch_is_refused(tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"batch_size=32: is divided among 3 processes; .* such as 30$"):
        build_in_all(composed(*tiny), Processes(0, 3))
    for override, message in [
        ("objective.free_bits=0.1", "objective.free_bits=0.1: .*; set it to 0"),
        ("objective=beta_tc", "objective: TotalCorrelation: the loss of a batch is not the mean"),
        ("objective=dip", "objective: DIP: "),
        ("objective=mmd", "objective: MMD: "),
        ("objective=capacity", "objective: Capacity: "),
        ("likelihood/scale=optimal", "use likelihood/scale=shared"),
        ("likelihood/scale=optimal_per_image", "use likelihood/scale=shared"),
    ]:
        with pytest.raises(UserError, match=message):
            config = composed(*tiny, override)
            check_divisible(build(config), config)


def test_parts_of_a_batch_are_the_batch() -> None:
    x, labels = torch.rand(12, 1, 2, 2), torch.arange(12)
    batch = Batch(x, x + 1, labels)
    for parts in (1, 2, 3, 12):
        each = [batch.part(number, parts) for number in range(parts)]
        assert torch.equal(torch.cat([part.x for part in each]), x)
        assert torch.equal(torch.cat([part.input for part in each]), x + 1)
        assert torch.equal(torch.cat([part.labels for part in each]), labels)
        noise = []
        for part in each:
            torch.manual_seed(0)
            noise.append(part.noise(3, 5))
        torch.manual_seed(0)
        assert torch.equal(torch.cat(noise, dim=1), torch.randn(3, 12, 5))


def test_a_mean_lies_in_memory_as_the_gradient_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of convolutions do: the fused update goes through weight and gradient in the order of memory."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat, group: flat.mul_(2).add_(2))
    convolution = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    given = (convolution, None, torch.rand(3).expand(2, 3), torch.rand(()))
    means, metrics = Processes(0, 2).mean(given, {"loss": torch.tensor(5.0)})
    for gradient, mean in zip(given, means, strict=True):
        assert (mean is None) == (gradient is None)
        if gradient is not None and mean is not None:
            assert torch.equal(mean, gradient + 1)
    assert means[0].stride() == convolution.stride() and metrics == {"loss": torch.tensor(6.0)}


MORE = [
    ["likelihood=student_t", "likelihood/scale=per_image"],
    ["likelihood=truncated_normal", "dataset.dequantize=uniform", "likelihood/scale=per_dimension"],
    ["likelihood=categorical", "objective.samples=3"],
    ["likelihood=cross_entropy", "corruption=gaussian", "objective.warmup=10"],
]


def seeded_gradients(experiment: Experiment, processes: Processes) -> tuple[list[torch.Tensor], dict[str, float]]:
    experiment.model.train()
    step = TrainingStep(experiment, experiment.dataset.train, processes=processes)
    step.step += 5
    torch.manual_seed(7)
    gradients, metrics = step.local_gradients(torch.arange(32) * 3)
    return [gradient for gradient in gradients if gradient is not None], {k: v.item() for k, v in metrics.items()}


LINEAR = [kind for kind in KINDS if "likelihood/scale=optimal_per_image" not in kind]


@pytest.mark.parametrize("kind", [*LINEAR, *MORE], ids=names)
def test_the_mean_over_the_parts_is_the_whole(kind: list[str], tiny: list[str]) -> None:
    """Of gradients and of what is logged, for whatever isn't refused."""
    mlp = not any(override.startswith("architecture=") for override in kind)
    # A fitted start has almost no gradient, to which its rounding errors would be large.
    config = composed(*(tiny if mlp else tiny[:-2]), *kind, "device=cpu", "start=zero")
    experiment = build(config)
    check_divisible(experiment, config)
    whole, metrics = seeded_gradients(experiment, Processes())
    parts, logged = zip(*(seeded_gradients(experiment, Processes(rank, 4)) for rank in range(4)), strict=True)
    mean = [torch.stack(gradients).mean(0) for gradients in zip(*parts, strict=True)]
    squares = [sum(g.double().square().sum() for g in gradients) for gradients in (whole, mean)]
    apart = sum((a - b).double().square().sum() for a, b in zip(whole, mean, strict=True))
    assert float(apart / squares[0]) ** 0.5 < (2e-2 if "precision=bf16" in kind else 1e-5)
    for name, value in metrics.items():
        each = [own[name] for own in logged]
        assert sum(each) / 4 == pytest.approx(value, rel=1e-2 if "precision=bf16" in kind else 1e-5), name


def test_an_evaluation_that_is_shared_gives_the_same_numbers(tiny: list[str]) -> None:
    """Each image is taken once, and every process looks for a signal as often."""
    e = build(composed(*tiny, "corruption=salt_and_pepper", "dataset.binarize=dynamic"))
    images = e.dataset.train[:170]
    polls = 0

    def poll() -> None:
        nonlocal polls
        polls += 1

    def numbers(rank: int, size: int, add_up: Callable[[Totals], Totals]) -> Numbers:
        evaluation = Evaluation(e.model, e.objective, e.dataset, e.corruption, images_per_batch=20, poll=poll)
        return evaluate(evaluation, images, share=Share(rank, size, add_up))  # nine batches

    whole: list[Totals] = []
    expected = numbers(0, 1, lambda own: whole.append(own) or own)
    for size in (2, 4, 11):
        polls, totals = 0, []

        def keep(own: Totals, totals: list[Totals] = totals) -> Totals:
            totals.append(own)
            return whole[0]

        for rank in range(size):
            assert numbers(rank, size, keep) == expected
            assert polls == (rank + 1) * -(-9 // size)
        for name, total in whole[0].items():
            assert torch.allclose(sum(own[name] for own in totals if own), total, rtol=1e-9, atol=0), name


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each process")
@pytest.mark.parametrize("capture", ["true", "false"])
def test_two_gpus_are_one(capture: str, here: Here, tiny: list[str], tmp_path: Path) -> None:
    common = [*tiny, *COMMON, f"trainer.capture={capture}", "device=cuda"]
    ran = Launched(tmp_path, *common, "hydra.run.dir=two").ended()
    assert ran.code == 0, ran.error
    tested = [results(run)["test/elbo"] for run in (tmp_path / "two", here(*common, folder="one"))]
    assert tested[0] == pytest.approx(tested[1], rel=1e-2)  # products in TF32, and sums in no fixed order
