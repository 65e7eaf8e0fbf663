"""Every failure a user can meet: one class each, rendered as what, where and what to do.

Faults of gaudicc itself are `InternalError`; everything else is the user's to mend and says how.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Where:
    """The place an error points at.

    Attributes:
        source: the user's `file:line`, or None when no node is at fault.
        op: the op at fault, e.g. `aten.nonzero.default`.
        module: the module path, e.g. `layers.0.attn`.
        stage: the pass or stage that noticed.
    """

    source: str | None = None
    op: str | None = None
    module: str | None = None
    stage: str | None = None

    def __str__(self) -> str:
        parts = [self.source, self.op, self.module and f"in {self.module}", self.stage and f"during {self.stage}"]
        return ", ".join(part for part in parts if part)


class GaudiccError(Exception):
    """Base of all errors: three lines, of which `where` may be empty.

    Args:
        what: what went wrong, one sentence.
        where: the place, if one is known.
        hint: what to do; defaults to the class's own `hint`.
    """

    hint = ""

    def __init__(self, what: str, *, where: Where | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where or Where()
        self.todo = hint if hint is not None else self.hint
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if place := str(self.where):
            lines.append(f"  where: {place}")
        if self.todo:
            lines.append(f"  to do: {self.todo}")
        return "\n".join(lines)


class InputError(GaudiccError):
    """An argument of a gaudicc function is not what it must be."""


class ModelFileError(GaudiccError):
    """A file or folder given as model, bundle or input cannot be read."""

    hint = "check the path; `gaudicc --help` shows what each command reads"


class CaptureError(GaudiccError):
    """The model could not be captured."""

    hint = "run `gaudicc check` to list what stands in the way"


class DynamicControlFlowError(CaptureError):
    """Python in the model decides on the value of a tensor."""

    hint = "let the decision stay on tensors (torch.where, torch.cond), or make the value an argument of the model"


class LoopOverflowError(GaudiccError):
    """A loop of a mended program would run past the maximum that was declared for it."""

    hint = "capture again with a larger max_trips"


class ModelRaisedError(CaptureError):
    """The model itself raised while it was run on the example inputs."""

    hint = "call the model with the same example inputs in eager PyTorch and mend that first"


class TrainingModeError(CaptureError):
    """The module is in training mode."""

    hint = "call model.eval() first: dropout and batch statistics must not be recorded"


class WeightChangedError(CaptureError):
    """The model changes its own weights in forward."""

    hint = "call it once before it is compiled, if it scales its weights then; otherwise make a buffer of it"


class AutocastError(CaptureError):
    """Autocast is active around capture or a call."""

    hint = "leave the autocast block and pass gaudicc.compile(..., autocast=torch.bfloat16), which bakes its casts in"


class GradError(CaptureError):
    """An input requires grad: gaudicc compiles inference only."""

    hint = "call under torch.no_grad(), or detach the input"


class UnsupportedInputError(CaptureError):
    """A model or an argument has a form that gaudicc refuses."""


class ShapeError(GaudiccError):
    """An input's shape is not one the model was compiled for."""


class BucketMissError(ShapeError):
    """No bucket holds this shape."""

    hint = "add a bucket that dominates the shape, or raise the bound in dynamic_shapes"


class RecordForbiddenError(GaudiccError):
    """A call needs a recording that is not there, and `forbid_records` forbade to make it."""

    hint = "call warm_up() before forbid_records()"


class PaddingError(GaudiccError):
    """Padding cannot be proved harmless for an op."""

    hint = "fix the size in dynamic_shapes, list buckets that need no padding there, or rewrite the line"


class TargetError(GaudiccError):
    """The target chip or its table is unknown or malformed."""


class DeviceError(GaudiccError):
    """The device is unknown or does not answer."""

    hint = "`gaudicc doctor` shows which devices answer here"


class UnsupportedOpError(GaudiccError):
    """An op is not legal on the target and no rule makes it so."""

    hint = "rewrite the line with the alternative named, or pass on_unsupported='host'"


class PipelineError(GaudiccError):
    """The order of the passes cannot be proved right."""


class PreconditionError(PipelineError):
    """A pass met a program without an invariant that it requires."""


class PostconditionError(PipelineError):
    """A pass broke an invariant, or did not establish one that it ensures."""


class NumericsError(PipelineError):
    """A pass changed what the program computes."""


class LoweringError(GaudiccError):
    """A program cannot be turned into a plan."""


class BundleError(GaudiccError):
    """A bundle is damaged, doctored, or of another version."""

    hint = "save the compiled model again; a bundle is data only and nothing of this one was run"


class StateError(GaudiccError):
    """The state of a compiled model cannot be used this way."""


class InternalError(GaudiccError):
    """A fault of gaudicc."""

    hint = "please report this with the output of `gaudicc doctor`"
