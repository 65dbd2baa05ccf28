"""The adaptive core: strategies, decisions, executors and policies for any routed encoder.

In short:

    from common.adapt import adapt, adaptive_part
    model = adapt(backbone, strategy="SpotTune_Block", policy="small")
"""

from common.adapt.adapting import (
    adapt,
    adaptive_part,
    deciding_part,
    freeze_dead,
    make_policy,
    named_parameter_groups,
    parameter_counts,
    parameter_groups,
    set_global_decisions,
)
from common.adapt.budget import (
    BudgetOptions,
    budget_losses,
    constrain_k,
    deterministic,
    target_rate,
)
from common.adapt.drifting import drift
from common.adapt.dropout import DropoutReplay
from common.adapt.encoder import (
    POLICY_EVALUATIONS,
    Adaptive,
    AdaptiveOptions,
    PolicyFactory,
    RoutedEncoder,
    frozen_copy,
)
from common.adapt.executors import RoutedSite, Routing, execute
from common.adapt.families import find_encoder
from common.adapt.gumbel import hard_gumbel, keyed_uniform
from common.adapt.head_projections import project_by_head
from common.adapt.heads import split_heads
from common.adapt.merging import Merged, merge
from common.adapt.policy import (
    POLICIES,
    ControlPolicy,
    OraclePolicy,
    PolicyInputs,
    RandomPolicy,
    SharedPolicy,
    SmallPolicy,
    set_initial_share,
    uniform_noise,
)
from common.adapt.routes import Branch, Routes, State, Written, read_stream, take
from common.adapt.row_routing import Rows, merge_rows, split_rows, straight_through
from common.adapt.steps import (
    DenseStep,
    HeadsStep,
    Layer,
    Step,
    bert_steps,
    first_position,
    live_steps,
)
from common.adapt.strategies import STRATEGIES, Site, Strategy, find_strategy, plan_sites

__all__ = [
    "POLICIES",
    "POLICY_EVALUATIONS",
    "STRATEGIES",
    "Adaptive",
    "AdaptiveOptions",
    "Branch",
    "BudgetOptions",
    "ControlPolicy",
    "DenseStep",
    "DropoutReplay",
    "HeadsStep",
    "Layer",
    "Merged",
    "OraclePolicy",
    "PolicyFactory",
    "PolicyInputs",
    "RandomPolicy",
    "RoutedEncoder",
    "RoutedSite",
    "Routes",
    "Routing",
    "Rows",
    "SharedPolicy",
    "Site",
    "SmallPolicy",
    "State",
    "Step",
    "Strategy",
    "Written",
    "adapt",
    "adaptive_part",
    "bert_steps",
    "budget_losses",
    "constrain_k",
    "deciding_part",
    "deterministic",
    "drift",
    "execute",
    "find_encoder",
    "find_strategy",
    "first_position",
    "freeze_dead",
    "frozen_copy",
    "hard_gumbel",
    "keyed_uniform",
    "live_steps",
    "make_policy",
    "merge",
    "merge_rows",
    "named_parameter_groups",
    "parameter_counts",
    "parameter_groups",
    "plan_sites",
    "project_by_head",
    "read_stream",
    "set_global_decisions",
    "set_initial_share",
    "split_heads",
    "split_rows",
    "straight_through",
    "take",
    "target_rate",
    "uniform_noise",
]
