"""How much the GPU benchmark times, and how little is enough to try it where there is none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """How much is timed, by default where there is a GPU."""

    shape: tuple[int, int, int] = (240, 240, 155)
    overrides: tuple[str, ...] = ()
    warm_up_steps: int = 5
    timed_steps: int = 30
    timed_passes: int = (
        150  # of the network, while sampling, all of the default recipe; what lies beyond is extrapolated
    )
    batches: tuple[int, ...] = (1, 8, 32, 64, 128)
    checked_slices: int = 4  # in the checks of invariance, and members of each
    checked_members: int = 8
    matrix: int = 8192  # rows and columns of those whose product is the device's limit


FULL = Amount()
TINY = Amount(
    shape=(32, 32, 32),
    overrides=(
        "network.width=16",
        "network.multipliers=[1,1]",
        "network.blocks=1",
        "network.attention=[1]",
        "network.heads=1",
        "network.head_width=null",
        "network.groups=8",
        "view.size=[32,32]",
        "view.drop=[4,4]",
        "preparation.spacing_mm=[6,6,null]",
        "training.batch=2",
        "training.workers=0",
        "sampling.network_batch=4",
    ),
    warm_up_steps=1,
    timed_steps=2,
    timed_passes=4,
    batches=(1, 2),
    checked_slices=2,
    checked_members=2,
    matrix=512,
)
