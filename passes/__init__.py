"""The passes, one a file, and the default pipeline: two tuples that read down the page."""

from gaudicc.passes.assign_engines import AssignEngines
from gaudicc.passes.bound_dynamic_ops import BoundDynamicOps
from gaudicc.passes.canonicalize_layers import CanonicalizeLayers
from gaudicc.passes.check_integers import CheckIntegers
from gaudicc.passes.choose_branches import ChooseBranches
from gaudicc.passes.clean_up import CleanUp
from gaudicc.passes.decompose import Decompose
from gaudicc.passes.eliminate_control_flow import EliminateControlFlow
from gaudicc.passes.insert_bucket_guards import InsertBucketGuards
from gaudicc.passes.legalize_dtypes import LegalizeDtypes
from gaudicc.passes.legalize_ops import LegalizeOps
from gaudicc.passes.lower_semantic_ops import LowerSemanticOps
from gaudicc.passes.pad import Pad
from gaudicc.passes.partition_layers import PartitionLayers
from gaudicc.passes.recognize_attention import RecognizeAttention
from gaudicc.passes.recognize_moe import RecognizeMoe
from gaudicc.passes.recognize_norm import RecognizeNorm
from gaudicc.passes.recognize_rotary import RecognizeRotary
from gaudicc.passes.specialize import Specialize
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.passes.stagger_rows import StaggerRows
from gaudicc.passes.static_state import StaticState
from gaudicc.pipeline import Pass

# Once, on symbolic shapes. Recognition comes before decomposition, which would destroy what it looks for.
SYMBOLIC: tuple[Pass, ...] = (
    RecognizeAttention(),  # SDPA or matmul-softmax-matmul -> gaudicc.attention
    RecognizeNorm(),  # written-out RMS norm -> gaudicc.rms_norm
    EliminateControlFlow(),  # loops that only data ends -> recorded chunks of trips that may run once too often
    StaticState(),  # caches that grow by cat -> whole buffers, written by row; where compile is told to
    BoundDynamicOps(),  # lengths that only data knows -> largest lengths and counts
    Decompose(),  # composites the target does not register -> their parts
    CleanUp(),  # no-ops, repeats, constants
    CheckIntegers(),  # int64 that a Gaudi computes in 32 bits: proved to fit, or a flag that the host raises
    CanonicalizeLayers(),  # layers that are the same but for a number or a residual -> one body
    Pad(),  # dynamic sizes -> bounds and logical lengths; pads are proved harmless
    InsertBucketGuards(),  # what every call must satisfy
)

# Once per bucket, on static shapes. Legality depends on sizes, so legalisation comes late and its check is the authority.
STATIC: tuple[Pass, ...] = (
    Specialize(),  # the bucket's sizes in place of symbols
    CleanUp(),  # what became constant or no-op with it
    SplitAttention(),  # slices that keep MME and TPC busy, or left to the fused kernel, by the machine model
    LegalizeDtypes(),  # complex -> pairs of reals
    RecognizeRotary(),  # written-out rotary embedding -> gaudicc.rotary
    RecognizeMoe(),  # gated experts, weighted and summed up -> gaudicc.moe
    LowerSemanticOps(),  # fused kernel or plain ATen
    LegalizeOps(),  # unsupported ops -> supported ones, or a refusal
    CleanUp(),  # what rules repeat, and what they compute of constants
    AssignEngines(),  # MME, TPC or none
    StaggerRows(),  # halves of the rows, one's TPC work under the other's products, by the machine model
    PartitionLayers(),  # how many layers a recorded sub-graph holds
    ChooseBranches(),  # ifs whose sides are long -> decided by the host, one side alone is run
)

DEFAULT_PIPELINE: tuple[Pass, ...] = (*SYMBOLIC, *STATIC)

__all__ = [
    "DEFAULT_PIPELINE",
    "STATIC",
    "SYMBOLIC",
    "AssignEngines",
    "BoundDynamicOps",
    "CanonicalizeLayers",
    "CheckIntegers",
    "ChooseBranches",
    "CleanUp",
    "Decompose",
    "EliminateControlFlow",
    "InsertBucketGuards",
    "LegalizeDtypes",
    "LegalizeOps",
    "LowerSemanticOps",
    "Pad",
    "PartitionLayers",
    "RecognizeAttention",
    "RecognizeMoe",
    "RecognizeNorm",
    "RecognizeRotary",
    "Specialize",
    "SplitAttention",
    "StaggerRows",
    "StaticState",
]
