"""What a worker measures, with vLLM's shapes and buckets so that its panels can be re-pointed."""

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from common.events import Ended

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
TPOT_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
JOB_BUCKETS = (
    0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
    1920, 7680,
)  # fmt: skip


class Metrics:
    """Counters and histograms of the jobs that this worker ended."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs_done = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._ended = Counter(
            "headrace_jobs_ended", "Jobs ended, by reason", ["finish_reason"],
            registry=self.registry,
        )  # fmt: skip
        self._prompt = Counter(
            "headrace_prompt_tokens", "Prompt tokens processed", registry=self.registry
        )
        self._generation = Counter(
            "headrace_generation_tokens", "Tokens generated", registry=self.registry
        )
        self._first_token = self._histogram(
            "time_to_first_token", "Accepted to first token, queue included", TTFT_BUCKETS
        )
        self._per_token = self._histogram(
            "time_per_output_token", "Decode time per token, without the first", TPOT_BUCKETS
        )
        self._queue = self._histogram("queue_time", "Accepted to started", JOB_BUCKETS)
        self._prefill = self._histogram("prefill_time", "Forward passes of the prompt", JOB_BUCKETS)
        self._decode = self._histogram("decode_time", "First to last token", JOB_BUCKETS)

    def observe(self, end: Ended) -> None:
        """Count an ended job."""
        self.jobs_done += 1
        self.prompt_tokens += end.usage.prompt_tokens
        self.completion_tokens += end.usage.completion_tokens
        self._ended.labels(end.finish_reason).inc()
        self._prompt.inc(end.usage.prompt_tokens)
        self._generation.inc(end.usage.completion_tokens)
        times = end.timings
        self._queue.observe(times.queue_s)
        self._prefill.observe(times.prefill_s)
        self._decode.observe(times.decode_s)
        if end.attempts > 1:
            return  # the first token was another worker's, and the pace is not of one run
        if times.first_token_s > 0:
            self._first_token.observe(times.queue_s + times.first_token_s)
        # Several answers share the time; how many tokens each has, the end does not say.
        if end.usage.completion_tokens > 1 and not end.choices:
            self._per_token.observe(times.decode_s / (end.usage.completion_tokens - 1))

    def serve(self, port: int) -> None:
        """Offer the metrics on a loopback port, from a thread of their own."""
        start_http_server(port, addr="127.0.0.1", registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"headrace_{name}_seconds", help_, buckets=buckets, registry=self.registry)
