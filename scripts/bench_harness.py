"""Times the answers to lm-eval's requests, here and by lm-eval's own `hf` adapter on torch.

    python -m scripts.bench_harness --model=DIR --lm_eval=hellaswag_local,gsm8k_local --limit=20 \\
        --lm_eval_tasks=configs/lm_eval --lm_eval_data=DATA

Both load the same directory in float32 and get the same requests in the same batches, in turn,
`repeats` times after a first turn that compiles and is not timed. The script prints one JSON line.
For each task it has the number of requests, seconds and processor seconds as [median, least,
largest] of each adapter, and the ratio of hf's median to ours (above 1: faster here). It also has
the largest difference of log-likelihoods, or the share of equal texts. With --float64 the model is
loaded a third time, by hf in float64, and `largest_error` has each adapter's largest difference
from it: the sum over a text's tokens is rounded in both. The script needs the extra eval, torch and
accelerate, and a CPU on which nothing else runs.
"""

from collections.abc import Callable
import json
import pathlib
import statistics
import time
from typing import Any

from absl import flags

from nspo_jax import sharding
from scripts import launch

MODEL = flags.DEFINE_string("model", None, "The model's directory.", required=True)
TASKS = flags.DEFINE_list("lm_eval", None, "Tasks of lm-eval.", required=True)
FOLDER = flags.DEFINE_string("lm_eval_tasks", None, "Directory of further task files in YAML.")
DATA = flags.DEFINE_string("lm_eval_data", None, "Directory that such files read their data from.")
LIMIT = flags.DEFINE_integer("limit", 20, "Documents of each task.", lower_bound=1)
SHOTS = flags.DEFINE_integer("num_fewshot", 0, "Examples before each document.", lower_bound=0)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed turns of each adapter.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 8, "Rows at a time of both.", lower_bound=1)
NEW_TOKENS = flags.DEFINE_integer("max_gen_toks", 64, "Tokens of an answer.", lower_bound=1)
FLOAT64 = flags.DEFINE_bool("float64", False, "Also compare log-likelihoods with hf in float64.")


def main() -> None:
    """Times both adapters in turn, and prints the line."""
    from lm_eval.models import huggingface

    from nspo_jax.evaluation import harness, lm_eval_tasks

    folders = [pathlib.Path(flag.value) if flag.value else None for flag in (FOLDER, DATA)]
    loaded = lm_eval_tasks.load(TASKS.value, *folders)
    adapters: dict[str, Any] = {
        "hf": huggingface.HFLM(
            pretrained=MODEL.value, device="cpu", dtype="float32", batch_size=BATCH.value
        ),
        "ours": harness.open_model(
            MODEL.value, sharding.make_mesh(), batch=BATCH.value, progress=False
        ),
    }
    exact = None
    if FLOAT64.value:
        exact = huggingface.HFLM(
            pretrained=MODEL.value, device="cpu", dtype="float64", batch_size=BATCH.value
        )
    report = {}
    for name, task in loaded.each.items():
        requests = build_requests(task)
        kind = requests[0].request_type
        calls = {label: getattr(adapter, kind) for label, adapter in adapters.items()}
        answers = {label: call(requests, disable_tqdm=True) for label, call in calls.items()}
        times: dict[str, list[tuple[float, float]]] = {label: [] for label in calls}
        for _ in range(REPEATS.value):
            for label, call in calls.items():
                times[label].append(timed(call, requests))
        report[name] = {"kind": kind, "requests": len(requests)}
        for place, unit in enumerate(("seconds", "processor_seconds")):
            columns = {label: [pair[place] for pair in pairs] for label, pairs in times.items()}
            middle = {label: statistics.median(column) for label, column in columns.items()}
            report[name][unit] = {
                label: [round(value, 3) for value in (middle[label], min(column), max(column))]
                for label, column in columns.items()
            } | {"ratio": round(middle["hf"] / middle["ours"], 3)}
        report[name] |= compare(kind, answers["hf"], answers["ours"])
        if exact is not None and kind != "generate_until":
            wanted = getattr(exact, kind)(requests, disable_tqdm=True)
            report[name]["largest_error"] = {
                label: compare(kind, wanted, found)["largest_difference"]
                for label, found in answers.items()
            }
    print(json.dumps({"model": MODEL.value, "batch_size": BATCH.value, "tasks": report}))


def build_requests(task: Any) -> list[Any]:
    """Builds the requests of a task's first documents."""
    task.set_config(key="num_fewshot", value=SHOTS.value)
    task.set_fewshot_seed(seed=1234)
    if task.get_config("output_type") == "generate_until":
        options = {"max_gen_toks": NEW_TOKENS.value}
        task.set_config(key="generation_kwargs", value=options, update=True)
    task.build_all_requests(limit=LIMIT.value)
    return task.instances


def timed(call: Callable[..., Any], requests: list[Any]) -> tuple[float, float]:
    """Returns the seconds of a call, and those of all processors of this process."""
    wall, processor = time.perf_counter(), time.process_time()
    call(requests, disable_tqdm=True)
    return time.perf_counter() - wall, time.process_time() - processor


def compare(kind: str, expected: list[Any], found: list[Any]) -> dict[str, float]:
    """Compares two adapters' answers: the share of equal texts, or the largest difference."""
    pairs = list(zip(expected, found, strict=True))
    if kind == "generate_until":
        return {"equal_texts": sum(one == other for one, other in pairs) / len(pairs)}
    values = [
        (one[0], other[0]) if kind == "loglikelihood" else (one, other) for one, other in pairs
    ]
    return {"largest_difference": max(abs(one - other) for one, other in values)}


if __name__ == "__main__":
    launch.run(main, interrupted="stopped")
