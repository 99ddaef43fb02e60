"""Fitting a table into a terminal: which columns stay, and how wide.

Belongs here: the choice, in character cells. Not here: drawing (`tables`), what columns there are (the commands).
"""

from collections.abc import Sequence
from dataclasses import dataclass

COMFORT = 20  # cells that columns are shortened to before others are left out: most of a name, and the mark
LEAST = 12  # cells that a shortened column keeps in any case: the beginning of a name still says something


@dataclass(frozen=True, slots=True)
class Wish:
    """What one column asks for.

    Args:
        width: cells that it takes in full.
        rank: 0 stays in any case; of the others the highest is left out first.
        whole: it is never shortened, as what is meant to be copied.
    """

    width: int
    rank: int
    whole: bool

    def shortened(self, cells: int) -> int:
        """Its width where columns are shortened to so many cells."""
        return self.width if self.whole else min(self.width, cells)


def fit(wishes: Sequence[Wish], room: int, gap: int) -> dict[int, int]:
    """The columns that are shown, by index in their order, and their widths.

    Columns are left out only if shortening is not enough; what does not fit even then is wider than the room.

    Args:
        wishes: of every column. room: cells of a line. gap: cells between two columns.
    """
    shown = list(range(len(wishes)))

    def taken(widths: Sequence[int]) -> int:
        return sum(widths) + gap * (len(widths) - 1)

    while taken([wishes[index].shortened(COMFORT) for index in shown]) > room:
        last = max(shown, key=lambda index: (wishes[index].rank, index))
        if not wishes[last].rank:
            break
        shown.remove(last)
    widths = {index: wishes[index].width for index in shown}
    for least in (COMFORT, LEAST):
        floors = {index: wishes[index].shortened(least) for index in shown}
        while taken(list(widths.values())) > room and (
            loose := [index for index in shown if widths[index] > floors[index]]
        ):
            widths[max(loose, key=lambda index: widths[index])] -= 1  # the widest gives first
    return widths
