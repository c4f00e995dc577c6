"""Evaluates a policy: by its task, or any Hugging Face directory by lm-eval's benchmarks.

    python -m scripts.evaluate --config=configs/tiny.py:base
    python -m scripts.evaluate --config=configs/tiny.py:nspo --policy=runs/tiny/nspo/policy
    python -m scripts.evaluate --model=PATH --lm_eval=arc_challenge,gsm8k --limit=100
    python -m scripts.evaluate --model=PATH --lm_eval=gsm8k_local,piqa_local \\
        --lm_eval_tasks=configs/lm_eval --lm_eval_data=DATA --output=runs/scores

With --config the scores are unsafe rate, over-refusal, capability and drift from the base model.
Without --policy the script evaluates the base model. --samples prints so many completions of every
set, for a look at the answers themselves.

With --model no config is needed: PATH is a base model, a policy, an export, or a delta. The names
are tasks, groups or tags of lm-eval (pip install -e '.[eval]'), which downloads their data; those
of configs/lm_eval read files of yours. --output keeps results.json. --against=DIR prints the
differences from another model's scores, document by document. docs/evaluation.md says more.
"""

import pathlib

from absl import flags

from nspo_jax import base_model, distributed, evaluation, models, settings, sharding
from nspo_jax.reports import figures, tables
from nspo_jax.rl import batches, checks
from scripts import launch

CONFIG = launch.define_config(required=False)
POLICY = flags.DEFINE_string("policy", None, "Hugging Face directory; default: the base model.")
SAMPLES = flags.DEFINE_integer("samples", 2, "Completions to print of each set.", lower_bound=0)
MODEL = flags.DEFINE_string("model", None, "Directory to evaluate by --lm_eval, without a config.")
TASKS = flags.DEFINE_list("lm_eval", None, "Tasks, groups or tags of lm-eval, joined by commas.")
FOLDER = flags.DEFINE_string("lm_eval_tasks", None, "Directory of further task files in YAML.")
DATA = flags.DEFINE_string("lm_eval_data", None, "Directory that such files read their data from.")
LIMIT = flags.DEFINE_integer("limit", None, "Documents of each task; default: all.", lower_bound=1)
SHOTS = flags.DEFINE_integer(
    "num_fewshot",
    None,
    "Examples before each document; default: the task's own number.",
    lower_bound=0,
)
TEMPLATE = flags.DEFINE_bool("apply_chat_template", False, "Ask in the model's chat template.")
OUTPUT = launch.define_output("output", "Directory for results.json; default: it is not kept.")
AGAINST = flags.DEFINE_string(
    "against",
    None,
    "Directory of another model's --output with --log_samples: prints paired differences from it.",
)
LOG_SAMPLES = flags.DEFINE_bool("log_samples", False, "Keep prompts and answers in --output.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Dtype of weights and activations, with --model."
)
BATCH = flags.DEFINE_integer(
    "batch_size", None, "Rows at a time, with --model; default: 8 for each shard of rows.",
    lower_bound=1,
)  # fmt: skip
FSDP = flags.DEFINE_integer("fsdp", 1, "Shards of weights and rows, with --model.", lower_bound=1)
TENSOR = flags.DEFINE_integer("tensor", 1, "Shards of kernels, with --model.", lower_bound=1)
launch.define_processes(dry_run=False)


def main() -> None:
    """Evaluates a model, and prints its scores."""
    if (MODEL.value is None) == (CONFIG.value is None):
        raise ValueError(
            "Expected one of --model and --config: --model=DIR --lm_eval=TASK,... for lm-eval's "
            "benchmarks, --config=FILE.py:ARM for the scores of a run's own task."
        )
    if MODEL.value is not None:
        by_lm_eval()
    else:
        by_task()


def by_task() -> None:
    """Scores a policy by the task of its config, and prints samples and scores."""
    only = (TASKS, FOLDER, DATA, LIMIT, SHOTS, OUTPUT, AGAINST)
    unread = [flag.name for flag in only if flag.value]
    if unread:
        raise ValueError(f"--{unread[0]} goes with --model=DIR, and --config is given instead.")
    if distributed.several():
        raise ValueError("With --config this command is for one process: give --processes=1.")
    run = settings.from_config(CONFIG.value)
    checks.check_config(run, is_run=False)
    base = base_model.open_base(run, sharding.mesh_from_config(run))
    params, name = base.params, "base"
    if POLICY.value:
        params = base_model.load_policy(base, POLICY.value)
        name = str(pathlib.Path(POLICY.value))
    evaluator = evaluation.Evaluator(run, base)
    completed = evaluator.complete(params, batches.role_key(run.rl_seed, "evaluation", 0))
    for suite, (rows, texts) in completed.items():
        for row, text in list(zip(rows, texts, strict=True))[: SAMPLES.value]:
            print(f"{suite:18} {row.prompt}  ->  {text}")
    scores = evaluator.score(params, completed)
    report = scores | {"counts": base.task.counts, "columns": base.task.columns}
    print(f"\n{tables.format_scores({name: report})}")


def by_lm_eval() -> None:
    """Scores a directory by lm-eval's tasks; tells mistakes before its weights are loaded."""
    if POLICY.value:
        raise ValueError("--policy goes with --config; with --model give the directory itself.")
    if not TASKS.value:
        raise ValueError("--lm_eval is missing: names of lm-eval's tasks, joined by commas.")
    if LOG_SAMPLES.value and not OUTPUT.value:
        raise ValueError("--log_samples needs --output=DIR, where the samples go.")
    try:
        from nspo_jax.evaluation import harness, lm_eval_tasks, paired
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--lm_eval needs packages that are not installed ({error}): pip install -e '.[eval]'"
        ) from error
    chat_format = harness.load_format(MODEL.value)
    if TEMPLATE.value:
        harness.check_template(chat_format, MODEL.value)
    mesh = sharding.make_mesh(fsdp=FSDP.value, tensor=TENSOR.value)
    loaded, others = None, {}
    if distributed.is_primary():  # one process reads the tasks' data
        paths = [pathlib.Path(flag.value) if flag.value else None for flag in (FOLDER, DATA)]
        loaded = lm_eval_tasks.load(TASKS.value, *paths)
        lm_eval_tasks.check(loaded, chat_format, models.load_config(MODEL.value).max_length)
        harness.check_generation_config(MODEL.value)
        if AGAINST.value:
            others = paired.read_samples(AGAINST.value, loaded.each)
    model = harness.open_model(MODEL.value, mesh, dtype=DTYPE.value, batch=BATCH.value)
    if loaded is None:
        model.programs.follow()
        return
    results = lm_eval_tasks.evaluate(
        model, loaded, limit=LIMIT.value, shots=SHOTS.value, chat_template=TEMPLATE.value
    )
    model.programs.end()
    print(f"{MODEL.value}\n\n{lm_eval_tasks.format_results(results)}")
    differences = []
    if AGAINST.value:
        differences, left_out = paired.compare(results["samples"], others)
        print(f"\nagainst {AGAINST.value}, in points\n\n{paired.format_differences(differences)}")
        if left_out:
            print(f"Not compared, as a document has no number: {', '.join(left_out)}.")
        results["against"] = [difference._asdict() for difference in differences]
    if OUTPUT.value:
        paths = lm_eval_tasks.write(results, pathlib.Path(OUTPUT.value), samples=LOG_SAMPLES.value)
        print(f"\nwritten: {', '.join(map(str, paths))}")
    if OUTPUT.value and differences:  # last: a figure that cannot be drawn loses no result
        names = [f"{d.task} {d.metric} {d.filter}" for d in differences]
        ends = [(d.low, d.difference, d.high) for d in differences]
        path = pathlib.Path(OUTPUT.value) / "against.png"
        print(f"figure: {figures.plot_differences(names, ends, path)}")


if __name__ == "__main__":
    launch.run(main, interrupted="stopped")
