#!/usr/bin/env bash
# A run as a GKE workload on TPUs, through xpk, restarted after a preemption:
#
#   scripts/gke/train.sh [--dry_run] python -m scripts.train --config=CONFIG --workdir=/bucket/DIR
#
# The image is IMAGE with this directory in it, which xpk builds with docker. The same call after a
# workload ended, under the same or another NAME, continues the run.
#
#   --dry_run    print the xpk command instead of running it
#
# Environment:
#   PROJECT      Google Cloud project               export PROJECT=my-project
#   ZONE         the cluster's zone                 export ZONE=us-east5-b
#   CLUSTER      name given to `xpk cluster create` export CLUSTER=my-cluster
#   NAME         a name for the workload            export NAME=nspo
#   ACCELERATOR  type and size of the slice         export ACCELERATOR=v6e-16
#   STORAGE      the bucket's name in the cluster, given by
#                `xpk storage attach --type=gcsfuse --mount-point=/bucket`
#                                                   export STORAGE=bucket
#   IMAGE        Python 3.11 or newer; default: python:3.12
#   RESTARTS     the most restarts after preemptions; default: 100
set -euo pipefail

dry_run=""
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 0 ;;
    --dry_run) dry_run=1 && shift ;;
    *) break ;;
  esac
done

missing=""
need() { # need NAME EXAMPLE WHAT: names a variable that is not set
  if [ -z "${!1:-}" ]; then
    echo "error: $1 is not set: $3. For example: export $1=$2" >&2
    missing=1
  fi
}
need PROJECT my-project "the Google Cloud project"
need ZONE us-east5-b "the zone of the cluster"
need CLUSTER my-cluster "the cluster that xpk made"
need NAME nspo "a name for the workload"
need ACCELERATOR v6e-16 "the type and size of the slice"
need STORAGE bucket "the bucket's name in the cluster; --help says how it got one"
[ -z "$missing" ] || exit 2
if [ $# -eq 0 ]; then
  echo "error: no command; such as python -m scripts.train --config=... --workdir=/bucket/x" >&2
  exit 2
fi

# xpk passes SIGTERM to the shell that it starts; exec makes until_done.sh that process
program="pip install --quiet --root-user-action=ignore -r requirements.txt 'jax[tpu]' \
&& exec bash scripts/until_done.sh$(printf ' %q' "$@")"
command=(
  xpk workload create "--project=$PROJECT" "--zone=$ZONE" "--cluster=$CLUSTER" "--workload=$NAME"
  "--tpu-type=$ACCELERATOR" --num-slices=1 "--storage=$STORAGE"
  "--base-docker-image=${IMAGE:-python:3.12}" --script-dir=.
  "--max-restarts=${RESTARTS:-100}" --restart-on-exit-codes=75
  "--command=$program"
)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
