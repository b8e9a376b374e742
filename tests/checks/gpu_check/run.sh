#!/bin/sh
# The check that travels (bin/dev/gpu-check --pack): what v2l does on this machine, part by part. A part that fails does not stop the
# others. Writes REPORT/report.json, REPORT/report.txt, and the output of every part.
#
# Ends with 0 if nothing failed, 7 if something did. Without a GPU it runs everything that needs none, and says what it skipped.
set -u
report=$1
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$report" && report=$(cd "$report" && pwd) || exit 9
PATH=$here/bin:$PATH
export PATH V2L_ORT_LIB="$here/ort" ORT_DISABLE_TELEMETRY=1
model=$here/model
work=$(mktemp -d "${TMPDIR:-/tmp}/v2l-gpu-check.XXXXXX") || exit 9
trap 'rm -rf "$work"' EXIT
: >"$report/report.txt"
: >"$report/parts.json"
failed=0

# quoted TEXT: as a JSON string.
quoted() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/\\/\\\\/g; s/"/\\"/g' | tr -d '\000-\037')"; }

# note NAME STATUS SECONDS WHY EVENTS_FILE
note() {
    printf '%-10s %6s s  %s%s\n' "$2" "$3" "$1" "${4:+: $4}" | tee -a "$report/report.txt" >&2
    events=
    [ -z "$5" ] || events=$(grep '^{' "$5" 2>/dev/null | paste -sd, -)
    [ ! -s "$report/parts.json" ] || printf ',\n' >>"$report/parts.json"
    printf '{"part":%s,"status":"%s","seconds":%s,"why":%s,"events":[%s]}' "$(quoted "$1")" "$2" "$3" "$(quoted "$4")" "$events" >>"$report/parts.json"
}

# part NAME COMMAND...: runs it; its output is kept, and what it says is the report's.
part() {
    name=$1
    shift
    file=$report/$(printf '%s' "$name" | tr -c 'a-zA-Z0-9\n' '-').out
    begun=$(date +%s)
    "$@" >"$file" 2>"$file.err"
    code=$?
    seconds=$(($(date +%s) - begun))
    if [ $code = 0 ]; then
        note "$name" passed $seconds "" "$file"
    else
        failed=1
        note "$name" failed $seconds "exit code $code: $(tail -n 3 "$file.err")" "$file"
    fi
    return $code
}

skip() { note "$1" skipped 0 "$2" ""; }

# refused CODE COMMAND...: what has to end with this code.
refused() {
    wanted=$1
    shift
    "$@"
    found=$?
    [ $found = "$wanted" ] || {
        echo "ended with $found; expected $wanted" >&2
        return 7
    }
}

same() { cmp "$1" "$2"; }

# generate OUT FLAGS...: the miniature's video, as latents and frames, on one seed.
generate() {
    out=$1
    shift
    v2l-run --engine "$work/engines" --image "$model/images/08.png" --prompt "a blue disc" --num-frames 9 --steps 20 --guidance 1 \
        --seed 43 --json "$@" --outputs "$out"
}

card=$(nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1) || card=
processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
printf '%s\ncard: %s\nprocessor: %s, %s cores\nsystem: %s\n' "$(cat "$here/VERSION")" "${card:-none}" "$processor" "$(nproc 2>/dev/null)" "$(uname -srm)" |
    tee "$report/report.txt" >&2

# CUDA, cuDNN and cuBLAS: where they are said to be, or beside the packages of a Python.
if [ -z "${V2L_CUDA_LIBS:-}" ]; then
    for python in "${V2L_PYTHON:-}" python3 python; do
        [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 || continue
        found=$("$python" -c 'import os, sys; print(next((p for p in sys.path if os.path.isdir(os.path.join(p, "nvidia"))), ""))' 2>/dev/null)
        if [ -n "$found" ]; then
            V2L_CUDA_LIBS=$found
            export V2L_CUDA_LIBS
            break
        fi
    done
fi
printf 'CUDA libraries: %s\n' "${V2L_CUDA_LIBS:-those of the loader}" | tee -a "$report/report.txt" >&2

part "machine" v2l-inspect --machine --json
part "export" v2l-export "$model" -o "$work/bundle" --hypernetwork "$model/hypernetwork.safetensors" \
    --light-lora "$model/checkpoint-checkpoint-100.safetensors" --json
part "compile, with every output checked" v2l-compile "$work/bundle" -o "$work/engines" --lora-rank 64 --json
part "predict" v2l-run --engine "$work/engines" --reference "$model/references/squash" --reference-range signed \
    --save-lora "$work/effect.safetensors" --json
part "CPU, base" generate "$work/base.safetensors"
part "CPU, adapter" generate "$work/steered.safetensors" --lora "$work/effect.safetensors"
part "CPU, adapter of strength 0" generate "$work/zero.safetensors" --lora "$work/effect.safetensors=0"
part "CPU, base again" generate "$work/again.safetensors"
part "CPU, the same request gives the same bytes" same "$work/base.safetensors" "$work/again.safetensors"

if [ -n "$card" ]; then
    part "GPU, fusion kernel against the CPU's bits and copy bandwidth" gpu_check --json --only kernel --model "$model"
    part "GPU, miniature on the CUDA provider against the CPU, swaps" gpu_check --json --only miniature --model "$model"
    part "GPU, base" generate "$work/gpu.safetensors" --provider cuda
    part "GPU, adapter" generate "$work/gpu-steered.safetensors" --provider cuda --lora "$work/effect.safetensors"
    part "GPU, adapter in branches" generate "$work/gpu-branch.safetensors" --provider cuda --lora "$work/effect.safetensors" --fuse-mode branch
    part "GPU, base again" generate "$work/gpu-again.safetensors" --provider cuda
    part "GPU, the same request gives the same bytes" same "$work/gpu.safetensors" "$work/gpu-again.safetensors"
    part "memory of the card, after" nvidia-smi --query-gpu=memory.used,memory.total --format=csv
    if [ -n "${V2L_TRT_LIB:-}" ]; then
        part "GPU, TensorRT-RTX" gpu_check --json --only tensorrt --model "$model"
    else
        skip "GPU, TensorRT-RTX" "V2L_TRT_LIB names no library"
    fi
    if [ -n "${V2L_PYTHON:-}" ] && "$V2L_PYTHON" -c 'import torch, diffusers, onnx, onnxruntime' 2>/dev/null; then
        part "GPU, a step of full width against PyTorch" "$V2L_PYTHON" "$here/peers/step.py" --work "$work" --tools "$here/bin" --cuda --json
    else
        skip "GPU, a step of full width against PyTorch" "V2L_PYTHON names no Python with torch, diffusers, onnx and onnxruntime"
    fi
else
    part "without a GPU the CUDA provider is refused with 6" refused 6 generate "$work/gpu.safetensors" --provider cuda
    part "without a GPU the check of the card is refused with 6" refused 6 gpu_check --json --model "$model"
    for name in "fusion kernel against the CPU's bits and copy bandwidth" "miniature on the CUDA provider against the CPU, swaps" \
        "memory" "TensorRT-RTX" "a step of full width against PyTorch"; do
        skip "GPU, $name" "there is no NVIDIA GPU, or nvidia-smi does not see it"
    done
fi

{
    printf '{"version":%s,"card":%s,"processor":%s,"parts":[\n' "$(quoted "$(cat "$here/VERSION")")" "$(quoted "$card")" "$(quoted "$processor")"
    cat "$report/parts.json"
    printf '\n]}\n'
} >"$report/report.json"
rm -f "$report/parts.json"
printf 'report: %s/report.json\n' "$report" >&2
[ $failed = 0 ] || exit 7
