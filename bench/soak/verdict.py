"""What grew, and whether it may. Pure."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from bench.soak.samples import JOB_KINDS, ProcessSample, Sample

MIB = 1024**2

MAX_RESIDENT = 10 * MIB  # an hour, of a process
MAX_FILES = 30.0  # an hour
MAX_THREADS = 1.0  # an hour
MAX_REDIS = 10 * MIB  # an hour, without the tenant's index
MIN_JUDGED_S = 600.0  # of the second half: over less, noise has a slope too
MAX_LIFE_S = 25.0  # from a submit to the end, with a lost or a frozen worker on the way
SPARE_KEYS = 4  # a worker comes back under a new ID before the old one is forgotten

Point = tuple[float, float]


class Growth(msgspec.Struct, frozen=True):
    """How a figure of one process changed: values at the start, in the middle, at the end."""

    what: str
    first: float
    middle: float
    last: float
    per_hour: float
    bound: float

    @property
    def is_flat(self) -> bool:
        """Tell whether the second half grew no faster than it may."""
        return self.per_hour <= self.bound


class KeyCount(msgspec.Struct, frozen=True):
    """The most keys of a kind at once, and the most that may be there."""

    kind: str
    most: int
    last: int
    allowed: int
    is_explained: bool


def slope_per_hour(points: Sequence[Point]) -> float:
    """Return the slope of the least-squares line through (seconds, value), per hour."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return rise / spread * 3600 if spread else 0.0


def second_half(points: Sequence[Point]) -> Sequence[Point]:
    """Return what was seen after the middle of the time."""
    if not points:
        return points
    middle_s = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle_s]


def growth(what: str, points: Sequence[Point], bound: float) -> Growth:
    """Return how a figure changed."""
    values = [value for _, value in points]
    per_hour = slope_per_hour(second_half(points))
    return Growth(what, values[0], values[len(values) // 2], values[-1], per_hour, bound)


def growths(samples: Sequence[Sample], long_lived: Iterable[str]) -> list[Growth]:
    """Return how every long-lived process changed, and the server's own memory."""
    figures: tuple[tuple[str, Callable[[ProcessSample], float], float], ...] = (
        ("resident", lambda process: process.resident, MAX_RESIDENT),
        ("open files", lambda process: process.files, MAX_FILES),
        ("threads", lambda process: process.threads, MAX_THREADS),
    )
    found = [
        growth(f"{name}, {what}", points_of(samples, name, value), bound)
        for name in long_lived
        for what, value, bound in figures
    ]
    memory = [(each.at_s, float(each.redis_bytes - each.index_bytes)) for each in samples]
    return [*found, growth("server, used_memory without the index", memory, MAX_REDIS)]


def points_of(
    samples: Iterable[Sample], name: str, value: Callable[[ProcessSample], float]
) -> list[Point]:
    """Return a figure of one process over the time."""
    return [
        (sample.at_s, value(process))
        for sample in samples
        for process in sample.processes
        if process.name == name
    ]


def is_long_enough(samples: Sequence[Sample]) -> bool:
    """Tell whether slopes mean anything."""
    return bool(samples) and (samples[-1].at_s - samples[0].at_s) / 2 >= MIN_JUDGED_S


def key_counts(samples: Sequence[Sample], retention_s: float) -> list[KeyCount]:
    """Return for each kind of key whether there were ever more than retention explains."""
    kinds = sorted({kind for sample in samples for kind in sample.keys})
    return [
        _of_jobs(samples, kind, retention_s) if kind in JOB_KINDS else _of_others(samples, kind)
        for kind in kinds
    ]


def _of_jobs(samples: Sequence[Sample], kind: str, retention_s: float) -> KeyCount:
    """Count the keys of jobs: they are there until the end, and for the retention after it."""
    window_s = retention_s + MAX_LIFE_S
    allowed = [_submitted_since(samples, sample.at_s - window_s, sample) for sample in samples]
    counts = [sample.keys.get(kind, 0) for sample in samples]
    return KeyCount(
        kind=kind,
        most=max(counts),
        last=counts[-1],
        allowed=max(allowed),
        is_explained=all(count <= most for count, most in zip(counts, allowed, strict=True)),
    )


def _submitted_since(samples: Sequence[Sample], since_s: float, now: Sample) -> int:
    """Return how many jobs were submitted since then, or a little more: samples are rare."""
    before = [sample.submitted for sample in samples if sample.at_s <= since_s]
    return now.submitted - (before[-1] if before else 0)


def _of_others(samples: Sequence[Sample], kind: str) -> KeyCount:
    """Count keys that depend on the fleet alone: the second half has no more than the first."""
    counts = [sample.keys.get(kind, 0) for sample in samples]
    middle = len(counts) // 2
    allowed = max(counts[:middle], default=0) + SPARE_KEYS
    later = max(counts[middle:])
    return KeyCount(kind, max(counts), counts[-1], allowed, later <= allowed)
