"""How far a run is, by its budget of steps or of minutes."""

import time
from dataclasses import dataclass, field

from .folder import Launch


@dataclass
class Clock:
    """How far a run is: in steps where those are its budget, else in minutes of training."""

    launch: Launch
    steps: int  # 0 where minutes decide
    step: int = 0
    first: int = 0  # step that this process started at
    before_s: float = 0.0  # trained before this process
    start: float = field(default_factory=time.perf_counter)
    marked: float = 0.0  # progress when the last step began

    @property
    def elapsed_s(self) -> float:
        return self.before_s + time.perf_counter() - self.start

    @property
    def progress(self) -> float:
        if self.steps:
            return self.step / self.steps
        return self.elapsed_s / (60 * self.launch.minutes)

    def passed(self, every: int, times: int) -> bool:
        """Whether the last step ended on a multiple of `every`, or, where that is 0, crossed one of
        `times` even marks of the run."""
        if every:
            return self.step % every == 0
        return int(times * self.progress) > int(times * self.marked)


def total_steps(launch: Launch, images: int, batch: int) -> int:
    """Steps of the run; 0 when minutes decide."""
    return launch.steps or max(1, round(launch.epochs * images / batch)) * (launch.epochs > 0)
