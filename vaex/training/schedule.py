"""Learning-rate schedules: 0-based step -> factor on the learning rate. They are pure functions without a state."""

import math


class Schedule:
    """Base class of schedules: linear warm-up, then `after_warmup`.

    Args:
        steps: optimizer steps of the whole run.
        warmup: optimizer steps over which the learning rate grows linearly from 0.

    Raises:
        ValueError: the warm-up is negative, or not shorter than the run.
    """

    def __init__(self, *, steps: int, warmup: int) -> None:
        if not 0 <= warmup < steps:
            raise ValueError(
                f"schedule.warmup={warmup}: must be from 0 to {steps - 1}, less than the run's {steps} steps"
            )
        self.steps, self.warmup = steps, warmup

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return self.after_warmup((step - self.warmup) / (self.steps - self.warmup))

    def after_warmup(self, progress: float) -> float:
        """The factor after a fraction of the steps that follow the warm-up, in [0, 1)."""
        raise NotImplementedError


class Constant(Schedule):
    """Factor 1."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


class Tripling(Schedule):
    """Stages of 1, 3, 9, … parts of the run. The learning rate falls by an equal factor between stages, to a tenth.

    Burda et al. 2016, section 5, is `stages=8`: 3^i epochs at 10^(-i/7), 3,280 epochs in all.

    Args:
        stages: number of stages, at least 2.
    """

    def __init__(self, *, steps: int, warmup: int, stages: int) -> None:
        super().__init__(steps=steps, warmup=warmup)
        if stages < 2:
            raise ValueError(f"schedule.stages={stages}: must be >= 2")
        self.stages = stages

    def after_warmup(self, progress: float) -> float:
        parts = (3**self.stages - 1) // 2  # of all stages; the first i stages have (3^i - 1) / 2
        stage = sum(progress * parts >= (3**i - 1) // 2 for i in range(1, self.stages))
        return float(10 ** (-stage / (self.stages - 1)))


class Cosine(Schedule):
    """Half a cosine from 1 to `final`. Loshchilov & Hutter 2017, eq. 5, without restarts.

    Args:
        final: factor at the end of the run, from 0 to 1.
    """

    def __init__(self, *, steps: int, warmup: int, final: float) -> None:
        super().__init__(steps=steps, warmup=warmup)
        if not 0 <= final <= 1:
            raise ValueError(f"schedule.final={final}: must be from 0 to 1, a fraction of the learning rate")
        self.final = final

    def after_warmup(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
