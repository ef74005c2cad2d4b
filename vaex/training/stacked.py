"""One training step for several runs that differ only in values, such as beta or the seed.

Their parameters and buffers become views of stacked tensors, [runs, ...], so that one forward and one backward pass
under torch.func.vmap serve all runs, with about as many kernels as for one run. Everything else (validation, figures,
checkpoints) sees ordinary models. A run takes the same steps as it would alone, apart from rounding: its noise is drawn
from a generator of its own, and its optimizer makes its update.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from vaex.data.noise import Draw, given_noise, recorded_noise
from vaex.errors import UserError, first_line
from vaex.training.distributed import Metrics
from vaex.training.memory import ran_out
from vaex.training.step import TrainingStep, exceeds_usual, metrics_of
from vaex.training.update import Update, norm

# Relative difference between the loss, or the norm of the gradient, of a run in the stack and alone. Rounding makes up
# to 1e-6 of it in float32, and 1e-2 of the norm in bfloat16 or TF32; another value of an option makes much more.
TOLERANCE = 0.05
# Attributes of modules in which runs may differ: text for people, the optimizer's learning rate, and the mode.
OTHER_SETTINGS = ("formula", "lr", "training")


class _Loss(nn.Module):
    """The loss and the metrics of a batch, as a function of nothing but tensors."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__()
        self.model, self.objective, self.step = step.model, step.objective, step

    def forward(self, pixels: Tensor, labels: Tensor, count: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Metrics]:
        with given_noise(noise):
            terms = self.objective(self.model, self.step.batch(pixels, labels), count)
        with torch.no_grad():
            return terms.loss, metrics_of(terms)


class StackedStep:
    """The training steps of R runs as one.

    Args:
        steps: of the runs, with the same images, batch size and architecture.
        generators: the source of each run's noise.
        batch_size: number of images in a batch.

    Raises:
        UserError: the runs differ in more than values, or a part of their step cannot be vectorized over runs.

    Attributes:
        active: 1 for each run whose weights a step changes, 0 for one that has ended; float32 [R].
        forward_backward: everything but noise and update. `vaex.training.capture.compile_stacked` replaces it.
    """

    def __init__(self, steps: Sequence[TrainingStep], generators: Sequence[torch.Generator], batch_size: int) -> None:
        first, runs = steps[0], len(steps)
        self.steps, self.generators, self.images = steps, generators, first.images
        device = first.step.device
        self.active = torch.ones(runs, device=device)
        losses = [_Loss(step) for step in steps]
        self.loss = losses[0]
        _check_alike(losses)
        self.parameters = _stack([dict(loss.named_parameters()) for loss in losses])
        buffers = [dict(loss.named_buffers()) for loss in losses]
        self.buffers = _stack(buffers)
        for row, (loss, step) in enumerate(zip(losses, steps, strict=True)):
            for name, parameter in loss.named_parameters():
                parameter.data = self.parameters[name].data[row]
            for name in buffers[row]:
                owner, _, leaf = name.rpartition(".")
                loss.get_submodule(owner)._buffers[leaf] = self.buffers[name][row]
            step.update = Update(step.optimizer)
        self.counts = torch.stack([step.step for step in steps])
        self.table = torch.stack([step.sums.table for step in steps])  # [R, steps, metrics]
        self.rows = torch.cat([step.sums.row for step in steps])
        for row, step in enumerate(steps):
            step.step = self.counts[row]
            step.sums.table, step.sums.row = self.table[row], self.rows[row : row + 1]
        groups = [group for step in steps for group in step.optimizer.param_groups]
        self.rates = torch.stack([group["lr"] for group in groups])
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        names = [{id(p): name for name, p in loss.named_parameters()} for loss in losses]
        # The names of a run's parameters in the order of its optimizer, which has more groups in some runs.
        self.orders = [[n[id(p)] for p in s.update.parameters] for n, s in zip(names, steps, strict=True)]
        clips = [step.clip_norm for step in steps]
        self.clips = None if None in clips else torch.tensor(clips, device=device)
        limits = [step.skip_norm for step in steps]
        self.limits = None if None in limits else torch.tensor(limits, device=device)
        for key, values in (("clip_norm", clips), ("skip_norm", limits)):
            if len({value is None for value in values}) > 1:
                raise UserError(f"trainer.{key}: is null for some of the runs, and a number for others")
        self.usual_norms = torch.stack([step.usual_norm for step in steps])
        for step, usual_norm in zip(steps, self.usual_norms, strict=True):
            step.usual_norm = usual_norm
        self.draws = self._recorded_draws(batch_size)
        self.noise = [torch.zeros(runs, *draw.shape, device=device) for draw in self.draws]
        self.forward_backward = self._forward_backward

    def __call__(self, index: Tensor) -> None:
        """Train each run on its rows of `index`, int64 [R, B] on the device."""
        self._draw_noise()
        gradients, skipped = self.forward_backward(index)
        for row, (step, order) in enumerate(zip(self.steps, self.orders, strict=True)):
            rows = {name: gradient[row] for name, gradient in gradients.items()}
            step.update([rows.get(name) for name in order], skipped[row])
            if step.average:
                step.average.update(step.step)

    def set_learning_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rates of all parameter groups of all runs, in their order."""
        self.rates.copy_(torch.tensor(rates), non_blocking=True)

    def leave(self, step: TrainingStep) -> None:
        """From now on no step changes this run's weights, optimizer or sums, but it does change a running mean."""
        self.active[self.steps.index(step)] = 0

    def _draw_noise(self) -> None:
        for draw, values in zip(self.draws, self.noise, strict=True):
            for value, generator in zip(values, self.generators, strict=True):
                draw.fill(value, generator)

    def _forward_backward(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The clipped gradients [R, ...] by name, and 1 for each run whose update must be skipped, else 0, [R]."""
        gradients, norms, metrics = self._gradients(index)
        with torch.no_grad():
            if self.clips is not None:
                factor = (self.clips / norms).clamp(max=1)
                gradients = {name: g * factor.view(-1, *[1] * (g.ndim - 1)) for name, g in gradients.items()}
            self.counts += self.active.long()
            metrics = metrics | {"grad_norm": norms}
            if self.limits is None:
                return gradients, self._record(metrics)
            too_large = exceeds_usual(norms, self.usual_norms, self.counts, self.limits)
            return gradients, torch.maximum(self._record(metrics | {"over_norm": too_large}), too_large)

    def _gradients(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor, Metrics]:
        """The gradients [R, ...] by name, without those that are None; their norms [R]; and the metrics, [R] each."""
        pixels = self.images.pixels.index_select(0, index.flatten())
        pixels = pixels.view(*index.shape, *pixels.shape[1:])
        labels = self.images.labels.index_select(0, index.flatten()).view(index.shape)
        arguments = (pixels, labels, self.counts, self.noise)
        # The fused attention of a CPU cannot be vectorized.
        with nullcontext() if index.is_cuda else sdpa_kernel(SDPBackend.MATH):
            losses, metrics = vmap(partial(functional_call, self.loss))({**self.parameters, **self.buffers}, arguments)
        of_each = torch.autograd.grad(losses.sum(), list(self.parameters.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(self.parameters, of_each, strict=True) if g is not None}
        with torch.no_grad():
            squares = [gradient.flatten(1).square().sum(1) for gradient in gradients.values()]
            return gradients, torch.stack(squares).sum(0).sqrt(), metrics

    def _record(self, metrics: Metrics) -> Tensor:
        """Record the metrics [R] of a step, as RunningSums.add does for one run."""
        for step in self.steps:
            step.sums.names = tuple(metrics)
        values = torch.stack((*metrics.values(), self.active), dim=1)  # [R, metrics + 1]
        padded = nn.functional.pad(values, (0, self.table.shape[2] - values.shape[1]))
        self.table.index_put_((torch.arange(len(values), device=values.device), self.rows), padded)
        self.rows += self.active.long()
        not_finite = ((values * 0).sum(1) != 0).float()
        return torch.maximum(not_finite, 1 - self.active)

    def _recorded_draws(self, batch_size: int) -> list[Draw]:
        """The draws of noise that a step makes, in their order."""
        index = torch.zeros(batch_size, dtype=torch.int64, device=self.counts.device)
        devices = [index.device] if index.is_cuda else []
        with torch.random.fork_rng(devices), self._buffers_kept(), recorded_noise() as draws:
            step = self.steps[0]
            batch = step.batch(self.images.pixels.index_select(0, index), self.images.labels.index_select(0, index))
            step.objective(step.model, batch, step.step)
        return draws

    def check(self, index: Tensor) -> None:
        """Compare the losses and gradients of a first step with those of each run alone.

        Args:
            index: rows of each run, [R, B]. Nothing is trained, and the runs' generators stay as they are.

        Raises:
            UserError: they differ, so that the runs cannot share a step; or a part of it cannot be vectorized.
        """
        states = [generator.get_state() for generator in self.generators]
        self._draw_noise()
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        try:
            with self._buffers_kept():
                _, norms, metrics = self._gradients(index)
        except Exception as error:  # also of a user's own classes
            if ran_out(error):
                raise UserError("out of memory with so many runs in one step; set sweep.together=false") from error
            raise UserError(f"a part of the step cannot be vectorized over runs ({first_line(error)})") from error
        together = torch.stack([metrics["loss"], norms], dim=1).tolist()
        for row, (step, (loss, total)) in enumerate(zip(self.steps, together, strict=True)):
            different = f"run {row + 1} of {len(self.steps)} differs from the first in more than values"
            try:
                with self._buffers_kept(), given_noise([values[row] for values in self.noise]):
                    gradients, alone = step.local_gradients(index[row])
            except Exception as error:
                raise UserError(f"{different} ({first_line(error)})") from error
            expected = float(alone["loss"]), float(norm([g for g in gradients if g is not None]))
            for name, value, of_run in zip(("loss", "gradient norm"), (loss, total), expected, strict=True):
                difference = abs(value - of_run)  # NaN where a step is skipped, alone or together
                if difference > TOLERANCE * max(1, abs(of_run)) or math.isnan(value) != math.isnan(of_run):
                    raise UserError(f"{different} (its {name} is {of_run:.6g} alone, and {value:.6g} together)")

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """After the body, the buffers have the values from before, such as a running mean of an optimal scale."""
        before = {name: buffer.clone() for name, buffer in self.buffers.items()}
        try:
            yield
        finally:
            for name, buffer in self.buffers.items():
                buffer.copy_(before[name])


def _stack(tensors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of each name stacked in a new dimension; each part has the strides that the tensor had."""
    stacks = {}
    for name, one in tensors[0].items():
        stack = torch.empty_strided(
            (len(tensors), *one.shape), (one.numel(), *one.stride()), dtype=one.dtype, device=one.device
        )
        for row, of_run in zip(stack, tensors, strict=True):
            row.copy_(of_run[name].detach())
        stacks[name] = stack.requires_grad_(one.requires_grad)
    return stacks


def _check_alike(losses: Sequence[_Loss]) -> None:
    """Raises UserError unless all runs have the same modules, settings, parameters and buffers, apart from values."""
    first, *others = (
        {name: (tuple(t.shape), t.dtype) for name, t in [*loss.named_parameters(), *loss.named_buffers()]}
        for loss in losses
    )
    if any(other != first for other in others):
        raise UserError("the runs have parameters of different names, shapes or types")
    first_settings, *other_settings = (dict(_settings(loss)) for loss in losses)
    for other in other_settings:
        if other.keys() != first_settings.keys():
            raise UserError("the runs have different modules")
        for name, value in first_settings.items():
            if other[name] != value:
                raise UserError(f"{name} is {value} in one run and {other[name]} in another, and not a tensor")


def _settings(loss: _Loss) -> Iterator[tuple[str, object]]:
    """The settings of each module and of the corruption that are not tensors, so that all runs use the first one's."""
    for path, module in [*loss.named_modules(), ("corruption", loss.step.corruption)]:
        yield f"{path}, class", type(module)
        for name, value in getattr(module, "__dict__", {}).items():
            if isinstance(value, int | float | str | None) and not name.startswith("_") and name not in OTHER_SETTINGS:
                yield f"{path.partition('.')[2] or path}.{name}", value
