#!/bin/sh
# Train on all GPUs of one machine under ZeRO-2, then go on under ZeRO-3 on another number of them.
#
#     sh examples/many_gpus.sh 8 4 --dataset my.csv --prediction_length 24 --output_dir runs/many
#
# Without a GPU the same lines start CPU ranks over gloo. Options of train.py follow the two numbers; STEPS and MASTER_PORT
# may be set in the environment.
set -e
ranks=$1 others=$2
shift 2
run=
for word in "$@"; do
    [ "$before" = --output_dir ] && run=$word
    before=$word
done
: "${run:?give --output_dir}" "${STEPS:=200}" "${MASTER_PORT:=29500}"

# --batch_size is global: the same number is the same training on any number of ranks
deepspeed --num_gpus "$ranks" --master_port "$MASTER_PORT" train.py --deepspeed ds_configs/zero2.json "$@" \
    --max_steps "$STEPS" --save_steps "$STEPS"
# a checkpoint of DeepSpeed belongs to its ranks and stage until it is resharded
python -m llata_fast reshard "$run/checkpoint-$STEPS"
deepspeed --num_gpus "$others" --master_port "$MASTER_PORT" train.py --deepspeed ds_configs/zero3.json "$@" \
    --max_steps $((2 * STEPS)) --save_steps "$STEPS" --resume_from_checkpoint "$run/checkpoint-$STEPS"
