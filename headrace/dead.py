"""The jobs of an installation that were given up: what is known of them, and a second life."""

import secrets
from collections.abc import Sequence

from redis.asyncio import Redis

from common.dead_letters import DeadLetters, Filed, models_with_letters
from common.deadlines import due_ms
from common.errors import HeadraceError
from common.events import Accepted
from common.job_store import JobStore, NewJob
from common.jobs import ACTIVE
from common.keys import Keys
from common.lanes import Lanes
from common.names import idempotent_job_id
from common.settings import load
from common.tenant_jobs import TenantJobs


class Dead:
    """The dead letters of an installation."""

    def __init__(self, redis: Redis, keys: Keys, model: str) -> None:
        self._redis = redis
        self._keys = keys
        self._model = model
        self._store = JobStore(redis, keys)
        self._settings = load()

    async def all(self) -> list[tuple[DeadLetters, Filed]]:
        """Return every letter with where it lies, oldest first."""
        named = [self._model] if self._model else None
        models = named or await models_with_letters(self._redis, self._keys)
        places = [DeadLetters(self._redis, self._keys, model) for model in models]
        found = [(place, filed) for place in places for filed in await place.all()]
        return sorted(found, key=lambda each: each[1].at_ms)

    async def named(self, jobs: Sequence[str] | None) -> list[tuple[DeadLetters, Filed]]:
        """Return the letters of these jobs, without a list all; raises for a missing one."""
        found = await self.all()
        if jobs is None:
            return found
        missing = set(jobs) - {filed.letter.job for _, filed in found}
        if missing:
            raise HeadraceError(
                f"there is no dead letter of {min(missing)}; `headrace dead list` shows all"
            )
        return [each for each in found if each[1].letter.job in jobs]

    async def retry(self, place: DeadLetters, filed: Filed) -> str | None:
        """Submit the job anew and drop its letter; return the new job, None where it is unreadable.

        The new job's ID follows from the letter, so that one which is retried twice runs once.
        """
        letter = filed.letter
        if letter.spec is None:
            return None
        job_id = idempotent_job_id(filed.entry.encode(), letter.tenant, letter.job)
        new = NewJob(
            id=job_id,
            tenant=letter.tenant,
            spec=letter.spec,
            fingerprint=f"retry of {letter.job}",
            incarnation=secrets.token_hex(4),
            retention_s=self._settings.retention_s,
        )
        submitted = await self._store.submit(new, Accepted(job_id, place.model))
        if submitted.state in ACTIVE:
            spec, lanes = letter.spec, Lanes(self._redis, self._keys, place.model)
            due = due_ms(spec, submitted.created_ms, submitted.deadline_ms, is_started=False)
            await lanes.enqueue(job_id, letter.tenant, spec.priority, due)
        index = TenantJobs(self._redis, self._keys, self._settings)
        await index.add(letter.tenant, job_id, submitted.created_ms)
        await place.drop(filed.entry)
        return job_id
