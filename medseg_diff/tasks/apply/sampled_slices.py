"""Which slices of a case are sampled: those that hold brain, without those that a recipe leaves out on purpose."""

from medseg_diff.data.transforms import Prepared
from medseg_diff.data.views import AnyView
from medseg_diff.errors import ImageError, counted


def slices_to_sample(view: AnyView, prepared: Prepared) -> list[int]:
    """The places of the pieces to sample. Raises: ImageError where the recipe leaves out every slice with brain."""
    chosen = view.for_sampling(prepared.brain)
    if not chosen and (held := _with_brain(view, prepared)):
        raise ImageError(
            f"all {counted(held, 'slice')} with brain lie where the recipe samples none (view.drop)",
            fix="use a model whose recipe has view.sample_dropped",
            case=prepared.name,
        )
    return chosen


def left_out(view: AnyView, prepared: Prepared) -> list[str]:
    """A warning of the slices with brain that stay empty."""
    held, chosen = _with_brain(view, prepared), len(view.for_sampling(prepared.brain))
    if not chosen or chosen == held:
        return []
    return [f"{held - chosen} of {held} slices with brain are left empty: the recipe samples none there (view.drop)"]


def _with_brain(view: AnyView, prepared: Prepared) -> int:
    """How many of the pieces hold brain."""
    return int(view.cut(prepared.brain).flatten(1).any(1).sum())
