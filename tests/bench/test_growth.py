"""What becomes of several runs of a point."""

from bench.growth import Point, best


def test_each_figure_is_that_of_the_best_run() -> None:
    """A neighbour of the host may slow down the prefill of one run and the decoding of another."""
    other = Point(512, 1, 10, 20, 30, 40)
    runs = [Point(256, 1, 900, 50, 7, 3), other, Point(256, 1, 300, 90, 8, 3)]
    assert best(runs) == [Point(256, 1, 900, 90, 8, 3), other]
