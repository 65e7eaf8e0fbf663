"""The machine model: what ops, graphs and schedules cost on a Gaudi 2 and a Gaudi 3, from shapes alone.

Bucket planning, control-flow choices, splitting of attention and `gaudicc profile` ask it; it sees nothing of them.
Every second it gives is modelled: nothing here was ever run on a Gaudi. Nodes of captured graphs enter by
`gaudicc.machine.fx` and `fx_tasks`, which alone import torch.
"""

from gaudicc.machine.chip import CHIPS, Chip, Evidence, Source, load_chip, parse_chip
from gaudicc.machine.cost import Engine, OpClass, OpCost, OpWork, gemm_seconds, op_cost
from gaudicc.machine.decoder import Decoder, Step, decoder_step, known_decoders
from gaudicc.machine.exact import ExactSchedule, exact_schedule
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.mme import Prediction, predict
from gaudicc.machine.mme_choice import Recommendation, choose, recommend
from gaudicc.machine.mme_geometry import Geometry
from gaudicc.machine.mme_recipe import Walk
from gaudicc.machine.mme_slice import sliced_utilisation
from gaudicc.machine.pipeline import Carried, Pipelined, interval_bound, pipeline
from gaudicc.machine.schedule import list_schedule, program_schedule, vendor_schedule
from gaudicc.machine.simulate import Limits, simulate
from gaudicc.machine.specs import DmaSpec, HostSpec, MemorySpec, MmeSpec, NetworkSpec, TpcSpec
from gaudicc.machine.timeline import Event, Task, Timeline, lower_bound
from gaudicc.machine.workload import Mode, RecordCost, RunCost, Workload, record_cost, run_cost

__all__ = [
    "CHIPS",
    "Carried",
    "Chip",
    "Decoder",
    "DmaSpec",
    "Engine",
    "Event",
    "Evidence",
    "ExactSchedule",
    "Gemm",
    "Geometry",
    "HostSpec",
    "Limits",
    "MemorySpec",
    "MmeSpec",
    "Mode",
    "NetworkSpec",
    "OpClass",
    "OpCost",
    "OpWork",
    "Pipelined",
    "Prediction",
    "Recommendation",
    "RecordCost",
    "RunCost",
    "Source",
    "Step",
    "Task",
    "Timeline",
    "TpcSpec",
    "Walk",
    "Workload",
    "choose",
    "decoder_step",
    "exact_schedule",
    "gemm_seconds",
    "interval_bound",
    "known_decoders",
    "list_schedule",
    "load_chip",
    "lower_bound",
    "op_cost",
    "parse_chip",
    "pipeline",
    "predict",
    "program_schedule",
    "recommend",
    "record_cost",
    "run_cost",
    "simulate",
    "sliced_utilisation",
    "vendor_schedule",
]
