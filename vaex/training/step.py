"""One training step: rows of uint8 in, new weights out, and nothing read by the host."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.model import Autoencoder
from vaex.objectives import Batch, Objective, Terms


class TrainingStep:
    """Gather, convert, corrupt, forward, backward, clip, update, and add up what is logged.

    A step whose gradient isn't finite changes no weight and no optimizer state: the fused optimizers skip an update
    when `found_inf` is 1, without the host having to look. It is counted under `skipped`.

    Args:
        model, objective: on the device.
        images: the training split, on the device.
        to_float: uint8 batch -> float32 batch.
        corruption: float32 batch -> what the encoder sees of it.
        optimizer: with `lr` a tensor on the device in every group.
        clip_norm: largest norm of the gradient; inf for no clipping.
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
        clip_norm: float,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.images, self.to_float, self.corruption = images, to_float, corruption
        self.clip_norm = clip_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = images.pixels.device
        self.step = torch.zeros((), device=device)  # taken so far
        self.sums: dict[str, Tensor] = {}  # of the batch means, since the host last took them

    def __call__(self, index: Tensor) -> None:
        """Train on the rows of `index`, int64 [B] on the device."""
        x = self.to_float(self.images.pixels.index_select(0, index))
        batch = Batch(x=x, input=self.corruption(x), labels=self.images.labels.index_select(0, index))
        self.optimizer.zero_grad(set_to_none=True)
        terms: Terms = self.objective(self.model, batch, self.step)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        skipped = (~norm.isfinite()).float()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            self._add(_metrics(terms) | {"grad_norm": norm, "skipped": skipped})

    def _add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value.detach().clone()

    def take_sums(self) -> dict[str, float]:
        """The sums since the last call, read by the host in one transfer; then start anew."""
        if not self.sums:
            return {}
        values = torch.stack(list(self.sums.values())).tolist()
        taken = dict(zip(self.sums, values, strict=True))
        self.sums = {}
        return taken


def _metrics(terms: Terms) -> dict[str, Tensor]:
    distortion = terms.distortion.mean()
    metrics = {"loss": terms.loss, "distortion": distortion}
    if terms.rate is not None:
        rate = terms.rate.sum(1).mean()
        metrics |= {"rate": rate, "elbo": -distortion - rate, "posterior_std": terms.posterior.std.mean()}
    scale = getattr(terms.distribution, "scale", None)
    if scale is not None:
        metrics["likelihood_scale"] = scale.mean()
    return metrics
