"""The learning-rate schedule, keyed to the share of the budget that is spent."""


def learning_rate_factor(
    progress: float, step: int, *, warmup_steps: int, flat: float = 0.4, floor: float = 0.0
) -> float:
    """Return the factor for the peak rates: linear warm-up, flat, linear decay to `floor`.

    progress: share of the budget (time or steps) that is spent, 0 to 1; step counts from 0.
    The decay begins at `flat` and ends with the budget.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    left = max(0.0, 1.0 - progress)
    return warm * (floor + (1.0 - floor) * min(1.0, left / (1.0 - flat)))
