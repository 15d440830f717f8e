"""Which tensors to compute together, because an operation takes as long to start for one as for several."""

from collections.abc import Hashable, Iterable


def bundles(items: Iterable[tuple[Hashable, int, int]]) -> list[list[int]]:
    """Numbers of items of one kind, in order; a bundle ends where the sum of its costs would exceed the limit.

    Args:
        items: (kind, cost, limit) of each; a single item may cost more than the limit.
    Example:
        >>> bundles([("a", 2, 5), ("b", 1, 5), ("a", 3, 5), ("a", 1, 5)])
        [[0, 2], [1], [3]]
    """
    found: list[list[int]] = []
    last: dict[Hashable, tuple[list[int], int]] = {}
    for i, (kind, cost, limit) in enumerate(items):
        members, total = last.get(kind, ([], 0))
        if not members or total + cost > limit:
            members, total = [], 0
            found.append(members)
        members.append(i)
        last[kind] = members, total + cost
    return found
