#!/usr/bin/env bash
# Everything that needs a GPU, most valuable first: scripts/gpu_day.sh [PART...]
# For a machine with PyTorch 2.11 or newer and no network: what else is needed is installed from wheels
# in .whl/, where large ones may lie in pieces (NAME.whl.part-aa, ...). Finished parts are not repeated;
# each ends within nine minutes. Writes gpu-day/*.json and, at the end, gpu-day/README.md.
#   DATA=FOLDER  images to train on (any image folder); default: the generated set
#   OUT=FOLDER   default: gpu-day
#   TINY=1       sizes for a trial on a CPU
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${OUT:-gpu-day} TINY=${TINY:-}
mkdir -p "$OUT"
# shellcheck disable=SC1091
[[ ! -e .venv/bin/activate ]] || source .venv/bin/activate
export PYTHONPATH=$PWD:$PWD/.whl/site${PYTHONPATH:+:$PYTHONPATH}

data=(data=synthetic)
[[ -z ${DATA:-} ]] || data=(data=folder "data.root=$DATA")
models=(small14 A B C) precisions=(bf16 tf32) batches=(128 256) scales=(256 384 480)
size=() bench=() steps=60 long=200 images=2000
if [[ -n $TINY ]]; then
    models=(small14) precisions=(bf16) batches=(8) scales=(72) steps=3 long=4 images=16
    size=("model.fc=[64,64]" data.crop=64 data.scale=72 batch_size=8 val_subset=8)
    bench=(--crop 64 --rounds 1)
fi

install() { # what PyTorch's environment lacks; .venv has it already
    local first
    for first in .whl/*.part-aa; do
        [[ ! -e $first ]] || cat "${first%aa}"* >"${first%.part-aa}"
    done
    python -c 'import hydra, omegaconf' 2>/dev/null && return
    python -m pip install --quiet --no-index --no-deps --target .whl/site .whl/*.whl
}

tests() { python -m pytest -q -m gpu -p no:cacheprovider tests/test_gpu.py; }

first_steps() { # does the recipe hold, without a spike or nan?
    local model
    for model in "${models[@]}"; do
        python train.py "model=$model" act=prelu init=he "${data[@]}" "max_steps=$steps" log_every=1 \
            "name=first-$model" "runs=$OUT/runs" checkpoint.every_steps=0 "${size[@]}" || return
    done
}

speed() { # of the training step
    local model precision batch way
    local -A options=([eager]='' [compiled]='--compile' [triton]='--kernel triton')
    for model in "${models[@]}"; do
        for precision in "${precisions[@]}"; do
            for batch in "${batches[@]}"; do
                for way in eager compiled triton; do
                    # shellcheck disable=SC2086  # two words
                    benchmark "train-$model-$precision-$batch-$way" train --model "$model" \
                        --precision "$precision" --batch "$batch" ${options[$way]} "${bench[@]}"
                done
            done
        done
    done
}

dense() {
    local model
    for model in "${models[@]}"; do
        benchmark "dense-$model" dense --model "$model" --scales "${scales[@]}" "${bench[@]}"
    done
}

loading() {
    benchmark data data --images "$images" ${DATA:+--root "$DATA"}
}

resume() { # kill -9 in the middle, and the same command again
    local command=(python train.py model=small14 act=prelu "${data[@]}" "max_steps=$long"
        checkpoint.every_steps=2 name=killed "runs=$OUT/runs" "${size[@]}")
    rm -rf "$OUT/runs/killed"
    "${command[@]}" &
    local process=$!
    until [[ -e $OUT/runs/killed/checkpoints/last.pt ]] || ! kill -0 $process; do sleep 0.1; done
    kill -9 $process
    wait $process 2>/dev/null
    "${command[@]}"
}

curves() { # the same steps at each precision
    local precision
    for precision in "${precisions[@]}" fp32; do
        python train.py model=small14 act=prelu "${data[@]}" "precision=$precision" "max_steps=$long" \
            log_every=1 "name=curve-$precision" "runs=$OUT/runs" checkpoint.every_steps=0 \
            "${size[@]}" || return
    done
}

benchmark() { # NAME ARGUMENT...: one JSON file, once
    local file=$OUT/$1.json
    [[ ! -e $file ]] || return 0
    python scripts/benchmark.py "${@:2}" --json >"$file.part" && mv "$file.part" "$file"
}

page() { python -m scripts.benchmarks.gpu_page "$OUT" >"$OUT/README.md"; }

run_part() { # in a process of its own, so that the time limit ends all of it
    local part=$1 began=$SECONDS
    [[ ! -e $OUT/$part.done ]] || return 0
    echo "== $part"
    if timeout --signal=INT --kill-after=30 540 bash "${BASH_SOURCE[0]}" --only "$part" \
        >"$OUT/$part.log" 2>&1; then
        touch "$OUT/$part.done"
        echo "done in $((SECONDS - began)) s"
    else
        echo "failed or out of time after $((SECONDS - began)) s: see $OUT/$part.log"
        failed=true
    fi
}

if [[ ${1:-} == --only ]]; then
    "$2"
    exit
fi
failed=false
(($# > 0)) || set -- install tests first_steps speed dense loading resume curves
for part; do
    run_part "$part"
done
page
! $failed
