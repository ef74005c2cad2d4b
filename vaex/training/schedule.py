"""Learning-rate schedules: 0-based step -> factor on the learning rate. Pure functions: there is nothing to save."""

import math


class Schedule:
    """Base of all schedules: linear warm-up, then `after_warmup`.

    Args:
        steps: optimizer steps of the whole run.
        warmup: steps of linear growth from 0.

    Raises:
        ValueError: a warm-up that is negative or no shorter than the run.
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
        """progress in [0, 1) -> factor."""
        raise NotImplementedError


class Constant(Schedule):
    def after_warmup(self, progress: float) -> float:
        return 1.0


class Tripling(Schedule):
    """Stages of 1, 3, 9, … parts; the learning rate falls by one factor between them, to a tenth in the last.

    Burda et al. 2016, section 5: eight stages of 3^i epochs at 10^(-i/7), 3,280 epochs in all.
    """

    def __init__(self, *, steps: int, warmup: int, stages: int) -> None:
        super().__init__(steps=steps, warmup=warmup)
        if stages < 2:
            raise ValueError(f"schedule.stages={stages}: must be >= 2")
        self.stages = stages

    def after_warmup(self, progress: float) -> float:
        parts = (3**self.stages - 1) // 2  # in all; the first i stages have (3^i - 1) / 2
        stage = sum(progress * parts >= (3**i - 1) // 2 for i in range(1, self.stages))
        return float(10 ** (-stage / (self.stages - 1)))


class Cosine(Schedule):
    """Loshchilov & Hutter 2017, eq. 5, without restarts."""

    def __init__(self, *, steps: int, warmup: int, final: float) -> None:
        super().__init__(steps=steps, warmup=warmup)
        if not 0 <= final <= 1:
            raise ValueError(f"schedule.final={final}: must be from 0 to 1, a fraction of the learning rate")
        self.final = final

    def after_warmup(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
