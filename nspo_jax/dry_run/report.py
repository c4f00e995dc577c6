"""A plan as tables for people, with the chips that it fits and the first change for the others."""

from nspo_jax import chips, settings
from nspo_jax.dry_run import hlo
from nspo_jax.dry_run import plan as plan_lib
from nspo_jax.reports import tables

_WORK = ("rollout", "update")


def format_plan(plan: plan_lib.Plan, run: settings.Run, chip: str | None) -> str:
    """Formats a plan as tables: memory of a device, work of a step, and the chips that it fits.

    Args:
      plan: the run's plan.
      run: the run's settings.
      chip: the name in `chips.CHIPS` of the chip to compare with; None: all of them.
    """
    rows = [["memory of a device", "GiB"]]
    rows += [[name, _gib(size)] for name, size in plan.resident.items() if size]
    for name, size in plan.phases.items():
        rows.append([f"{name}, beside them", _gib(size)])
        if name == "rollout":
            rows.append(["  of it keys and values", _gib(plan.cache)])
    rows.append(["calibration, before them", _gib(plan.calibration)])
    rows.append(["peak", _gib(plan.peak)])
    work = [["work of a step", "rollout", "update"]]
    work.append(
        ["PFLOP, all devices, by formula", *(f"{plan.flops.get(n, 0) / 1e15:.3g}" for n in _WORK)]
    )
    for kind in hlo.COLLECTIVES:
        sizes = [plan.collectives.get(name, {}).get(kind, 0) for name in _WORK]
        if any(sizes):
            work.append([f"{kind}, GiB a device", *(_gib(size) for size in sizes)])
    lines = [
        f"{plan.parameters / 1e9:.2f}B parameters, {plan.trained / 1e9:.2f}B trained; "
        f"{plan.devices} devices; {plan.tokens:,} tokens a step",
        *(f"assumed: {words}" for words in plan.assumptions),
        "",
        tables.format_table(rows),
        "",
        tables.format_table(work),
        "",
    ]
    for name in [chip] if chip else chips.CHIPS:
        found = chips.find_chip(name)
        room = f"{plan_lib.USABLE * found.memory:.0f} of {found.memory:g} GiB"
        if plan.fits(found):
            lines.append(f"fits {name} ({room})")
        else:
            lines.append(f"does not fit {name} ({room}): {first_change(plan, run, found)}")
    return "\n".join(lines)


def first_change(plan: plan_lib.Plan, run: settings.Run, chip: chips.Chip) -> str:
    """Names the first field to change so that a plan may fit a chip."""
    room = plan_lib.USABLE * chip.memory * plan_lib.GIB
    held = sum(plan.resident.values())
    if plan.calibration > room:
        return "lower calibration.batch_size"
    if held > 0.8 * room:
        frozen = plan.resident["frozen weights"]
        if frozen > held / 8 and run.model.frozen_dtype == "float32":
            return "set model.frozen_dtype=bfloat16 (for a checkpoint that is stored so)"
        return "more devices on mesh.fsdp, or fewer projection.targets"
    worst = max(plan.phases, key=lambda phase: plan.phases[phase])
    fields = {
        "rollout": "rl.rollout_batches", "update": "rl.microbatches",
        "evaluation": "evaluation.batches",
    }  # fmt: skip
    value = settings.get(run, fields[worst])
    return f"raise {fields[worst]} above {value}, or more devices on mesh.fsdp"


def _gib(size: float) -> str:
    return f"{size / plan_lib.GIB:.2f}"
