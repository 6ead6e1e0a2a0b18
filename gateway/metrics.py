"""What a gateway measures of itself, and what it reads off Redis when it is scraped."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from common.lanes import Lanes
from common.registry import Registry

REQUEST_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip


class Metrics:
    """The gateway's own registry. Labels are routes, models and reasons, never IDs."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.jobs_accepted = Counter(
            "headrace_jobs_accepted", "Jobs accepted", ["model"], registry=registry
        )
        self.jobs_refused = Counter(
            "headrace_jobs_refused", "Jobs refused because too many wait", registry=registry
        )
        self.jobs_cancelled = Counter(
            "headrace_cancel_requests", "Cancels asked for", registry=registry
        )
        self.requests = Counter(
            "headrace_http_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.request_time = Histogram(
            "headrace_http_response_start_seconds",
            "Request received to response headers sent",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.subscribers = Gauge(
            "headrace_stream_subscribers", "Open streams and subscriptions", registry=registry
        )
        self.watched = Gauge("headrace_jobs_watched", "Jobs with subscribers", registry=registry)
        self.slow_closed = Gauge(
            "headrace_slow_consumers_closed", "Readers cut because they took nothing, ever",
            registry=registry,
        )  # fmt: skip
        self._redis_up = Gauge("headrace_redis_up", "Redis answered this scrape", registry=registry)
        self._waiting = self._by_model("headrace_num_jobs_waiting", "Jobs waiting in lanes")
        self._running = self._by_model("headrace_num_jobs_running", "Jobs held by workers")
        self._workers = self._by_model("headrace_workers", "Live workers")
        self._capacity = self._by_model("headrace_capacity", "Jobs that live workers run at once")
        self._heartbeat = Gauge(
            "headrace_worker_heartbeat_age_seconds", "Since the worker renewed its lease",
            ["model", "worker"], registry=registry,
        )  # fmt: skip
        self._tokens_per_s = Gauge(
            "headrace_worker_tokens_per_second", "Tokens generated, last seconds",
            ["model", "worker"], registry=registry,
        )  # fmt: skip
        self._fleet = (
            self._waiting, self._running, self._workers, self._capacity, self._heartbeat,
            self._tokens_per_s,
        )  # fmt: skip

    async def collect_fleet(self, lanes: list[Lanes], registry: Registry, lease_s: float) -> None:
        """Read queues and workers off Redis; two scrapes at once do not mix."""
        depths = {lane.model: await lane.depths() for lane in lanes}
        workers = await registry.workers()
        self._forget_fleet()
        self._redis_up.set(1)
        for model, found in depths.items():
            self._waiting.labels(model).set(sum(depth.waiting for depth in found))
            self._running.labels(model).set(sum(depth.pending for depth in found))
        for worker in workers:
            model, worker_id = worker.info.model, worker.info.id
            self._workers.labels(model).inc()
            self._capacity.labels(model).inc(worker.info.capacity)
            self._heartbeat.labels(model, worker_id).set(max(0.0, lease_s - worker.lease_s))
            self._tokens_per_s.labels(model, worker_id).set(worker.info.tokens_per_s)

    def lose_fleet(self) -> None:
        """Say that Redis does not answer, and nothing about what is in it."""
        self._forget_fleet()
        self._redis_up.set(0)

    def _forget_fleet(self) -> None:
        for gauge in self._fleet:
            gauge.clear()

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)

    def _by_model(self, name: str, help_: str) -> Gauge:
        return Gauge(name, help_, ["model"], registry=self.registry)
