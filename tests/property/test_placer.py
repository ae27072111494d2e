"""Packing inodes into blocks: nothing overlaps, no tail crosses a block, little is wasted."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from eroseal.image.placer import BLOCK, OPEN_BLOCKS, Placer

units = st.lists(
    st.tuples(st.integers(32, 200).map(lambda size: size * 4), st.integers(0, 4095)), min_size=1, max_size=300
)


@given(start=st.integers(0, 20_000), units=units)
def test_units_do_not_overlap_and_tails_stay_in_a_block(start: int, units: list[tuple[int, int]]) -> None:
    placer = Placer(start)
    taken: list[tuple[int, int]] = []
    for head, tail in units:
        position = placer.place(head, tail)
        if position is None:
            # Only a tail that cannot lie in one block behind the head's odd end is sent elsewhere.
            assert head % 32 + tail > BLOCK
            continue
        assert position >= start
        assert position % 32 == 0
        assert position >= placer.end - (OPEN_BLOCKS + 2) * BLOCK
        if tail:
            assert (position + head) // BLOCK == (position + head + tail - 1) // BLOCK
        taken.append((position, position + head + tail))
    taken.sort()
    assert all(end <= following for (_, end), (following, _) in pairwise(taken))
    assert all(end <= placer.end for _, end in taken)


@given(st.lists(st.integers(1, 128), min_size=50, max_size=400))
def test_best_fit_wastes_little(slots: list[int]) -> None:
    placer = Placer(0)
    for count in sorted(slots, reverse=True):
        placer.best_fit(count)
    # Of blocks that best fit leaves, at most one is not more than half full: a second would have gone into it.
    assert placer.end // BLOCK <= 2 * sum(slots) / 128 + 1
