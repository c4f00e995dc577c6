#!/usr/bin/env bash
# Makes, fills, runs on and deletes a TPU VM pod slice from here. docs/pods.md has a walk through.
#
#   scripts/tpu/pod.sh [--dry_run] COMMAND
#
#   create [--spot]      ask for the slice, as a queued resource; returns at once
#   wait                 return once it is there; fail if it was preempted or refused
#   sync                 copy the repository's tracked files, as they are now, to every worker
#   setup                on every worker: mount gs://BUCKET at /bucket, install the requirements
#   run PROGRAM ...      start a command on every worker, which survives this connection
#   logs [WORKER]        follow its output on a worker; default: 0
#   stop                 send it SIGTERM on every worker: it saves and ends
#   ssh COMMAND ...      run a command on every worker and wait for it
#   delete               delete the slice, preempted or not; all files outside the bucket are lost
#
#   --dry_run            print the gcloud commands instead of running them
#
# Environment:
#   PROJECT      Google Cloud project               export PROJECT=my-project
#   ZONE         the quota's zone                   export ZONE=us-east5-b
#   POD          a name for the slice               export POD=nspo
#   ACCELERATOR  type and size, for create          export ACCELERATOR=v6e-16
#   BUCKET       for setup; in the slice's region   export BUCKET=my-bucket
#   RUNTIME      VM image, for create; default: the one for ACCELERATOR
set -euo pipefail

GCSFUSE=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v3.2.9
GCSFUSE=$GCSFUSE/gcsfuse_3.2.9_amd64.deb

usage() { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; }

fail() {
  echo "error: $1" >&2
  exit 2
}

need() { # need NAME EXAMPLE WHAT: names a variable that is not set
  if [ -z "${!1:-}" ]; then
    echo "error: $1 is not set: $3. For example: export $1=$2" >&2
    missing=1
  fi
}

check() { # check NAME...: ends the script if any of the variables is not set
  missing=""
  for name in "$@"; do
    case "$name" in
      PROJECT) need PROJECT my-project "the Google Cloud project" ;;
      ZONE) need ZONE us-east5-b "the zone that the TPU quota is for" ;;
      POD) need POD nspo "a name for the slice" ;;
      ACCELERATOR) need ACCELERATOR v6e-16 "the type and size of the slice" ;;
      BUCKET) need BUCKET my-bucket "the Cloud Storage bucket that runs live in" ;;
    esac
  done
  [ -z "$missing" ] || exit 2
}

do_() { # runs a command, or prints it
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queue() { # queue VERB FLAG...: gcloud on the queued resource
  do_ gcloud compute tpus queued-resources "$1" "$POD" "--project=$PROJECT" "--zone=$ZONE" "${@:2}"
}

ssh_() { # ssh_ WORKER COMMAND
  do_ gcloud compute tpus tpu-vm ssh "$POD" "--project=$PROJECT" "--zone=$ZONE" "--worker=$1" \
    "--command=$2"
}

runtime() { # the VM image of an accelerator type
  case "$ACCELERATOR" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    *) fail "ACCELERATOR is $ACCELERATOR, of which no image is known here. Set RUNTIME as well." ;;
  esac
}

create() {
  local flags=()
  case "${1:-}" in
    --spot) flags=(--spot) ;;
    "") ;;
    *) fail "create takes --spot or nothing, got $1." ;;
  esac
  check PROJECT ZONE POD ACCELERATOR
  local image="${RUNTIME:-}"
  image="${image:-$(runtime)}"
  queue create "--node-id=$POD" "--accelerator-type=$ACCELERATOR" "--runtime-version=$image" \
    ${flags[@]+"${flags[@]}"}
}

wait_() {
  check PROJECT ZONE POD
  while true; do
    local state
    state="$(queue describe "--format=value(state.state)")"
    echo "$state"
    if [ -n "$dry_run" ]; then return; fi
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "error: $POD is $state: refused or preempted. Delete it and create it again." >&2
        exit 1
        ;;
    esac
    sleep 20
  done
}

sync_() {
  check PROJECT ZONE POD
  cd "$(dirname "${BASH_SOURCE[0]}")/../.."
  local archive tree
  archive="$(mktemp -d)/nspo_jax.tgz"
  tree="$(git stash create)" # a commit of the changes here, to which no branch points
  do_ git archive --format=tgz "--output=$archive" "${tree:-HEAD}"
  do_ gcloud compute tpus tpu-vm scp "$archive" "$POD:nspo_jax.tgz" "--project=$PROJECT" \
    "--zone=$ZONE" --worker=all
  ssh_ all "mkdir -p nspo_jax && tar -xzf nspo_jax.tgz -C nspo_jax"
  rm -r "$(dirname "$archive")"
}

# The images have Python 3.10; uv brings a newer one. Checkpoints rename directories, which Cloud
# Storage FUSE does one object at a time up to the limit, or at once in a hierarchical bucket.
setup() {
  check PROJECT ZONE POD BUCKET
  ssh_ all "set -e
if ! command -v gcsfuse >/dev/null; then
  curl -sSfLo /tmp/gcsfuse.deb $GCSFUSE
  sudo apt-get update -qq && sudo apt-get install -qqy /tmp/gcsfuse.deb
fi
sudo mkdir -p /bucket && sudo chown \$USER /bucket
mountpoint -q /bucket ||
  gcsfuse --implicit-dirs --rename-dir-limit=10000 $(printf %q "$BUCKET") /bucket
python3 -m pip install --quiet --user uv
cd nspo_jax
[ -d .venv ] || python3 -m uv venv --quiet --python=3.12
python3 -m uv pip install --quiet -r requirements.txt 'jax[tpu]'
.venv/bin/python -c 'import nspo_jax'"
}

run() {
  [ $# -gt 0 ] || fail "run takes a command, such as: run python -m scripts.train --config=..."
  check PROJECT ZONE POD
  local program
  program="$(printf '%q ' "$@")"
  ssh_ all "set -e
cd nspo_jax
if [ -e run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then
  echo 'error: a command runs here already; stop it first' >&2
  exit 1
fi
source .venv/bin/activate
export JAX_COMPILATION_CACHE_DIR=\$HOME/jax_cache
nohup bash scripts/until_done.sh $program >>run.log 2>&1 </dev/null &
echo \$! >run.pid"
}

logs() {
  check PROJECT ZONE POD
  ssh_ "${1:-0}" "tail -n 100 -F nspo_jax/run.log"
}

stop() {
  check PROJECT ZONE POD
  ssh_ all "kill -TERM \$(cat nspo_jax/run.pid)"
}

main() {
  dry_run=""
  local command=""
  while [ $# -gt 0 ] && [ -z "$command" ]; do
    case "$1" in
      --help | -h) usage && exit 0 ;;
      --dry_run) dry_run=1 ;;
      *) command="$1" ;;
    esac
    shift
  done
  case "$command" in
    create | setup | run | logs | stop) "$command" "$@" ;;
    wait) wait_ ;;
    sync) sync_ ;;
    ssh)
      [ $# -gt 0 ] || fail "ssh takes a command, such as: ssh df -h"
      check PROJECT ZONE POD
      ssh_ all "$*"
      ;;
    delete) check PROJECT ZONE POD && queue delete --force --quiet ;;
    "") fail "no command; --help lists them." ;;
    *) fail "no command $command; --help lists them." ;;
  esac
}

main "$@"
