"""Runs chat templates from elsewhere in a process of its own, which may be killed: this file is its program, too.

A template is a program in jinja's language. The sandbox keeps it from reading and writing; it does not keep it from
loops without end or strings of gigabytes, some of them while the template is still being compiled. Only another process
can be stopped then. It starts with the first template (a fifth of a second) and ends with this one.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

SECONDS = 5  # of the processor, for one template and conversation
MEMORY = 2**29  # bytes the process may hold
LONGEST = 10**7  # characters of a result: texts of a conversation are no part of it


def render(source: str, options: Mapping[str, Any] | None) -> str:
    """What the template makes of the options; for None the names of what it asks for, in order, a blank between.

    Raises ValueError, saying what went wrong.
    """
    answer = _worker.ask({"source": source, "options": options, "seconds": SECONDS})
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["text"]


class Worker:
    """The process, started when it is needed and again after it was killed. Threads take turns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._owner = 0  # a forked process has one of its own
        self._turn = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        with self._turn:
            if self._process is None or self._owner != os.getpid():
                self._start()
            assert self._process is not None
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                if line := self._process.stdout.readline():
                    return json.loads(line)
            except BrokenPipeError:
                pass
            except BaseException:  # Ctrl-C: what comes now would be taken for the next answer
                self.end(kill=True)
                raise
            slow = self.end() == -signal.SIGXCPU
        return {"error": f"it took more than {SECONDS} s" if slow else "its process was ended: too little memory?"}

    def end(self, kill: bool = False) -> int | None:
        """Let the process go; its exit code."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return None
        if kill:
            process.kill()
        process.stdin.close()
        process.stdout.close()
        return process.wait()

    def _start(self) -> None:
        path = os.pathsep.join(part for part in sys.path if part)  # jinja is where this process has it
        command = [sys.executable, "-P", "-X", "utf8", __file__]  # -P: no file beside this one is taken for a library
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        # A session of its own: Ctrl-C in a terminal ends the asking, not the process in the middle of an answer.
        self._process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True, **pipes
        )
        self._owner = os.getpid()


_worker = Worker()
atexit.register(_worker.end)


# ------------------------------------------------------------------------------------- what runs in the other process


def main() -> None:
    """Answer requests, a line each, until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        request, used = json.loads(line), resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + request["seconds"]
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(json.dumps(answered(request["source"], request["options"])), flush=True)


def answered(source: str, options: dict[str, Any] | None) -> dict[str, str]:
    """{"text": ...} or {"error": ...}."""
    try:
        template = compiled(source)
        text = " ".join(asked_for(source)) if options is None else template.render(options)
        return {"text": text} if len(text) <= LONGEST else {"error": f"it writes {len(text)} characters"}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY // 2**20} MiB"}
    except RecursionError:
        return {"error": "it is nested too deep"}
    except Exception as error:  # a template can run into anything that an expression can
        return {"error": f"{type(error).__name__}: {error!s:.300}"}


@lru_cache(maxsize=4)
def compiled(source: str):
    """As transformers compiles chat templates, but that lists and dictionaries cannot be changed."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # here alone: the asking process needs no jinja

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = as_json
    return environment.from_string(source)


def asked_for(source: str) -> list[str]:
    """The variables that a template, which compiles, takes from outside."""
    from jinja2 import meta

    return sorted(meta.find_undeclared_variables(compiled(source).environment.parse(source)))


def as_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """As transformers has it: jinja's own filter writes for web pages, and sorts the keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: str) -> None:
    """What a template calls where it does not know what to do."""
    from jinja2 import TemplateError

    raise TemplateError(message)


if __name__ == "__main__":
    main()
