"""Where the time goes: is input the bottleneck?"""

from dataclasses import dataclass

from minikeye.inputs.service.request import ServiceConfig

BOTTLENECK = 0.02  # share of the time that the trainer waits from which on input is called the bottleneck: our choice


@dataclass
class Statistics:
    """What a service counts since it was opened. Seconds are those of the clock."""

    elapsed: float = 0.0  # since the service was opened
    decoding: float = 0.0  # that workers had a job, summed over workers
    waiting: float = 0.0  # that takers of clips waited, summed over takers
    frames: int = 0  # taken
    frame_bytes: int = 0  # of those frames
    decodes: int = 0  # requests that a worker answered with a clip
    hits: int = 0  # requests answered from the cache
    shared: int = 0  # requests that waited for the decoding of an equal one
    merged: int = 0  # requests that were sent to a worker together with others on the same file
    failed: int = 0  # requests that ended with an error
    deaths: int = 0  # workers that died or were killed
    most_bytes: int = 0  # in flight at once, of the streams that have ended

    @property
    def wait_share(self) -> float:
        """Share of the time that one taker waited."""
        return self.waiting / self.elapsed if self.elapsed else 0.0

    def line(self, config: ServiceConfig) -> str:
        """The report of a service in one line."""
        busy = self.decoding / (self.elapsed * config.workers) if self.elapsed else 0.0
        verdict = "input is the bottleneck" if self.wait_share >= BOTTLENECK else "input keeps up"
        return (
            f"{self.frames:,} frames ({self.frame_bytes / 1e6:,.1f} MB) in {self.elapsed:.1f} s: {verdict}; "
            f"trainer waited {self.waiting:.1f} s ({self.wait_share:.1%}); decoding {self.decoding:.1f} s, "
            f"workers {busy:.0%} busy ({config.workers} x {config.threads} threads on {config.cores} cores); "
            f"requests: {self.decodes} decoded, {self.hits} from the cache, {self.shared} shared, "
            f"{self.failed} failed; {self.deaths} workers replaced; at most {self.most_bytes / 1e6:,.1f} MB in flight"
        )
