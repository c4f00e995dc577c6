#!/usr/bin/env bash
# The method on a real chat model of 135M parameters: download, training, benchmarks, tables, figure
# and certificate.
#
#   ./scripts/real.sh [--small] DATA
#
# DATA is a directory with the files that configs/smollm2.py and configs/lm_eval name (docs/data.md
# and docs/evaluation.md say where they come from). Without an option it takes hours on two CPU cores.
# --small runs three arms (the base, GRPO and NSPO) for 24 steps only, in about 40 minutes. Results
# stay in runs/smollm2. A finished stage is skipped: the same command continues.
set -euo pipefail
here="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
size="" name=study documents=200 hours="some hours" arms=(base grpo_tuned nspo nspo_coords dpo nspo_dpo)
case "${1:-}" in
  --help | -h) usage "$0"; exit 0 ;;
  --small)
    size=",small" name=small documents=60 hours="40 minutes" arms=(base grpo_tuned nspo)
    shift
    ;;
  -*) fail "$1 is no option; expected --small, or --help." ;;
esac
[ $# -eq 1 ] || fail "expected one directory with the data: ./scripts/real.sh [--small] DATA"
data="$(cd "$here" && cd "$1" 2>/dev/null && pwd)" ||
  fail "$1 is no directory: expected the one with the data, such as $1/gsm8k."
mkdir -p runs/smollm2
free=$(df -Pk runs/smollm2 | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge 8 ] || fail "runs/smollm2 has $free GiB free; expected 8, for the model, each arm's" \
  "checkpoints and the environment. Make room, or link runs to a larger disk."
echo "This takes about $hours on two CPU cores, 10 GiB of memory and 8 GiB of disk."

environment requirements.txt
python -c 'import lm_eval' 2>/dev/null || python -m pip install --quiet '.[eval]'
[ -e runs/smollm2/model/config.json ] || ./scripts/get_smollm2.sh "$PWD/runs/smollm2/model"
study="runs/smollm2/$name"
python -m scripts.sweep --config="configs/sweeps/smollm2.py:$data$size" --workdir="$study"
benchmarks="$study/seed_0/benchmarks" against=()
for arm in "${arms[@]}"; do
  [ -e "$benchmarks/$arm/results.json" ] || python -m scripts.evaluate --output="$benchmarks/$arm" \
    --model="$study/seed_0/runs/$arm/policy" --lm_eval_tasks=configs/lm_eval --lm_eval_data="$data" \
    --lm_eval=arc_easy_local,piqa_local,openbookqa_local,winogrande_local --limit="$documents" \
    --log_samples "${against[@]}"
  against=("--against=$benchmarks/base")
done
