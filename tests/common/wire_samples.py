"""One of every message that two processes exchange or that Redis keeps.

``python -m tests.common.wire_samples`` prints their bytes, to be kept as
``tests/common/wire/VERSION.json`` with every release: later versions must read them.
"""

import base64
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common import api_keys, dead_letters, events, jobs, registry
from common.api_keys import ApiKey, Scope
from common.dead_letters import Letter
from common.events import (
    Accepted,
    Alternative,
    Cancelled,
    ChoiceEnd,
    Completed,
    ErrorInfo,
    Expired,
    Failed,
    Reset,
    Retrying,
    Started,
    Timings,
    TokenLogprob,
    Tokens,
    Usage,
)
from common.jobs import FinishReason, JobSpec, Message, Priority, Sampling
from common.limits import Limits
from common.registry import KvCacheInfo, WorkerInfo, WorkerState


@dataclass(frozen=True, slots=True)
class Sample:
    """A message, and how it is written and read."""

    message: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


_SPEC = JobSpec(
    "m", 8, messages=(Message("user", "Hé"),), sampling=Sampling(0.5, seed=7, logit_bias={3: -1.5}),
    stop=("end",), priority=Priority.HIGH, prompt_id="chat", metadata={"k": "v"}, if_version=2,
    stop_token_ids=(2,), min_tokens=1, n=2, logprobs=1, echo=True, allow_reset=True,
    queue_deadline_s=5.0, run_deadline_s=60.0,
)  # fmt: skip
_LOGPROB = TokenLogprob(5, "é", -0.25, (Alternative(6, "e", -1.5),))
_END: dict[str, Any] = {
    "is_eos": True,
    "usage": Usage(3, 2, 1),
    "timings": Timings(0.1, 0.2, 0.3, 0.4),
    "attempts": 2,
    "worker": "w1",
    "choices": (ChoiceEnd(0, FinishReason.STOP, is_eos=True),),
    "prompt_version": 4,
}
_LOST = ErrorInfo("worker-lost", "gone")
_EVENTS: Mapping[str, Any] = {
    "accepted": Accepted("job_1", "m"),
    "started": Started("w1", 2, "partial"),
    "tokens": Tokens(3, (5, 6), "é\n", 1, (_LOGPROB,)),
    "echo": Tokens(0, (), "Hé", echo=True),
    "retrying": Retrying("worker_lost"),
    "reset": Reset("another version"),
    "completed": Completed(FinishReason.STOP, **_END),
    "failed": Failed(FinishReason.ERROR, error=_LOST),
    "cancelled": Cancelled(FinishReason.CANCELLED),
    "expired": Expired(FinishReason.EXPIRED, error=ErrorInfo("deadline", "late")),
}
_WORKER = WorkerInfo(
    "w1", "host", 7, "m", "0.1.0", "local", "cpu", "int8", WorkerState.BUSY, "loading 50%", 32, 3,
    8192, 81.5, 9, 100, 50, 1, KvCacheInfo(16, 100, 10, 20, 30, 25, 5, 5, 1000, 2000, 3000, 40, 50),
)  # fmt: skip
_KEY = ApiKey("0a", "acme", (Scope.READ,), b"\x01", 5, 9, "laptop", Limits(1, 2, 3, 0.5))
_LETTER = Letter("job_1", "acme", _LOST, _SPEC, 3, 40, (_EVENTS["accepted"], _EVENTS["started"]))

SAMPLES: Mapping[str, Sample] = {
    **{
        f"event {kind}": Sample(event, events.encode_event, events.decode_event)
        for kind, event in _EVENTS.items()
    },
    "job": Sample(_SPEC, jobs.encode_spec, jobs.decode_spec),
    "worker": Sample(_WORKER, registry._encoder.encode, registry._decoder.decode),
    "api key": Sample(_KEY, api_keys._encoder.encode, api_keys._decoder.decode),
    "letter": Sample(_LETTER, dead_letters.encode_letter, dead_letters._decoder.decode),
}

if __name__ == "__main__":
    written = {
        name: base64.b64encode(sample.encode(sample.message)).decode()
        for name, sample in SAMPLES.items()
    }
    sys.stdout.write(json.dumps(written, indent=2) + "\n")
