"""Evaluates a policy by its task, or any Hugging Face directory by benchmarks, suites or programs.

    python -m scripts.evaluate --config=configs/tiny.py:base
    python -m scripts.evaluate --config=configs/tiny.py:nspo --policy=runs/tiny/nspo/policy
    python -m scripts.evaluate --model=PATH --lm_eval=arc_challenge,gsm8k --limit=100
    python -m scripts.evaluate --model=PATH --lm_eval=gsm8k_local,piqa_local \\
        --lm_eval_tasks=configs/lm_eval --lm_eval_data=DATA --output=runs/scores
    python -m scripts.evaluate --model=PATH --suites=advbench,xstest --suite_data=DATA \\
        --judges=refusals,harmbench_mistral=JUDGE --sampling=paper --output=runs/harm
    python -m scripts.evaluate --model=PATH --code=humaneval,mbpp --code_data=DATA --execute_code

With --config the scores are unsafe rate, over-refusal, capability and drift from the base model.
Without --policy the script evaluates the base model. --samples prints so many completions of every
set, for a look at the answers themselves.

With --model no config is needed: PATH is a base model, a policy, an export, or a delta.

--lm_eval names tasks, groups or tags of lm-eval (pip install -e '.[eval]'), which downloads their
data; those of configs/lm_eval read files of yours. --output keeps results.json.

--suites answers prompts that are harmful, or only look it, and --judges judges the answers. Both
are kept in --output: the same command goes on after a kill, and judges again with other judges
without the model. The suite alpaca_eval compares answers with those of --against or of its file.

--code answers HumanEval, MBPP and LiveCodeBench, and runs the programs that the model wrote, each
in a child process without a network; --execute_code says that you want that.

--against=DIR prints the differences from another model's scores, document by document.
docs/evaluation.md lists suites and judges, and says more.
"""

import pathlib
from typing import Any

from absl import flags

from nspo_jax import base_model, distributed, evaluation, models, settings, sharding
from nspo_jax.reports import figures, tables
from nspo_jax.rl import batches, checks
from scripts import launch

CONFIG = launch.define_config(required=False)
POLICY = flags.DEFINE_string("policy", None, "Hugging Face directory; default: the base model.")
SAMPLES = flags.DEFINE_integer(
    "samples",
    None,
    "With --config: completions to print of each set, 2 by default. With --suites and --code: "
    "answers to each prompt, 1 by default.",
    lower_bound=0,
)
MODEL = flags.DEFINE_string("model", None, "Directory to evaluate, without a config.")
TASKS = flags.DEFINE_list("lm_eval", None, "Tasks, groups or tags of lm-eval, joined by commas.")
FOLDER = flags.DEFINE_string("lm_eval_tasks", None, "Directory of further task files in YAML.")
DATA = flags.DEFINE_string("lm_eval_data", None, "Directory that such files read their data from.")
LIMIT = flags.DEFINE_integer(
    "limit", None, "Documents of each task, suite or benchmark; default: all.", lower_bound=1
)
SHOTS = flags.DEFINE_integer(
    "num_fewshot",
    None,
    "Examples before each document; default: the task's own number.",
    lower_bound=0,
)
TEMPLATE = flags.DEFINE_bool("apply_chat_template", False, "Ask in the model's chat template.")
SUITES = flags.DEFINE_list("suites", None, "Suites as NAME or NAME=PATH+PATH, joined by commas.")
SUITE_DATA = flags.DEFINE_string("suite_data", None, "Folder of suites, with a folder of each.")
JUDGES = flags.DEFINE_list(
    "judges",
    ["refusals"],
    "Judges as NAME, NAME=DIRECTORY or NAME=URL#MODEL, joined by commas; empty: none.",
)
SAMPLING = flags.DEFINE_enum(
    "sampling", "greedy", ["greedy", "paper"],
    "How --suites draws answers: greedy, or the paper's temperature 1 and empty system message.",
)  # fmt: skip
SYSTEM = flags.DEFINE_string("system", None, "System message, in place of --sampling's.")
NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "An answer's most tokens; default: 512.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the answers of --sampling=paper.", lower_bound=0)
CODE = flags.DEFINE_list(
    "code", None, "Some of humaneval, mbpp and livecodebench: --model writes programs."
)
CODE_DATA = flags.DEFINE_string(
    "code_data",
    None,
    "Directory with humaneval/HumanEval.jsonl.gz, mbpp/mbpp.jsonl and livecodebench/*.jsonl.",
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
    "Run them where the system allows no isolation: limits stay; files, network and your other "
    "processes are open to them.",
)
TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "Temperature of --code; default: 0 for one sample, 0.8 for several.",
    lower_bound=0.0,
)
OUTPUT = launch.define_output("output", "Directory for the results; default: they are not kept.")
AGAINST = flags.DEFINE_string(
    "against",
    None,
    "Directory of another model's --output: prints paired differences from it. With --lm_eval and "
    "--code it needs --log_samples there. Its answers are the references of alpaca_eval.",
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

_MODEL = (MODEL, LIMIT, OUTPUT, DTYPE, BATCH, FSDP, TENSOR)
# what is evaluated by -> the flags that it reads
_READ: dict[str, tuple[flags.FlagHolder, ...]] = {
    "config": (CONFIG, POLICY, SAMPLES),
    "lm_eval": (*_MODEL, TASKS, FOLDER, DATA, SHOTS, TEMPLATE, AGAINST, LOG_SAMPLES),
    "suites": (
        *_MODEL, SUITES, SUITE_DATA, JUDGES, SAMPLING, SYSTEM, NEW_TOKENS, SEED, SAMPLES, AGAINST,
    ),
    "code": (
        *_MODEL, CODE, CODE_DATA, EXECUTE, UNSAFE, TEMPERATURE, SAMPLES, TEMPLATE, LOG_SAMPLES,
        AGAINST,
    ),
}  # fmt: skip


def main() -> None:
    """Evaluates a model, and prints its scores."""
    ways = {"config": by_task, "lm_eval": by_lm_eval, "suites": by_suites, "code": by_programs}
    given = [name for name in ways if flags.FLAGS[name].value]
    if len(given) != 1 or (given != ["config"]) != (MODEL.value is not None):
        said = [f"--{name}" for name in ("model", *ways) if flags.FLAGS[name].value]
        raise ValueError(
            "Expected one of --config=FILE.py:ARM (the scores of a run's own task), "
            "--model=DIR --lm_eval=TASK,... (lm-eval's benchmarks), --model=DIR --suites=NAME,... "
            "(harm and over-refusal) and --model=DIR --code=NAME,... (programs); given: "
            f"{', '.join(said) or 'none'}."
        )
    (way,) = given
    known = {flag.name for each in _READ.values() for flag in each}
    read = {flag.name for flag in _READ[way]}
    for name in sorted(known - read):
        if flags.FLAGS[name].present:
            ways_of_it = [
                f"--{way}" for way, each in _READ.items() if name in {f.name for f in each}
            ]
            raise ValueError(
                f"--{name} goes with {' or '.join(ways_of_it)}, and not with --{way}: leave it out."
            )
    if way != "config" and LOG_SAMPLES.value and not OUTPUT.value:
        raise ValueError("--log_samples needs --output=DIR, where the samples go.")
    ways[way]()


def by_task() -> None:
    """Scores a policy by the task of its config, and prints samples and scores."""
    run = settings.from_config(CONFIG.value)
    checks.check_config(run, is_run=False)
    base = base_model.open_base(run, sharding.mesh_from_config(run))
    params, name = base.params, "base"
    if POLICY.value:
        params = base_model.load_policy(base, POLICY.value)
        name = str(pathlib.Path(POLICY.value))
    evaluator = evaluation.Evaluator(run, base)
    completed = evaluator.complete(params, batches.role_key(run.rl_seed, "evaluation", 0))
    scores = evaluator.score(params, completed)
    if not distributed.is_primary():
        return
    shown = 2 if SAMPLES.value is None else SAMPLES.value
    for suite, (rows, texts) in completed.items():
        for row, text in list(zip(rows, texts, strict=True))[:shown]:
            print(f"{suite:18} {row.prompt}  ->  {text}")
    report = scores | {"counts": base.task.counts, "columns": base.task.columns}
    print(f"\n{tables.format_scores({name: report})}")


def by_suites() -> None:
    """Scores a directory's answers to suites; tells mistakes before its weights are loaded."""
    from nspo_jax.evaluation import answers, judging, paired, references, suite_run

    if not OUTPUT.value:
        raise ValueError("--suites needs --output=DIR, where answers and verdicts are kept.")
    sampling = answers.SAMPLINGS[SAMPLING.value]
    if SYSTEM.value is not None:
        sampling = sampling._replace(system=SYSTEM.value)
    if NEW_TOKENS.value is not None:
        sampling = sampling._replace(max_new_tokens=NEW_TOKENS.value)
    mesh = sharding.make_mesh(fsdp=FSDP.value, tensor=TENSOR.value)
    batch = BATCH.value or 8 * mesh.shape["data"] * mesh.shape["fsdp"]
    sharding.check_batch(mesh, batch, "--batch_size")
    asked, chat_format = suite_run.ask(
        MODEL.value, SUITES.value, _path(SUITE_DATA.value), sampling=sampling, samples=_samples(),
        limit=LIMIT.value, seed=SEED.value, dtype=DTYPE.value,
    )  # fmt: skip
    judges = {name: place for name, _, place in (each.partition("=") for each in JUDGES.value)}
    suite_run.check_judges(judges, asked)
    found = suite_run.evaluate(
        asked, chat_format, judges, pathlib.Path(OUTPUT.value), mesh,
        batch=batch, against=AGAINST.value,
    )  # fmt: skip
    if found is None:
        return
    if found.rates:
        print(f"{MODEL.value}\n\n{judging.format_rates(found.rates)}")
    if found.lengths:
        print(f"\n{references.format_lengths(found.lengths)}")
    if found.differences:
        print(f"\nagainst {AGAINST.value}, in points; above zero is better\n")
        print(paired.format_differences(found.differences))
    print(f"\nwritten: {found.path}")
    _plot(found.differences)


def by_programs() -> None:
    """Scores a directory by the programs that it writes; tells mistakes before it is loaded."""
    if not EXECUTE.value:
        raise ValueError(
            "--code is scored by running programs that the model writes, and --execute_code is "
            "missing. With that flag each program runs in a child process of its own without "
            "network, your files or your environment, within limits of time, memory, processes "
            "and output. Nothing that a model writes runs without it."
        )
    harness = _import_harness("--code")
    from nspo_jax.evaluation import code_scores, coding, execution, paired, programs

    if _samples() > 1 and TEMPERATURE.value == 0:
        raise ValueError(code_scores.EQUAL_SAMPLES)
    chat_format = programs.load_format(MODEL.value)
    if TEMPLATE.value:
        harness.check_template(chat_format, MODEL.value)
    mesh = sharding.make_mesh(fsdp=FSDP.value, tensor=TENSOR.value)
    sandbox, problems, others = None, {}, {}
    if distributed.is_primary():
        if AGAINST.value:
            others = paired.read_samples(AGAINST.value, CODE.value)
        max_length = models.load_config(MODEL.value).max_length
        code_scores.check(CODE.value, chat_format, max_length, chat_template=TEMPLATE.value)
        problems = code_scores.load(CODE.value, _path(CODE_DATA.value), LIMIT.value)
        harness.check_generation_config(MODEL.value)
        sandbox = execution.open_sandbox(unsafe=UNSAFE.value)
    model = harness.open_model(MODEL.value, mesh, dtype=DTYPE.value, batch=BATCH.value)
    if sandbox is None:
        model.programs.follow()
        return
    samples = code_scores.answer(
        model, problems, chat_template=TEMPLATE.value, samples=_samples(),
        temperature=TEMPERATURE.value,
    )  # fmt: skip
    model.programs.end()
    code_scores.run(sandbox, problems, samples, chat_template=TEMPLATE.value)
    scores = code_scores.score(samples)
    print(f"{MODEL.value}\n\n{code_scores.format_scores(scores)}")
    differences = code_scores.compare(samples, others) if others else []
    if differences:
        print(f"\nagainst {AGAINST.value}, in points\n\n{paired.format_differences(differences)}")
    if OUTPUT.value:
        results = {
            "model": MODEL.value, "results": scores,
            "against": [difference._asdict() for difference in differences],
            "chat_template": TEMPLATE.value, "dtype": DTYPE.value, "limit": LIMIT.value,
            "temperature": code_scores.resolve_temperature(_samples(), TEMPERATURE.value),
            "isolated": sandbox.isolated,
            "limits": {name: coding.limits(name)._asdict() for name in CODE.value},
        }  # fmt: skip
        paths = code_scores.write(
            results, samples, pathlib.Path(OUTPUT.value), keep_samples=LOG_SAMPLES.value
        )
        print(f"\nwritten: {', '.join(map(str, paths))}")
        _plot(differences)


def by_lm_eval() -> None:
    """Scores a directory by lm-eval's tasks; tells mistakes before its weights are loaded."""
    harness = _import_harness("--lm_eval")
    from nspo_jax.evaluation import lm_eval_tasks, paired, programs

    chat_format = programs.load_format(MODEL.value)
    if TEMPLATE.value:
        harness.check_template(chat_format, MODEL.value)
    mesh = sharding.make_mesh(fsdp=FSDP.value, tensor=TENSOR.value)
    loaded, others = None, {}
    if distributed.is_primary():  # one process reads the tasks' data
        loaded = lm_eval_tasks.load(TASKS.value, _path(FOLDER.value), _path(DATA.value))
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
    if refusals := lm_eval_tasks.without_refusals(results, loaded):
        print("\nrefusals counted as wrong, and left out\n")
        print(lm_eval_tasks.format_refusals(refusals))
        results["refusals"] = refusals
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
        _plot(differences)


def _plot(differences: list[Any]) -> None:
    """Draws differences, last of all: a figure that cannot be drawn loses no result."""
    if differences:
        names = [f"{d.task} {d.metric} {d.filter}" for d in differences]
        ends = [(d.low, d.difference, d.high) for d in differences]
        path = pathlib.Path(OUTPUT.value) / "against.png"
        print(f"figure: {figures.plot_differences(names, ends, path)}")


def _import_harness(flag: str) -> Any:
    """Imports what needs the extra eval; raises ValueError where it is missing."""
    try:
        from nspo_jax.evaluation import code_scores, harness  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{flag} needs packages that are not installed ({error}): pip install -e '.[eval]'"
        ) from error
    return harness


def _samples() -> int:
    return 1 if SAMPLES.value is None else SAMPLES.value


def _path(value: str | None) -> pathlib.Path | None:
    return pathlib.Path(value) if value else None


if __name__ == "__main__":
    launch.run(main, interrupted="stopped")
