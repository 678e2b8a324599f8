"""Workers on other machines, as Ray actors (`pip install minikeye[ray]`).

>>> ray.init(address="auto")
>>> async with VideoService(ServiceConfig(cores=64, threads=1), worker=RayWorker) as service: ...

`cores` are those of the cluster that decode; Ray finds the place, one CPU a thread. Each actor runs the same `answer`
as a process here. Sources must be paths that all machines see. Frames come through Ray's object store, as read-only
arrays.
"""

from collections.abc import Callable

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from minikeye.inputs.service.child import limit_memory
from minikeye.inputs.service.process import START
from minikeye.inputs.service.request import OutOfMemory, ServiceConfig, TookTooLong, WorkerDied
from minikeye.inputs.service.worker import Answer, Job, answer


class Actor:
    """A process of Ray that answers jobs."""

    def __init__(self, work: Callable[[Job], list[Answer]], room: int):
        self._work = work
        limit_memory(room)

    def ready(self) -> None:
        """Comes back when the actor is there."""

    def answer(self, job: Job) -> list[Answer]:
        """A clip or an error for each request."""
        return self._work(job)


class RayWorker:
    """A worker (`minikeye.inputs.service.process.Worker`) somewhere in the cluster that `ray.init` has joined."""

    def __init__(self, config: ServiceConfig, work: Callable[[Job], list[Answer]] = answer):
        self._config, self._work, self._actor = config, work, None

    def start(self) -> None:
        """As `Worker.start`."""
        if self._actor is not None:
            return
        # No restarts by Ray: the service retries, and knows which request was to blame.
        options = {"num_cpus": self._config.threads, "max_restarts": 0, "max_task_retries": 0}
        self._actor = ray.remote(**options)(Actor).remote(self._work, self._config.worker_bytes)
        try:
            ray.get(self._actor.ready.remote(), timeout=START)
        except (RayActorError, GetTimeoutError) as error:
            self.kill()
            raise WorkerDied("", f"an actor does not start: {error}") from error

    def run(self, job: Job) -> list[Answer]:
        """As `Worker.run`."""
        source = job.requests[0].source
        try:
            answers = ray.get(self._actor.answer.remote(job), timeout=self._config.limit)
        except GetTimeoutError as error:
            self.kill()
            raise TookTooLong(
                source, f"no answer within {self._config.limit:g} s (limit), the actor was killed"
            ) from error
        except RayActorError as error:
            self._actor = None
            raise WorkerDied(source, f"the actor died: {error}") from error
        if any(isinstance(a, OutOfMemory) for a in answers):
            self.kill()
        return answers

    def kill(self) -> None:
        """As `Worker.kill`."""
        if (actor := self._actor) is not None:
            self._actor = None
            ray.kill(actor)

    def close(self) -> None:
        """Kill it; nothing is left to give back."""
        self.kill()
