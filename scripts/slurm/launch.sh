#!/usr/bin/env bash
# The common part of train.sbatch, eval.sbatch and array.sbatch: run a program with one process for
# each GPU; when SLURM stops it, let it save, and put the job back into the queue to resume.

# An array's task needs its long name: the short one of the last task means the whole array.
job=$SLURM_JOB_ID
[[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# A job gives up when SLURM has stopped this many sessions in a row before anything was saved.
MAX_FRUITLESS=3
fruitless=runs/.fruitless-$job # a line for each

step='' watchdog='' # process ids
# Whether a signal came; whether it was passed on; whether one came during the last wait.
told=false passed=false interrupted=false

say() { echo "job $job: $*" >&2; }

# SLURM's time limit comes near (USR1), or the job is preempted or cancelled (TERM). A second signal
# of a kind kills train.py: it gets USR1 from here, once, and perhaps TERM from SLURM.
on_signal() {
    interrupted=true
    ! $told || return 0
    told=true
    say "told to stop"
    pass_on
    requeue_in_time &
    watchdog=$!
}
trap on_signal USR1 TERM

pass_on() {
    if $told && ! $passed && [[ -n $step ]]; then
        passed=true
        kill -USR1 "$step" # srun sends it to every process
    fi
}

# launch PROGRAM [ARGUMENT...]: run it in the repository, and leave with its exit status.
launch() {
    # shellcheck disable=SC1091
    [[ ! -e .venv/bin/activate ]] || source .venv/bin/activate
    start "$@"
    local status
    while :; do # a signal ends `wait`, not the program
        interrupted=false status=0
        wait "$step" || status=$?
        $interrupted || break
    done
    [[ -z $watchdog ]] || kill "$watchdog" 2>/dev/null
    case $status in
        75) rm -f "$fruitless" && is_running && requeue ;;     # stopped and saved
        138 | 143) is_running && count_fruitless && requeue ;; # killed before it handled signals
    esac
    rm -f "$fruitless"
    exit "$status"
}

# srun starts the processes itself: torchrun would turn every exit status into 1, and kill what has
# not saved within 30 seconds of a signal. A step gets only the GPUs and the memory that srun asks
# for, whatever the batch script sees. All processes of a node see all of its GPUs, as NCCL wants.
start() {
    local program=$1 each=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} gpus=() device=()
    if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
        gpus=("--gpus-per-node=$SLURM_GPUS_ON_NODE")
        device=(device=cuda) # never on the CPU where GPUs were given; a later device= wins
    fi
    # shellcheck disable=SC2153  # SLURM sets both
    local all=$((SLURM_JOB_NUM_NODES * each)) cpus=$((SLURM_CPUS_ON_NODE / each))
    export LOCAL_WORLD_SIZE=$each MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    MASTER_ADDR=$(hostname) # of the job's first node, which has rank 0
    export MASTER_ADDR
    unset SLURM_CPUS_PER_GPU # --cpus-per-task excludes it
    say "$all processes on $SLURM_JOB_NODELIST, $cpus CPUs each: $*"
    # --distribution: neighbours in rank share a node, whatever the site's default.
    # --wait: seconds for the others once one has ended: rank 0 may be writing, or hang.
    # shellcheck disable=SC2016  # variables of the processes
    srun --ntasks="$all" --ntasks-per-node="$each" --cpus-per-task=$((cpus > 0 ? cpus : 1)) \
        "${gpus[@]}" --mem=0 --distribution=block --kill-on-bad-exit=0 --wait=120 \
        bash -c 'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
            exec python "$@"' python "$program" "${device[@]}" "${@:2}" &
    step=$!
    pass_on
}

# Whether the job has been neither cancelled nor requeued by SLURM.
is_running() { [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; }

# Back into the queue under the same number; returns if SLURM refuses.
requeue() {
    say "back into the queue, to resume"
    scontrol requeue "$job" && exit 0
    say "SLURM does not requeue it: submit the same command again to resume"
}

# Whether the job may try again after one more session that saved nothing.
count_fruitless() {
    mkdir -p runs
    echo "$SLURM_JOB_ID" >>"$fruitless"
    (($(wc -l <"$fruitless") < MAX_FRUITLESS)) && return 0
    rm -f "$fruitless"
    say "stopped $MAX_FRUITLESS times in a row before anything was saved: a longer --time may help"
    return 1
}

# The time limit ends a job for good, and a long validation ignores signals: requeue it in time.
requeue_in_time() {
    local end left
    end=$(SLURM_TIME_FORMAT=standard squeue --noheader --jobs="$job" --format=%e)
    end=$(date -d "$end" +%s 2>/dev/null) || return 0 # no limit
    left=$((end - $(date +%s)))
    sleep $((left > 60 ? left - 30 : left / 2)) &
    # shellcheck disable=SC2064  # this sleep
    trap "kill $!; exit" TERM
    wait
    is_running || return 0
    say "not stopped in time"
    count_fruitless && requeue
}
