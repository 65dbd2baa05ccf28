"""The training loop and what a run needs: optimisers, checkpoints, processes, logs."""

from common.training.attention_options import add_attention_options
from common.training.batch_order import BatchOrder, MicroBatches, Order, WindowOrder, iterate
from common.training.bert_folder import bert_names, find_bert_weights
from common.training.checkpoint import (
    check_compatible,
    load_checkpoint,
    load_meta,
    prune_checkpoints,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from common.training.checkpoint_codec import StateEncoder, checksum, decode, storable
from common.training.distributed import World, one_voice, peers, split_evenly, start_world
from common.training.folder_lock import alone
from common.training.launch import Launcher
from common.training.loop import LoopOptions, Trainer
from common.training.means import Means
from common.training.optim import OPTIMIZERS, OptimizerWithSchedule, clip_grad_norm, make_optimizer
from common.training.options import (
    adaptive_options,
    add_policy_optimizer_options,
    add_run_options,
    add_seeds_option,
    add_strategy_options,
    check_options,
    command_line,
    fill,
    loop_options,
)
from common.training.run_folder import SnapshotNames, check_unused, remove_run
from common.training.running_totals import RunningTotals
from common.training.runtime import (
    PRECISIONS,
    Runtime,
    make_runtime,
    peak_memory,
    seed_everything,
    set_threads,
    versions,
)
from common.training.stop_signal import StopSignal
from common.training.task import DecisionCounts, StepOutput, Task, TaskBatch, Validation
from common.training.tracking import Tracker
from common.training.weights import (
    FORMAT_KEY,
    FORMAT_VERSION,
    SUFFIXES,
    load_into,
    load_weights,
    open_checkpoint,
    resolve_checkpoint,
    strip_prefix,
)

__all__ = [
    "FORMAT_KEY",
    "FORMAT_VERSION",
    "OPTIMIZERS",
    "PRECISIONS",
    "SUFFIXES",
    "BatchOrder",
    "DecisionCounts",
    "Launcher",
    "LoopOptions",
    "Means",
    "MicroBatches",
    "OptimizerWithSchedule",
    "Order",
    "RunningTotals",
    "Runtime",
    "SnapshotNames",
    "StateEncoder",
    "StepOutput",
    "StopSignal",
    "Task",
    "TaskBatch",
    "Tracker",
    "Trainer",
    "Validation",
    "WindowOrder",
    "World",
    "adaptive_options",
    "add_attention_options",
    "add_policy_optimizer_options",
    "add_run_options",
    "add_seeds_option",
    "add_strategy_options",
    "alone",
    "bert_names",
    "check_compatible",
    "check_options",
    "check_unused",
    "checksum",
    "clip_grad_norm",
    "command_line",
    "decode",
    "fill",
    "find_bert_weights",
    "iterate",
    "load_checkpoint",
    "load_into",
    "load_meta",
    "load_weights",
    "loop_options",
    "make_optimizer",
    "make_runtime",
    "one_voice",
    "open_checkpoint",
    "peak_memory",
    "peers",
    "prune_checkpoints",
    "remove_run",
    "resolve_checkpoint",
    "rng_state",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "set_threads",
    "split_evenly",
    "start_world",
    "storable",
    "strip_prefix",
    "versions",
]
