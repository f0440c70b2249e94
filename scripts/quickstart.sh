#!/usr/bin/env bash
# Train and test the 14-layer PReLU network of Table 1 on the embedded generated set, on two CPU
# cores, in a few minutes. It shows the whole path; the paper's numbers need ImageNet and a GPU.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

run=runs/quickstart
# small14 at the paper's rates, but for smaller crops and batches and a short schedule. In fp32, as
# CPUs without AVX-512 take hours with bf16.
train=(model=small14 act=prelu init=he data=synthetic batch_size=32 epochs=5 precision=fp32
    schedule.rule=fixed "schedule.rates=[1e-2,1e-3]" "schedule.switch_epochs=[4]"
    log_every=25 name=quickstart)

echo "== Training (a finished run is reused: rm -r $run starts again)"
python train.py "${train[@]}"
echo "== Testing"
for views in "centre" "dense scales=[128,136]"; do
    # shellcheck disable=SC2086
    python eval.py checkpoint=$run/checkpoints/best.pt views=$views
done
echo
echo "Metrics: $run/metrics.jsonl, errors: $run/result-*.json, images: datasets/synthetic"
echo "Curves and pictures: .venv/bin/tensorboard --logdir runs"
