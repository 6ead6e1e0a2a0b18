"""Random numbers are a function of seed, position and choice."""

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.local.sampling.randomness import uniform

seeds = st.integers(0, 2**63 - 1)


def test_the_first_choice_has_the_numbers_of_releases_without_choices() -> None:
    """Jobs that were begun by the last release go on with the same numbers."""
    known = {
        (0, 0): 0.0564663990004608,
        (1, 0): 0.6487508310490744,
        (7, 123): 0.01911069159000245,
        (2**63 - 1, 2**40): 0.7939291875438194,
    }
    assert {place: uniform(*place) for place in known} == known


@given(seeds, st.integers(0, 2**40), st.integers(0, 200))
def test_a_number_is_at_least_0_and_below_1(seed: int, position: int, choice: int) -> None:
    """The number can be a share of the probability mass."""
    assert 0 <= uniform(seed, position, choice) < 1


def test_seed_position_and_choice_each_change_the_number() -> None:
    """No two places share a number, the same place always has the same."""
    places = [(s, p, c) for s in range(10) for p in range(10) for c in range(10)]
    assert len({uniform(*place) for place in places}) == 1000
    assert uniform(3, 4, 5) == uniform(3, 4, 5)
