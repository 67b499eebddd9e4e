"""How many pictures go into one call: as many as fit well into a lease, and fewer where a call once failed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from pixelgate_common.contracts.storage import Leased

_MOST_SUSPECTS = 10_000


class Pace:
    """The batch size of one stage: halved when a batch takes a third of the lease, doubled again below a tenth."""

    def __init__(self, largest: int, lease_s: float, first: int | None = None) -> None:
        """`first` is the size to begin with, by default the `largest`: a slow model would hold up the very first."""
        self._largest, self._lease_s = largest, lease_s
        self.batch = largest if first is None else min(first, largest)

    def took(self, pictures: int, seconds: float) -> None:
        """Note how long a batch of so many pictures took, from its lease to its results."""
        if seconds > self._lease_s / 3:
            self.batch = max(1, min(self.batch, pictures) // 2)
        elif seconds < self._lease_s / 10 and pictures >= self.batch:
            self.batch = min(self._largest, self.batch * 2)


class Suspects:
    """Pictures that were part of a call that failed as a whole, and how many may go into one call with each.

    The number halves with every failure, so the picture that is to blame is alone after log2(batch) of them, and the
    others are done on the way.
    """

    def __init__(self) -> None:
        self._most: OrderedDict[int, int] = OrderedDict()

    def blame(self, items: Sequence[Leased]) -> None:
        """Note that a call with these pictures failed."""
        for item in items:
            self._most[item.image_id] = max(1, len(items) // 2)
            self._most.move_to_end(item.image_id)
        while len(self._most) > _MOST_SUSPECTS:
            self._most.popitem(last=False)

    def clear(self, items: Iterable[Leased]) -> None:
        """Note that these pictures are done, one way or the other."""
        for item in items:
            self._most.pop(item.image_id, None)

    def groups(self, items: Sequence[Leased]) -> list[list[Leased]]:
        """Return `items` in groups that may go into one call each; those above suspicion together and first."""
        groups: list[list[Leased]] = []
        by_most: dict[int, list[Leased]] = {}
        for item in items:
            by_most.setdefault(self._most.get(item.image_id, len(items)), []).append(item)
        for most in sorted(by_most, reverse=True):
            members = by_most[most]
            groups += [members[start : start + most] for start in range(0, len(members), most)]
        return groups
