"""The prompt IDs of a worker's jobs: what a job builds on, and what it leaves behind."""

import msgspec

from common.endings import Choose, usage_so_far
from common.errors import HeadraceError
from common.events import Completed, ErrorInfo, Failed
from common.job_record import JobRecord, Snapshot
from common.jobs import FinishReason, JobSpec
from common.prompts import Commit, PromptIndex, StoredPrompt
from common.token_ids import pack_ids
from worker.attempt import AttemptLog
from worker.engine.protocol import Engine, EngineStats


class Unbuildable(HeadraceError):
    """What the job wants to build on is not what is stored; ``error`` says it to the client."""

    def __init__(self, error: ErrorInfo) -> None:
        super().__init__(error.detail)
        self.error = error


async def find_base(prompts: PromptIndex, record: JobRecord) -> bytes:
    """Return the stored sequence (packed IDs) that the job builds on, empty where on none.

    A job that was started before builds on what it built on then, though the index has moved.
    Raises ``Unbuildable``.
    """
    spec = record.spec
    if record.base or not _asks_index(record):
        return record.base
    stored = await prompts.use(record.tenant, spec.prompt_id) if spec.prompt_id else None
    if spec.builds_on_stored and stored is None:
        raise Unbuildable(_not_found(spec))
    if record.attempts == 0:
        _check_version(spec, stored)
    return pack_ids(stored.ids) if stored is not None and spec.builds_on_stored else b""


def end_unbuildable(record: JobRecord, error: ErrorInfo) -> Choose:
    """Return what ends the job with this error, unless somebody has started it meanwhile."""

    def choose(latest: Snapshot) -> Failed | None:
        if latest.record.attempts != record.attempts:
            return None
        usage, attempts = usage_so_far(latest.events), latest.record.attempts
        return Failed(FinishReason.ERROR, usage=usage, attempts=attempts, error=error)

    return choose


def has_to_commit(log: AttemptLog) -> bool:
    """Tell whether the attempt has completed, and left a sequence that is not stored yet."""
    is_done = isinstance(log.end, Completed) and not log.end.prompt_version
    return is_done and bool(log.sequence and log.grant.snapshot.record.spec.prompt_id)


async def commit(prompts: PromptIndex, log: AttemptLog, engine: Engine) -> None:
    """Store the sequence of a completed attempt, and put its version into the attempt's end.

    Nothing happens where there is no sequence, or where it was done. Safe to repeat.
    """
    record, end = log.grant.snapshot.record, log.end
    if not has_to_commit(log):
        return
    assert isinstance(end, Completed)
    assert record.spec.prompt_id
    sequence = Commit(
        job=record.id,
        epoch=log.grant.epoch,
        worker=log.grant.worker_id,
        ids=log.sequence,
        recompute_ms=_recompute_ms(len(log.sequence), engine.stats()),
    )
    version = await prompts.commit(record.tenant, record.spec.prompt_id, sequence)
    log.end = msgspec.structs.replace(end, prompt_version=version)


def _asks_index(record: JobRecord) -> bool:
    is_first = record.attempts == 0
    return record.spec.builds_on_stored or (is_first and record.spec.if_version is not None)


def _not_found(spec: JobSpec) -> ErrorInfo:
    detail = (
        f"Nothing is stored under the prompt ID {spec.prompt_id!r} any more; "
        "submit the job again with its full prompt."
    )
    return ErrorInfo("prompt-not-found", detail)


def _check_version(spec: JobSpec, stored: StoredPrompt | None) -> None:
    version = stored.version if stored is not None else 0
    if spec.if_version in (None, version):
        return
    detail = (
        f"The job was to build on version {spec.if_version} of {spec.prompt_id!r}, and version "
        f"{version} was there when it started; look at what has changed, and submit it again."
    )
    raise Unbuildable(ErrorInfo("prompt-version-conflict", detail))


def _recompute_ms(length: int, stats: EngineStats) -> int:
    rate = stats.prefill_tokens_per_s
    return round(1000 * length / rate) if rate > 0 else 0
