"""One training step: rows of uint8 in, new weights out, and nothing read by the host."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.model import Autoencoder
from vaex.objectives import Batch, Objective, Terms
from vaex.training.distributed import Gradients, Metrics, Ranks
from vaex.training.update import Update


class TrainingStep:
    """Gather, convert, corrupt, forward, backward, clip, update, and add up what is logged.

    A step in which the gradient or a number that is logged isn't finite changes no weight and no optimizer state: the
    fused optimizers skip an update when `found_inf` is 1, without the host having to look. It is counted under
    `skipped` and has no part in the sums.

    Args:
        model, objective: on the device.
        images: the training split, on the device.
        to_float: uint8 batch -> float32 batch.
        corruption: float32 batch -> what the encoder sees of it.
        optimizer: with `lr` a tensor on the device in every group.
        clip_norm: largest norm of the gradient; None for no clipping.
        compiled: put everything up to the update through torch.compile, or up to what several processes exchange.
            Noise is drawn as without.
        ranks: the processes that share each batch; None for this one alone.
    """

    def __init__(
        self,
        *,
        model: Autoencoder,
        objective: Objective,
        images: Images,
        to_float: Callable[[Tensor], Tensor],
        corruption: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        compiled: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.objective, self.update = model, objective, Update(optimizer)
        self.images, self.to_float, self.corruption = images, to_float, corruption
        self.clip_norm, self.ranks = clip_norm, ranks or Ranks()
        self.step = torch.zeros((), dtype=torch.int64, device=images.pixels.device)  # taken so far
        self.names: tuple[str, ...] = ()  # of what is logged
        self.totals = torch.zeros(16, device=images.pixels.device)  # of the batch means of these, since last taken
        self.peak = torch.full((), -torch.inf, device=images.pixels.device)  # highest loss of a step since last taken
        # The first skipped step since last taken, counted from 1, or 0; then in how many each of `names` wasn't finite.
        self.bad = torch.zeros(17, dtype=torch.int64, device=images.pixels.device)
        self._before_update, self._own = self._everything_but_the_update, self._own_gradients
        if compiled:
            # Older versions of PyTorch end the graph at autograd.grad, and go on with another.
            one_graph = hasattr(torch._dynamo.config, "trace_autograd_ops")
            if one_graph:
                torch._dynamo.config.trace_autograd_ops = True
            compiling = partial(torch.compile, fullgraph=one_graph, dynamic=False, options={"fallback_random": True})
            if self.ranks.size == 1:
                self._before_update = compiling(self._everything_but_the_update)
            else:
                self._own = compiling(self._own_gradients)

    def __call__(self, index: Tensor) -> None:
        """Train on the rows of `index`, int64 [B] on the device."""
        gradients, skipped = self._before_update(index)
        self.update(gradients, skipped)

    def _own_gradients(self, index: Tensor) -> tuple[Gradients, Metrics]:
        """Of this process's part of the batch: gradients of the loss, and what is logged.

        All noise is drawn for the whole batch, so that it doesn't depend on the number of parts.
        """
        x = self.to_float(self.images.pixels.index_select(0, index))
        batch = Batch(x=x, input=self.corruption(x), labels=self.images.labels.index_select(0, index))
        if self.ranks.size > 1:
            batch = batch.part(self.ranks.rank, self.ranks.size)
        terms: Terms = self.objective(self.model, batch, self.step)
        gradients = torch.autograd.grad(terms.loss, self.update.parameters, allow_unused=True)
        with torch.no_grad():
            return gradients, _metrics(terms)

    def _everything_but_the_update(self, index: Tensor) -> tuple[Gradients, Tensor]:
        """The gradient of the loss, clipped, None where the loss doesn't depend on a parameter; and 1 if not finite."""
        gradients, metrics = self.ranks.mean(*self._own(index))
        with torch.no_grad():
            squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
            norm = torch.stack(squares).sum().sqrt()
            if self.clip_norm is not None:
                factor = (self.clip_norm / norm).clamp(max=1)
                gradients = tuple(None if gradient is None else gradient * factor for gradient in gradients)
            metrics = metrics | {"grad_norm": norm}
            values = torch.stack(tuple(metrics.values()))
            self.names = (*metrics, "skipped")
            count = len(metrics)
            finite = values.isfinite()
            good = finite.all()
            skipped = (~good).float()
            self.step += 1
            self.totals[:count] += torch.where(good, values, 0)
            self.totals[count] += skipped
            self.peak.copy_(torch.where(good, torch.maximum(self.peak, values[0]), self.peak))
            self.bad[1 : count + 1] += ~finite
            self.bad[0].copy_(torch.where((self.bad[0] == 0) & ~good, self.step, self.bad[0]))
        return gradients, skipped

    def take_sums(self) -> dict[str, float]:
        """The sums over the steps since the last call that weren't skipped, and under `skipped` how many were.

        They are read by the host in one transfer; then they start anew.
        """
        taken = dict(zip(self.names, self.totals.tolist(), strict=False))
        self.totals.zero_()
        return taken

    def take_peak(self) -> float:
        """The highest loss of a single step since the last call."""
        peak = self.peak.item()
        self.peak.fill_(-torch.inf)
        return peak

    def take_bad(self) -> tuple[int, dict[str, int]]:
        """The first skipped step since the last call, counted from 1, and how often what wasn't finite."""
        first, *counts = self.bad.tolist()
        self.bad.zero_()
        return first, {name: count for name, count in zip(self.names, counts, strict=False) if count}


class CapturedStep:
    """A TrainingStep on a GPU, launched as one CUDA graph.

    The first steps are taken as they are, which warms up every library, and recording the graph runs nothing: weights,
    optimizer and random numbers are those of uncaptured steps all along.
    """

    WARMUP = 3

    def __init__(self, step: TrainingStep, batch_size: int) -> None:
        self.step = step
        device = step.images.pixels.device
        self.index = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.taken = 0

    def __call__(self, index: Tensor) -> None:
        """As TrainingStep's, always with as many rows."""
        self.index.copy_(index)
        if self.taken < self.WARMUP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(self.index)
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.taken == self.WARMUP:
                with torch.cuda.graph(self.graph, stream=self.stream):
                    self.step(self.index)
            self.graph.replay()
        self.taken += 1


def _metrics(terms: Terms) -> Metrics:
    """Each a mean over the images."""
    distortion = terms.distortion.mean()
    metrics = {"loss": terms.loss.detach(), "distortion": distortion}
    if terms.rate is not None:
        rate = terms.rate.sum(1).mean()
        metrics |= {"rate": rate, "elbo": -distortion - rate, "posterior_std": terms.posterior.std.mean()}
    scale = getattr(terms.distribution, "scale", None)
    if scale is not None:
        metrics["likelihood_scale"] = scale.mean()
    return metrics
