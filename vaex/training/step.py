"""One training step: rows of uint8 images in, new weights out. The host never reads a value from the device."""

from typing import Any

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.experiment import Experiment
from vaex.objectives import Batch, Terms
from vaex.training.average import WeightAverage
from vaex.training.distributed import Gradients, Metrics, Processes
from vaex.training.sums import RunningSums
from vaex.training.update import Update, norm

NORM_WEIGHT = 0.01  # of a step in the running mean of the gradient's norm


class TrainingStep:
    """Gather, convert and corrupt images, forward, backward, clip, record the metrics, and update.

    If the gradient or any logged value is not finite, the step leaves the weights and the optimizer state unchanged:
    the fused optimizers skip the update when `found_inf` is 1, so the host never has to check.

    Args:
        experiment: the model, objective and optimizer, with `lr` a tensor on the device in every parameter group.
        images: the training split, on the device.
        clip_norm: largest norm of the gradient; None for no clipping.
        skip_norm: multiple of the running mean of the gradient's norm above which a step changes no weight; None for no
            limit.
        ema: decay per step of an average of the weights; None for no average.
        processes: the processes that share each batch; None for this one alone.
        unread_steps: the most steps between two calls of `sums.take` or `state_dict`.

    Attributes:
        step: number of steps taken so far, [] on the device.
        sums: of the metrics since the host last read them.
        usual_norm: running mean of the gradient's norm, [] on the device; see `exceeds_usual`.
        average: of the weights, or None.
        forward_backward: everything before the update. `vaex.training.capture.compile_step` replaces it.
        local_gradients: the part of `forward_backward` before processes exchange anything.
    """

    def __init__(
        self,
        experiment: Experiment,
        images: Images,
        clip_norm: float | None = None,
        processes: Processes | None = None,
        unread_steps: int = 1000,
        *,
        skip_norm: float | None = None,
        ema: float | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer = experiment.model, experiment.objective, experiment.optimizer
        self.images, self.to_float, self.corruption = images, experiment.dataset.to_float, experiment.corruption
        self.clip_norm, self.skip_norm, self.processes = clip_norm, skip_norm, processes or Processes()
        self.update = Update(self.optimizer)
        self.step = torch.zeros((), dtype=torch.int64, device=images.pixels.device)
        self.sums = RunningSums(images.pixels.device, unread_steps)
        self.usual_norm = torch.zeros((), device=images.pixels.device)
        self.average = None if ema is None else WeightAverage(self.model, ema)
        self.forward_backward, self.local_gradients = self._forward_backward, self._local_gradients

    def __call__(self, index: Tensor) -> None:
        """Train on the rows of `index`, int64 [B] on the device."""
        gradients, skipped = self.forward_backward(index)
        self.update(gradients, skipped)
        if self.average:
            self.average.update(self.step)

    def batch(self, pixels: Tensor, labels: Tensor) -> Batch:
        """The batch of images uint8 [B, C, H, W], converted and corrupted, and labels [B]."""
        x = self.to_float(pixels)
        return Batch(x=x, input=self.corruption(x), labels=labels, population=len(self.images))

    def _local_gradients(self, index: Tensor) -> tuple[Gradients, Metrics]:
        """Gradients of the loss and logged metrics of this process's part of the batch."""
        # All processes draw the noise of the whole batch, so that it does not depend on the number of processes.
        batch = self.batch(self.images.pixels.index_select(0, index), self.images.labels.index_select(0, index))
        if self.processes.size > 1:
            batch = batch.part(self.processes.rank, self.processes.size)
        terms = self.objective(self.model, batch, self.step)
        gradients = torch.autograd.grad(terms.loss, self.update.parameters, allow_unused=True)
        with torch.no_grad():
            return gradients, metrics_of(terms)

    def _forward_backward(self, index: Tensor) -> tuple[Gradients, Tensor]:
        """The clipped gradient of the whole batch, and a [] tensor that is 1 if the update must be skipped, else 0."""
        gradients, metrics = self.processes.mean(*self.local_gradients(index))
        with torch.no_grad():
            present = [gradient for gradient in gradients if gradient is not None]
            total_norm = norm(present)
            if self.clip_norm is not None:
                clipped = iter(torch._foreach_mul(present, (self.clip_norm / total_norm).clamp(max=1)))
                gradients = tuple(None if gradient is None else next(clipped) for gradient in gradients)
            self.step += 1
            metrics |= {"grad_norm": total_norm}
            if self.skip_norm is None:
                return gradients, self.sums.add(metrics)
            too_large = exceeds_usual(total_norm, self.usual_norm, self.step, self.skip_norm)
            return gradients, torch.maximum(self.sums.add(metrics | {"over_norm": too_large}), too_large)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, except the random state."""
        state = {
            "step": int(self.step),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums.state_dict(),
        }
        if objective := self.objective.state_dict():
            state["objective"] = objective
        if self.skip_norm is not None:
            state["usual_norm"] = self.usual_norm
        if self.average:
            state["average"] = self.average.values
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises RuntimeError or ValueError if the state belongs to another model, objective or optimizer."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state.get("objective", {}))
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].to(self.step.device)
        if "usual_norm" in state:
            self.usual_norm.copy_(state["usual_norm"])
        if self.average:  # a run that is resumed with trainer.ema begins its average with its latest weights
            self.average.load(state.get("average", dict(self.average.parameters)))
        self.step.fill_(state["step"])
        self.sums.load_state_dict(state["sums"], state["step"])


def exceeds_usual(norm: Tensor, usual: Tensor, steps: Tensor, factor: Tensor | float) -> Tensor:
    """Whether norms are more than `factor` times their running mean, as 1 or 0. All tensors are [] or [runs].

    Larger norms enter the mean clipped to this multiple: if norms stay large, the mean rises until steps are accepted
    again. In the first steps the mean is that of all norms, and none exceeds it.

    Args:
        usual: the running mean, which is updated in place.
        steps: number of steps with this one.
    """
    weight = (1 / steps).clamp(min=NORM_WEIGHT)
    early = steps * NORM_WEIGHT <= 1
    seen = torch.where(early, norm, torch.minimum(norm, factor * usual))
    exceeds = ~early & (norm > factor * usual)
    usual.copy_(torch.where(norm.isfinite(), usual + weight * (seen - usual), usual))
    return exceeds.float()


def metrics_of(terms: Terms) -> Metrics:
    """The logged metrics of a batch, the loss first: each a mean over its images, []."""
    distortion = terms.distortion.mean()
    metrics = {"loss": terms.loss.detach(), "distortion": distortion}
    if terms.rate is not None:
        rate = terms.rate.sum(1).mean()
        metrics |= {"rate": rate, "elbo": -distortion - rate}
        std = terms.posterior.std  # computed on access
        if std is not None:
            metrics["posterior_std"] = std.mean()
    if terms.beta is not None:
        metrics["beta"] = terms.beta
    scale = terms.distribution.scale  # computed on access
    if scale is not None:
        metrics["likelihood_scale"] = scale.mean()
    return metrics
