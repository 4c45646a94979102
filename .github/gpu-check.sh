#!/usr/bin/env bash
# What only a machine with a GPU can tell, in under ten minutes, as one JSON file: the tests that need a GPU, the speed of
# the inner loop beside the card's matmul limit, in float32, TF32 and bfloat16, the same step in other libraries, and one
# accuracy. It needs neither ray nor mlflow: all runs are local.
#
#   .github/gpu-check.sh [--out FILE.json] [--data OMNIGLOT_SHARDS] [--peers PYTHON] [--cpu]
#
#   --out     the file to write; gpu-check.json when left out
#   --data    a folder that `distmeta data build omniglot` wrote; the built-in glyphs when left out
#   --peers   the interpreter of an environment with learn2learn, higher or torchopt; the one in use when left out
#   --cpu     rehearse all parts on the CPU, at tiny sizes; its numbers mean nothing
#
# PYTHON names the interpreter that has distmeta's requirements; python3 when it is not set. A part whose needs are absent
# is skipped, with its reason in the file. Exit codes: 0, 1 where a part failed, 2 without a GPU or on a wrong option.
set -uo pipefail
started=$(date +%s)

out=gpu-check.json data='' peers='' device=cuda
while (($#)); do
    case $1 in
    --out | --data | --peers)
        (($# > 1)) || {
            echo "$1: expected a value after it." >&2
            exit 2
        }
        declare "${1#--}=$2"
        shift 2
        ;;
    --cpu) device=cpu && shift ;;
    *)
        echo "$1: no such option; expected --out, --data, --peers or --cpu." >&2
        exit 2
        ;;
    esac
done
out=$(realpath -m "$out")
[[ -z $data ]] || data=$(realpath "$data")
[[ -z $peers ]] || peers=$(realpath -s "$peers")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python=${PYTHON:-python3}
work=$(mktemp -d "${TMPDIR:-/tmp}/dm-gpu.XXXXXX")
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MLFLOW_DISABLE_TELEMETRY=true CUBLAS_WORKSPACE_CONFIG=:4096:8

if [[ $device == cuda ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$python finds no GPU (torch.cuda.is_available() is false). Rehearse with --cpu, or install the card's driver." >&2
    exit 2
fi

# part NAME SECONDS COMMAND...: run it; its standard output, exit code and time are kept for the file.
part() {
    local name=$1 limit=$2 begun code
    shift 2
    printf '\n== %s\n' "$name" >&2
    begun=$(date +%s)
    timeout --kill-after=10 "$limit" "$@" >"$work/$name.out" 2> >(tee "$work/$name.err" >&2)
    code=$?
    printf '%s %s\n' "$code" "$(($(date +%s) - begun))" >"$work/$name.code"
    ((code == 0)) || echo "$name failed with code $code" >&2
}

skip() {
    printf '\n== %s: skipped, %s\n' "$1" "$2" >&2
    printf '%s\n' "$2" >"$work/$1.skipped"
}

has() {
    "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$2"
}

if [[ $device == cuda ]]; then
    inner=(--chunks "8,32,128" --steps "1,5" --threads 1 --seconds 50)
    lower=(--chunks "32,128" --steps 1 --threads 1 --seconds 12)
    step=(--set runtime.chunk_size=32 --seconds 90)
    train=(--set outer.iterations=600 --set evaluation.test_tasks=600)
else
    inner=(--chunks 2 --steps 1 --threads 1 --seconds 1 --set tasks.size=8)
    lower=("${inner[@]}")
    step=(--cases omniglot-1 --threads 1 --seconds 1 --set tasks.size=8 --set outer.meta_batch_size=2)
    train=(--set outer.iterations=2 --set outer.meta_batch_size=2 --set evaluation.test_tasks=4)
fi

if has "$python" pytest; then
    # Only the files that have such tests are read, and no plugin of the whole suite is needed.
    mapfile -t files < <(grep --recursive --files-with-matches --include='*.py' 'mark\.gpu' tests)
    part tests 90 "$python" -m pytest -m gpu -rs -p no:cacheprovider -W default \
        -o addopts=--import-mode=importlib "${files[@]}"
else
    skip tests "pytest is not installed"
fi

part inner-loop 100 "$python" -m distmeta bench inner-loop --device "$device" "${inner[@]}" --json

for precision in tf32 bfloat16; do
    if [[ $precision == tf32 && $device == cpu ]]; then
        skip inner-loop-tf32 "TF32 is of GPUs"
        continue
    fi
    part "inner-loop-$precision" 40 "$python" -m distmeta bench inner-loop --device "$device" "${lower[@]}" \
        --set "learner.precision=$precision" --json
done

part peers 180 "$python" -m distmeta bench peers --device "$device" --python "${peers:-$python}" "${step[@]}" --json

# A short run; its accuracy is far below that of jobs/RESULTS.md, and far above chance.
if [[ -n $data ]]; then
    part accuracy 140 "$python" -m distmeta train jobs/maml_omniglot.py --data "$data" --backend local --no-tracking \
        --run-dir "$work/run" --set evaluation.every=0 --set runtime.chunk_size=32 "${train[@]}" --json
elif has "$python" matplotlib && has "$python" PIL; then
    part accuracy 140 "$python" -m distmeta train jobs/maml_glyphs.py --backend local --no-tracking \
        --run-dir "$work/run" --set evaluation.every=0 --set runtime.chunk_size=16 "${train[@]}" --json
else
    skip accuracy "no --data, and matplotlib or pillow, from which the glyphs are made, is not installed"
fi

"$python" - "$work" "$out" "$device" "$started" <<'END'
import contextlib
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

work, out, device, started = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
driver = None
if shutil.which("nvidia-smi"):
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
found = {
    "device": device,
    "card": torch.cuda.get_device_name() if device == "cuda" else None,
    "nvidia_smi": driver,
    "cuda": torch.version.cuda,
    "torch": torch.__version__,
    "python": platform.python_version(),
    "parts": {},
}
for name in ("tests", "inner-loop", "inner-loop-tf32", "inner-loop-bfloat16", "peers", "accuracy"):
    skipped, code = work / f"{name}.skipped", work / f"{name}.code"
    if skipped.exists():
        found["parts"][name] = {"status": "skipped", "reason": skipped.read_text().strip()}
        continue
    status, seconds = map(int, code.read_text().split())
    text = (work / f"{name}.out").read_text()
    part = {"status": "failed" if status else "passed", "code": status, "seconds": seconds}
    if status:
        part["error"] = (work / f"{name}.err").read_text()[-2000:]
    part["result"] = text.strip().splitlines()[-30:]
    with contextlib.suppress(ValueError):
        part["result"] = json.loads(text)
    found["parts"][name] = part
found["seconds"] = int(time.time()) - started
out.write_text(json.dumps(found, indent=1) + "\n")
print(f"\n{out}")
for name, part in found["parts"].items():
    print(f"{name:20} {part['status']:8} {part.get('reason') or str(part['seconds']) + ' s'}")
sys.exit(any(part["status"] == "failed" for part in found["parts"].values()))
END
