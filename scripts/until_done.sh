#!/usr/bin/env bash
# Runs a training or sweep command for a manager that restarts unfinished commands:
#
#   scripts/until_done.sh python -m scripts.train --config=CONFIG --workdir=DIR
#
# A preempted run saves and exits with 0, which a manager takes for success. A run is finished when
# its workdir has summary.json; this script exits with
#   0    if the command did and summary.json is there;
#   75   if the command exited with 0 and summary.json is not there: start it again;
#   otherwise with the command's own status.
# The script passes SIGTERM on: bash alone would hold it back until the command ends.
set -uo pipefail

workdir=""
for argument in "$@"; do
  case "$argument" in
    --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
    --workdir=*) workdir="${argument#--workdir=}" ;;
  esac
done
if [ -z "$workdir" ]; then
  echo "error: the command has no --workdir=DIR; for example --workdir=runs/tiny/nspo" >&2
  exit 2
fi

"$@" &
child=$!
signalled=""
preempted=""
trap 'signalled=1; preempted=1; kill -TERM "$child" 2>/dev/null' TERM
while true; do
  wait "$child"
  status=$?
  [ -n "$signalled" ] || break # otherwise the signal ended the wait, not the command
  signalled=""
done
if [ "$status" -ne 0 ]; then
  exit "$status"
fi
# process 0 writes the summary, and a mounted bucket may show it to the others a moment later
for _ in $(seq 10); do
  if [ -e "$workdir/summary.json" ]; then
    exit 0
  fi
  if [ -n "$preempted" ]; then
    break
  fi
  sleep 1
done
echo "$workdir has no summary.json: stopped before the end, to be started again" >&2
exit 75
