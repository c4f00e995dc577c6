"""Reinforcement learning of a policy: the run, its algorithms and its losses.

A step draws prompts and samples a group of completions for each (`batches`). Judges give verdicts,
and the terms of a run weigh them as rewards (`terms`). Rewards become advantages by comparison
inside each group (`advantages`). The update follows the gradient of a loss of these (`losses`),
projected onto the null space of the base model's layer inputs on general text (`train_step`).
"""
