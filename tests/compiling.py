"""XLA's flags in the tests: they compile much and compute little, so programs are made cheaply.

They go without LLVM's optimizations, and through XLA's older emitters of fusions, one pass to LLVM
where the new ones go through MLIR: of four files of tests 52 seconds of compiling, and not 132.
"""

CHEAPLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int) -> str:
    """Returns the flags of a process with so many virtual devices."""
    return f"--xla_force_host_platform_device_count={devices} {CHEAPLY}"
