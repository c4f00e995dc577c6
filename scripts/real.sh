#!/usr/bin/env bash
# The method on a real chat model of 135M parameters: download, training, benchmarks, tables, figure
# and certificate.
#
#   ./scripts/real.sh [--small] DATA
#
# DATA is a directory with the files that configs/smollm2.py and configs/lm_eval name (docs/data.md
# and docs/evaluation.md say where they come from). --small runs the base, GRPO and NSPO alone.
# Results stay in runs/smollm2. A finished stage is skipped, so that the same command continues.
set -euo pipefail
fail() {
  echo "error: $*" >&2
  exit 1
}
size="" arms=(base grpo_tuned nspo nspo_coords dpo nspo_dpo)
if [ "${1:-}" = --small ]; then
  size=",small" arms=(base grpo_tuned nspo)
  shift
fi
[ $# -eq 1 ] || fail "expected one directory with the data: ./scripts/real.sh [--small] DATA"
[ -d "$1" ] || fail "$1 is no directory: expected the one with the data, such as $1/gsm8k."
data="$(cd "$1" && pwd)"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment requirements.txt
python -c 'import lm_eval' 2>/dev/null || python -m pip install --quiet '.[eval]'
[ -e runs/smollm2/model/config.json ] || ./scripts/get_smollm2.sh runs/smollm2/model
study="runs/smollm2/study"
python -m scripts.sweep --config="configs/sweeps/smollm2.py:$data$size" --workdir="$study"
for arm in "${arms[@]}"; do
  scores="$study/seed_0/benchmarks/$arm"
  [ -e "$scores/results.json" ] || python -m scripts.evaluate --output="$scores" \
    --model="$study/seed_0/runs/$arm/policy" --lm_eval_tasks=configs/lm_eval --lm_eval_data="$data" \
    --lm_eval=arc_easy_local,piqa_local,openbookqa_local,winogrande_local --limit=200
done
