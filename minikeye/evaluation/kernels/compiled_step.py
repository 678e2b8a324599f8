"""The launches of a fused decode step, noted down without a GPU, and what the compiler makes of them.

A step of a model without data (torch's meta device) runs the very code that launches kernels on a card; only the
launches themselves are noted instead. So what is compiled here is what would run there: tiles, constants, dtypes, and
which numbers Triton takes for multiples of 16.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from minikeye import KeyeConfig, KeyeVL
from minikeye.evaluation.kernels.compiled import Compiled, compile_source
from minikeye.inference.fused_step import FusedStep
from minikeye.model.cache import Cache

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its arguments by name, what it asks of the compiler, and its grid."""

    kernel: JITFunction
    arguments: dict
    options: dict
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def compile(self, sm: int) -> Compiled:
        """As a launch on a card of capability `sm` would: Triton makes constants of None and of 1."""
        types, constants, aligned = {}, {}, {}
        for n, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                types[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, Tensor):
                types[parameter.name], aligned[(n,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
            elif isinstance(value, float):
                types[parameter.name] = "fp32"
            else:
                types[parameter.name] = "i32"
                if value % 16 == 0:
                    aligned[(n,)] = [["tt.divisibility", 16]]
        return compile_source(ASTSource(self.kernel, types, constexprs=constants, attrs=aligned), self.options, sm)


@contextmanager
def noted(sm: int) -> Iterator[list[Launch]]:
    """Inside the block launches are noted in the list, as on a card of that capability, and nothing runs."""
    launches: list[Launch] = []

    def note(kernel: JITFunction, *values: object, grid: tuple, warmup: bool, **named: object) -> None:
        names = [parameter.name for parameter in kernel.params]
        arguments = dict(zip(names, values, strict=False)) | {n: named.pop(n) for n in names if n in named}
        launches.append(Launch(kernel, arguments, named, grid))

    with patch.object(JITFunction, "run", note), patch("torch.cuda.get_device_capability", lambda _: divmod(sm, 10)):
        yield launches


@torch.no_grad()
def step_launches(
    sm: int, batch: int, attention: str, length: int = 131_072, padded: bool = False, config: KeyeConfig | None = None
) -> list[Launch]:
    """The launches of one step of one layer and the head at the released widths, in order; `length` tokens are held."""
    config = config or KeyeConfig.keye_vl_2_30b_a3b()
    config = replace(config, text=replace(config.text, layers=1))
    with torch.device("meta"):
        model = KeyeVL(config).to(torch.bfloat16)
        cache = empty_room(config, batch, length, padded)
        step = FusedStep(model, cache, attention=attention)
        with noted(sm) as launches:
            step.run()
    return launches


def empty_room(config: KeyeConfig, batch: int, length: int, padded: bool) -> Cache:
    """A cache on the meta device that holds `length` tokens a row."""
    text, cache = config.text, Cache.empty(1, length + 64)
    k, index_k = (batch, length, text.kv_heads, text.head_width), (batch, length, config.indexer.width)
    cache.layers[0].append(*(torch.empty(shape, dtype=torch.bfloat16) for shape in (k, k, index_k)))
    cache.next_position = torch.empty(batch, dtype=torch.long)
    cache.start = torch.empty(batch, dtype=torch.long) if padded else None
    return cache


def distinct(launches: list[Launch]) -> dict[str, Launch]:
    """Name -> launch, for the kernels that run twice with other numbers a number behind the name."""
    found: dict[str, Launch] = {}
    for launch in launches:
        n = sum(name.split(",")[0] == launch.name for name in found)
        found[f"{launch.name}, {n + 1}" if n else launch.name] = launch
    return found


def grid_of(launch: Launch) -> int:
    """Programs of a launch."""
    return int(torch.tensor(launch.grid).prod())


def table(compiled: Callable[[Launch, int], Compiled] = Launch.compile) -> None:
    """Prints registers, spills, shared memory and programs of every launch."""
    for sm in (90, 80):
        for batch, attention in ((1, "sparse"), (1, "dense"), (16, "sparse"), (16, "dense")):
            for name, launch in distinct(step_launches(sm, batch, attention)).items():
                made = compiled(launch, sm)
                print(
                    f"sm_{sm} b {batch:2} {attention:6} {name:28} {made.registers:4} registers, "
                    f"{made.spilled} spilled, {made.shared:7} bytes shared, {grid_of(launch):6} programs",
                    flush=True,
                )


if __name__ == "__main__":
    print(triton.__version__)
    table()
