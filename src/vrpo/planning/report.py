"""What `vrpo estimate` found, and how it is shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vrpo.diagnostics.cost import GPUS, KINDS
from vrpo.store import check_writable

PROCESS = 0.56e9  # bytes of an interpreter with torch and transformers, or of a CUDA context, beside the tensors
KERNELS = 0.1e9  # of the kernels oneDNN compiles per shape in bf16 on a CPU, soon; 0.2 when 1,024 are kept (step_cost)


@dataclass
class EstimateArguments:
    """What to estimate."""

    device: str | None = field(
        default=None,
        metadata={
            "help": f"A GPU of the table ({', '.join(GPUS)}), whose times are floors from data sheets; or cpu, this "
            "machine's, on which every operation is timed. None: the GPU that is here, if the table has it; else cpu."
        },
    )
    sample_pairs: int = field(default=64, metadata={"help": "How many training pairs show the lengths."})
    memory_gb: float | None = field(default=None, metadata={"help": "Memory to fit into. None: the device's."})
    estimate_file: str | None = field(default=None, metadata={"help": "Also write the estimate to this JSON file."})

    def __post_init__(self) -> None:
        if self.sample_pairs < 1:
            raise ValueError(f"sample_pairs must be at least 1, not {self.sample_pairs}")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"memory_gb must be above 0, not {self.memory_gb}")
        if self.estimate_file is not None:
            check_writable(Path(self.estimate_file), "estimate_file")


@dataclass(frozen=True)
class StepCost:
    """Bytes by component and seconds of an optimizer step by pass and kind of operation, on one device."""

    device: str
    memory: float
    floor: bool  # the seconds are those of a data sheet
    passes: str
    held: dict[str, float]
    activations: float
    process: float
    highest_in: str
    seconds: dict[str, dict[str, float]]
    calls: dict[str, float]
    pairs_per_step: int
    real_tokens: float
    longest: int
    layers: int
    trained: int  # parameters
    root: float  # bytes of embedding and head
    shards: bool  # whether FSDP takes it

    @property
    def peak(self) -> float:
        return sum(self.held.values()) + self.activations + self.process

    @property
    def step(self) -> float:
        return sum(sum(kinds.values()) for kinds in self.seconds.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.memory

    def sharded(self, devices: int) -> float:
        """Bytes on each of some devices under FSDP2: all that stays sharded, two layers and the root gathered, and the
        gradient whole in float32, since it is reduced once a step (`sync_each_batch` would spare it)."""
        stays = sum(self.held.values())
        gathered = 2 * (self.held["weights"] - self.root) / self.layers + self.root + 4 * self.trained
        return stays / devices + gathered + self.activations + self.process

    @property
    def devices(self) -> int | None:
        """The fewest devices, a power of two, over which it fits if it is sharded."""
        fits = (2**power for power in range(1, 11) if self.sharded(2**power) <= self.memory)
        return next(fits, None) if self.shards else None


def show(found: StepCost, console: Console) -> None:
    """The estimate as two tables and a verdict."""
    memory = Table(title=f"peak memory, {found.device}")
    memory.add_column("component")
    memory.add_column("GB", justify="right")
    for name, size in found.held.items():
        if size:
            memory.add_row(name, _gb(size))
    memory.add_row(f"activations, head, buffers (highest in: {found.highest_in})", _gb(found.activations))
    memory.add_row("the process itself", _gb(found.process))
    memory.add_row("in all", _gb(found.peak), style="bold")
    console.print(memory)
    seconds = Table(title="seconds of an optimizer step" + (", at least" if found.floor else ""))
    for name in ("pass", "calls", *KINDS, "in all"):
        seconds.add_column(name, justify="left" if name == "pass" else "right")
    for name, kinds in found.seconds.items():
        count = f"{found.calls[name]:.1f}" if name in found.calls else ""
        seconds.add_row(name, count, *(_figure(kinds[kind]) for kind in KINDS), _figure(sum(kinds.values())))
    seconds.add_row("in all", "", *[""] * len(KINDS), _figure(found.step), style="bold")
    console.print(seconds)
    console.print(
        f"{found.pairs_per_step} pairs a step, {_figure(found.step / found.pairs_per_step)} s a pair; gradients in "
        f"{found.passes} pass{'es' * (found.passes == 'two')}; {100 * found.real_tokens:.0f} % of the computed tokens "
        f"are no padding; the longest sampled row has {found.longest} tokens, and memory is for rows no longer."
    )
    if not found.floor:
        console.print(
            "Memory is that of tensors: with the C library's defaults a process may keep 1.8 times as much, of what "
            "torch has freed (benchmarks/plan)."
        )
    verdict = "It fits" if found.fits else "It does NOT fit"
    console.print(f"{verdict}: {_gb(found.peak)} of {_gb(found.memory)} GB.")


def show_advice(found: StepCost, advice: Sequence[tuple[str, StepCost]], console: Console) -> None:
    """What each switch leads to, and where the step fits."""
    table = Table(title="switches, each on top of those above it")
    for name in ("switch", "peak, GB", "seconds of a step", "fits", "fits sharded (FSDP2)"):
        table.add_column(name, justify="left" if name == "switch" else "right")
    for text, cost in [("as given", found), *advice]:
        many = f"over {cost.devices}, {_gb(cost.sharded(cost.devices))} GB on each" if cost.devices else "no"
        table.add_row(text, _gb(cost.peak), _figure(cost.step), "yes" if cost.fits else "no", "" if cost.fits else many)
    console.print(table)
    if advice and advice[-1][1].fits:
        console.print(f"On one device, set the switches down to {advice[-1][0]}.")
    else:
        console.print("No switch makes it fit on one device.")
    if found.devices:
        console.print(f"As given, it fits sharded over {found.devices}: recipes/accelerate/fsdp2.yaml.")


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _figure(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"
