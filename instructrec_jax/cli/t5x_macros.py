"""Macros of T5X's run files that nothing here can follow, and why."""

# As of t5x/configs/runs/{finetune,pretrain,eval,infer}.gin; all others are ours too.
NOT_FOLLOWED = {
    "JSON_WRITE_N_RESULTS": (
        "evaluation writes metrics alone, and `instructrec score` every candidate's log-likelihood"
    ),
    "USE_HARDWARE_RNG": (
        "draws depend on RANDOM_SEED and the step alone, on every kind of device, so that an "
        "interrupted run goes on as it would have"
    ),
    "SHUFFLE_TRAIN_EXAMPLES": "training examples are always shuffled, in an order of RANDOM_SEED",
}
