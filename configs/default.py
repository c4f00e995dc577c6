"""Every field, with a comment. Other configs start from this one and change what they need.

A field is set on the command line as `--config.rl.steps=100`. Fields with several values are
strings joined by "+", such as `--config.projection.targets=mlp+attention`.
What a value may be is in `nspo_jax.rl.ranges`; which runs read a field, in `nspo_jax.rl.uses`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The defaults: NSPO on the chat world."""
    config = ml_collections.ConfigDict()

    config.task = "chat_world"  # chat_world: the synthetic conversations; stories: a story model;
    #   safety: public prompts, see configs/safety.py
    config.seed = 0  # of the world; the base model, rollouts and evaluation follow it as well
    config.workspace = "runs/tiny"  # what runs share: data, base models, projectors

    config.model = ml_collections.ConfigDict()
    config.model.path = ""  # the base model's Hugging Face directory; "" pretrains the chat world's
    config.model.preset = ""  # the size that the checkpoint must have: see configs/llm.py
    config.model.hidden_size = 96  # this and the next four: the model that "" pretrains
    config.model.intermediate_size = 256
    config.model.num_layers = 3
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.compute_dtype = "float32"  # of activations: float32 or bfloat16; weights: float32
    config.model.frozen_dtype = "float32"  # frozen matrices are held in; bfloat16 only where that
    #   rounds nothing: for checkpoints that are stored so
    config.model.remat = (
        "layer"  # kept for gradients: a residual a layer; dots: matmuls too; none: all
    )

    config.pretraining = ml_collections.ConfigDict()  # of the chat world's base model
    config.pretraining.seed = -1  # of the base model alone; -1: config.seed
    config.pretraining.steps = 1500
    config.pretraining.batch_size = 64  # conversations
    config.pretraining.learning_rate = 3e-3  # peak; warms up, then falls on a cosine

    config.data = ml_collections.ConfigDict()
    config.data.chat = True  # render prompts with the tokenizer's chat template
    config.data.system_prompt = ""  # system message of each chat; "" leaves it to the chat template
    config.data.thinking = False  # for chat templates that know enable_thinking (Qwen3)
    config.data.date = ""  # of chat templates that state today's (Llama 3.2), such as 2026-11-25;
    #   "": the day on which the workspace was first used, which it records
    config.data.prompt_length = 14  # tokens, template included; a longer prompt is an error,
    #   but of public datasets (task safety), where it is left out and counted in the log
    config.data.completion_length = 9  # tokens; rollouts are cut off here
    config.data.benign_fraction = 0.0  # replay: benign prompts per harmful one in the RL batch
    config.data.wrapped_fraction = 0.0  # share of harmful RL prompts inside made-up wrappers
    config.data.train_split = "train"  # of the harmful RL prompts, such as train[:40%]: the chat
    #   world's are shuffled; of the task safety it is a split of the files, in their order
    # of the task safety: paths are files, directories or hf:OWNER/NAME, joined by +
    config.data.train = "pku_safe_rlhf"  # harmful prompts; or beavertails, safety_prompts: the
    #   layouts of data.evaluation, or any table
    config.data.train_path = ""  # its files; "": its home at the Hugging Face Hub
    config.data.subset = ""  # only files in a directory of this name, such as alpaca-7b; "": all
    config.data.train_column = ""  # of any table: the column that holds the prompts
    config.data.general_path = ""  # general questions with answers (GSM8K, MMLU, ARC, HumanEval) to
    #   calibrate on, replay and measure drift on; "": their homes at the Hub
    config.data.general_split = ""  # such as train; "": all of the files
    config.data.max_broken = 0.01  # largest share of a dataset's rows that may break its schema
    config.data.evaluation_column = ""  # where files of data.evaluation in no known layout have
    #   their prompts, which are taken for harmful
    config.data.evaluation = ""  # XSTest and files of harmful prompts: AdvBench, HarmBench, ...

    config.calibration = ml_collections.ConfigDict()
    config.calibration.rows = 1000  # general conversations that the base model is run on
    config.calibration.batch_size = 250  # conversations
    config.calibration.rank_rule = "energy(0.05)"  # relative_max(ALPHA), energy(EPS),
    #   absolute(EIGENVALUE), fixed(RANK); for some sites +REGEX=RULE: energy(0.05)+mlp/in=fixed(9)
    config.calibration.statistics = "inputs"  # of what layers see; gradients: of the loss's, one a
    #   batch of batch_size conversations
    config.calibration.first_token = "keep"  # of every row: keep; drop, unprotected; separate: its
    #   directions are protected, and its massive activations kept out of the rank rule
    config.calibration.completions = "given"  # or generated: the base model's own answers
    config.calibration.temperature = 1.0  # of generated completions
    config.calibration.seed = 0  # of generated completions

    config.projection = ml_collections.ConfigDict()
    config.projection.mode = "update"  # update: last in the chain; coordinates: Adam in the null
    #   space; gradient: before Adam (leaks); none: plain AdamW
    config.projection.targets = "mlp+attention+head"  # what is projected; embed: rows of
    #   tokens that the calibration text does not have may move
    config.projection.untargeted = "freeze"  # freeze or train: embedding, norms, other kernels
    config.projection.period = 1  # project every update, or the sum of every k (released code: 5)
    config.projection.basis = "null_space"  # null_space, or random: the same rank, drawn by seed

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # or sgd, whose step falls with the gradient
    config.optimizer.master = "change"  # what is trained, in float32: the change from the base
    #   model, or weights, which round a change below 1e-7 of them away
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0  # of what is trained: of a change, towards the base model
    config.optimizer.max_gradient_norm = 1.0
    config.optimizer.b1 = 0.9  # decay of Adam's first moment; sgd: momentum
    config.optimizer.b2 = 0.999

    config.rl = ml_collections.ConfigDict()
    config.rl.algorithm = "policy_gradient"  # on judged completions; dpo: on pairs of
    #   config.reward_training; ppo_lagrangian: reward model, under a limit on the cost model's
    config.rl.seed = -1  # of prompts' order, rollouts and evaluation alone; -1: config.seed
    config.rl.steps = 60  # rollout and update
    config.rl.prompts = 16  # harmful prompts a step; benign_fraction adds to them
    config.rl.samples = 5  # completions a prompt: the group
    config.rl.minibatches = 1  # updates a step
    config.rl.microbatches = 1  # parts of a minibatch whose gradients are added up: less memory
    config.rl.rollout_batches = (
        1  # parts of a step's prompts that are answered in turn: less memory
    )
    config.rl.loss = "grpo"  # grpo: a ratio a token; gspo: a ratio a completion
    config.rl.advantage = "grpo"  # of rewards in their group: grpo, normalised; dr_grpo, centred;
    #   rloo, against the mean of the others
    config.rl.aggregation = "sequence_mean"  # sequence_mean: completions weigh alike; token_mean:
    #   tokens; sequence_sum: the sum over a completion's tokens; constant: that, divided by
    #   data.completion_length (Dr.GRPO, RLOO)
    config.rl.clip = 0.2  # the ratio's; it acts from a batch's second minibatch on, or staleness 1
    config.rl.clip_high = 0.0  # its upper bound, where that is another (DAPO: 0.28); 0: rl.clip
    config.rl.dual_clip = 0.0  # largest ratio where the advantage is negative, such as 3; 0: none
    config.rl.kl_coefficient = 0.0  # penalty to the base model
    config.rl.kl_estimator = "k3"  # k2: gradient of KL(policy || base); k3: of KL(base || policy),
    #   in expectation; k1: of nothing
    config.rl.importance_cap = 0.0  # tokens weighted by trainer's over sampler's probability, at
    #   most this, such as 2; one minibatch alone; 0: off
    config.rl.temperature = 1.0  # of rollouts
    config.rl.dpo_beta = 0.1  # of dpo: how much the policy is held to the base model
    config.rl.staleness = 0  # 1: sample the next step's completions while this one's are judged:
    #   with a remote_judge's time to gain, and a policy that is one update old
    config.rl.flat_steps = 10  # steps from the start on, none of which teaches anything, that end a
    #   run; all of a shorter one; 0: any number
    config.rl.on_flat = "raise"  # or warn
    config.rl.stop_unsafe = 0.0  # stop once the held-in unsafe rate is at or below this; 0: never

    config.lagrangian = ml_collections.ConfigDict()  # of ppo_lagrangian
    config.lagrangian.limit = 0.05  # on the mean cost: the cost model's probability of unsafe
    config.lagrangian.initial = 1.0  # multiplier: what a cost weighs against a reward
    config.lagrangian.learning_rate = 0.1  # of its logarithm, per update
    config.lagrangian.largest = 10.0  # multiplier
    config.lagrangian.kl = 0.02  # penalty to the base model, in rewards and costs
    config.lagrangian.gae_lambda = 0.95  # 1: return less value; 0: the one-step error
    config.lagrangian.critic_learning_rate = 3e-4

    config.rewards = ml_collections.ConfigDict()
    config.rewards.terms = "rules"  # who judges: TERM[@KINDS][=WEIGHT] joined by "+". TERM: rules,
    #   the task's own; over_refusal: -1 for refusing what is not harmful; cost_model, reward_model,
    #   guard: in process; remote_judge. KINDS of prompts: all, harmful, benign. WEIGHT: a number,
    #   or STEP:WEIGHT,STEP:WEIGHT and linear between
    config.rewards.normalise = "none"  # each term on its own: none; batch, group: mean 0, std 1
    config.rewards.on_failure = "raise"  # a row without a verdict: raise; drop_group: the prompt
    #   teaches nothing; neutral: as good as the mean of the prompt's others
    config.rewards.batch_size = 80  # rows that a model in process reads at a time
    config.rewards.cost_model = ""  # its Hugging Face directory; "" trains the chat world's own
    config.rewards.reward_model = ""  # likewise
    config.rewards.guard = ml_collections.ConfigDict()  # a language model that says safe or unsafe
    config.rewards.guard.path = ""  # its Hugging Face directory
    config.rewards.guard.length = 2048  # tokens of policy, prompt and answer; answers are cut
    config.rewards.guard.categories = ""  # JSON file {id: text}; "": those of the guard
    config.rewards.guard.dtype = "bfloat16"
    config.rewards.judge = ml_collections.ConfigDict()  # a server with an OpenAI-compatible API
    config.rewards.judge.url = ""  # such as http://localhost:8000/v1
    config.rewards.judge.model = ""  # as the server names it
    config.rewards.judge.api_key_env = ""  # the environment variable that holds the key; "": none
    config.rewards.judge.max_tokens = 64  # of its answer
    config.rewards.judge.asks = 2  # times that an answer without a verdict is asked for
    config.rewards.judge.concurrency = 16  # requests at a time, of each process
    config.rewards.judge.timeout = 60.0  # seconds of a request
    config.rewards.judge.retries = 5  # after bad answers of the server
    config.rewards.judge.down_after = 300.0  # seconds without an answer, after which the run stops
    config.rewards.judge.budget = (
        -1
    )  # requests of a start, of each process, failed ones too; -1: any

    config.reward_training = ml_collections.ConfigDict()  # of reward and cost models
    config.reward_training.dataset = "chat_world"  # or pku_safe_rlhf
    config.reward_training.path = ""  # its files or directory, joined by "+"; "": from the Hub
    config.reward_training.subset = ""  # of pku_safe_rlhf: alpaca-7b, ...
    config.reward_training.split = "train"  # with a slice if wanted: train[:40%]
    config.reward_training.held_out_split = "test"
    config.reward_training.epochs = 4
    config.reward_training.batch_size = 64  # pairs
    config.reward_training.learning_rate = 1e-3  # peak; warms up, then falls on a cosine

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.every = 10  # steps between evaluations; also at the start and the end
    config.evaluation.prompts = 200  # of each set
    config.evaluation.batches = 1  # parts that they are answered in: less memory
    config.evaluation.temperature = 1.0

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = 20  # steps
    config.checkpoint.keep = 2  # of the last ones
    config.checkpoint.keep_every = 0  # keep those of every so many steps as well, for good; 0: none

    config.mesh = ml_collections.ConfigDict()  # devices along each axis; -1 takes the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    config.mesh.gather_for_rollouts = True  # weights whole on every device, in the compute dtype,
    #   while it samples; False gathers a layer at a time, at every token
    return config
