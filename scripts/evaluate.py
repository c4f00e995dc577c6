"""Evaluates a policy: by its task, or any Hugging Face directory by lm-eval's benchmarks.

    python -m scripts.evaluate --config=configs/tiny.py:base
    python -m scripts.evaluate --config=configs/tiny.py:nspo --policy=runs/tiny/nspo/policy
    python -m scripts.evaluate --model=PATH --lm_eval=arc_challenge,gsm8k --limit=100
    python -m scripts.evaluate --model=PATH --lm_eval=gsm8k_local,piqa_local \\
        --lm_eval_tasks=configs/lm_eval --lm_eval_data=DATA --output=runs/scores
    python -m scripts.evaluate --model=PATH --code=humaneval,mbpp --code_data=DATA --execute_code

With --config the scores are unsafe rate, over-refusal, capability and drift from the base model.
Without --policy the script evaluates the base model. --samples prints so many completions of every
set, for a look at the answers themselves.

With --model no config is needed: PATH is a base model, a policy, an export, or a delta. The names
are tasks, groups or tags of lm-eval (pip install -e '.[eval]'), which downloads their data; those
of configs/lm_eval read files of yours. --output keeps results.json. --against=DIR prints the
differences from another model's scores, document by document.

With --code it answers HumanEval and MBPP, and runs the programs that the model wrote, each in a
child process without a network; --execute_code says that you want that. docs/evaluation.md says
more.
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
CODE = flags.DEFINE_list("code", None, "humaneval, mbpp or both: --model writes programs.")
CODE_DATA = flags.DEFINE_string(
    "code_data", None, "Directory with humaneval/HumanEval.jsonl.gz and mbpp/mbpp.jsonl."
)
EXECUTE = flags.DEFINE_bool(
    "execute_code",
    False,
    "Run the programs that the model wrote for --code, each in a child process without network, "
    "within limits.",
)
UNSAFE = flags.DEFINE_bool(
    "unsafe_exec",
    False,
    "Run them where the system allows no isolation: limits stay, files and network are open.",
)
CODE_SAMPLES = flags.DEFINE_integer(
    "code_samples", 1, "Answers to each problem of --code, for pass@k.", lower_bound=1
)
CODE_TEMPERATURE = flags.DEFINE_float(
    "code_temperature",
    None,
    "Temperature of --code; default: 0 for one sample, 0.8 for several.",
    lower_bound=0.0,
)
OUTPUT = launch.define_output("output", "Directory for the results; default: they are not kept.")
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
            "benchmarks, --model=DIR --code=NAME,... for programs, --config=FILE.py:ARM for the "
            "scores of a run's own task."
        )
    if CODE.value is not None and MODEL.value is not None:
        by_programs()
    elif MODEL.value is not None:
        by_lm_eval()
    else:
        by_task()


def by_task() -> None:
    """Scores a policy by the task of its config, and prints samples and scores."""
    only = (TASKS, FOLDER, DATA, LIMIT, SHOTS, OUTPUT, AGAINST, *_of_code())
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


def _of_code() -> tuple[flags.FlagHolder, ...]:
    """Returns the flags that only --code reads and that are unset by default."""
    return CODE, CODE_DATA, EXECUTE, UNSAFE, CODE_TEMPERATURE


def by_programs() -> None:
    """Scores a directory by the programs that it writes; tells mistakes before it is loaded."""
    unread = [flag.name for flag in (POLICY, TASKS, FOLDER, DATA, SHOTS, AGAINST) if flag.value]
    if unread:
        raise ValueError(f"--{unread[0]} does not go with --code: leave out one of them.")
    if not EXECUTE.value:
        raise ValueError(
            "--code is scored by running programs that the model writes, and --execute_code is "
            "missing. With that flag each program runs in a child process of its own without "
            "network, your files or your environment, within limits of time, memory, processes "
            "and output. Nothing that a model writes runs without it."
        )
    if LOG_SAMPLES.value and not OUTPUT.value:
        raise ValueError("--log_samples needs --output=DIR, where the samples go.")
    try:
        from nspo_jax.evaluation import code_scores, execution, harness
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--code needs packages that are not installed ({error}): pip install -e '.[eval]'"
        ) from error
    if CODE_SAMPLES.value > 1 and CODE_TEMPERATURE.value == 0:
        raise ValueError(code_scores.EQUAL_SAMPLES)
    chat_format = harness.load_format(MODEL.value)
    if TEMPLATE.value:
        harness.check_template(chat_format, MODEL.value)
    mesh = sharding.make_mesh(fsdp=FSDP.value, tensor=TENSOR.value)
    sandbox, problems = None, {}
    if distributed.is_primary():
        data = pathlib.Path(CODE_DATA.value) if CODE_DATA.value else None
        read = code_scores.load(CODE.value, data)
        problems = {name: each[: LIMIT.value] for name, each in read.items()}
        max_length = models.load_config(MODEL.value).max_length
        code_scores.check(CODE.value, chat_format, max_length, chat_template=TEMPLATE.value)
        harness.check_generation_config(MODEL.value)
        sandbox = execution.open_sandbox(unsafe=UNSAFE.value)
    model = harness.open_model(MODEL.value, mesh, dtype=DTYPE.value, batch=BATCH.value)
    if sandbox is None:
        model.programs.follow()
        return
    samples = code_scores.answer(
        model, problems, chat_template=TEMPLATE.value, samples=CODE_SAMPLES.value,
        temperature=CODE_TEMPERATURE.value,
    )  # fmt: skip
    model.programs.end()
    code_scores.run(sandbox, problems, samples, chat_template=TEMPLATE.value)
    scores = code_scores.score(samples)
    print(f"{MODEL.value}\n\n{code_scores.format_scores(scores)}")
    if OUTPUT.value:
        results = {
            "model": MODEL.value, "results": scores, "chat_template": TEMPLATE.value,
            "dtype": DTYPE.value, "limit": LIMIT.value,
            "temperature": code_scores.resolve_temperature(
                CODE_SAMPLES.value, CODE_TEMPERATURE.value
            ),
            "isolated": sandbox.isolated, "limits": sandbox.limits._asdict(),
        }  # fmt: skip
        paths = code_scores.write(
            results, samples, pathlib.Path(OUTPUT.value), keep_samples=LOG_SAMPLES.value
        )
        print(f"\nwritten: {', '.join(map(str, paths))}")


def by_lm_eval() -> None:
    """Scores a directory by lm-eval's tasks; tells mistakes before its weights are loaded."""
    unread = [flag.name for flag in _of_code() if flag.value]
    if unread:
        raise ValueError(f"--{unread[0]} goes with --code=humaneval,mbpp, which is missing.")
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
