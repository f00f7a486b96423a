"""The gate in small, in every test run: what is raced does the same maths on all sides."""

import pytest
from races import RACES, SAME, Size, difference, line_up

TINY = Size("tiny", d_in=16, d_sae=96, batch=64, k=4)


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
def test_all_sides_learn_the_same(race):
    assert difference(line_up(race, TINY, 2), 20) < SAME
