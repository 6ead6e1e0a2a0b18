"""Every key, group and channel in Redis: its type, its owner and how long it lives.

``{…}`` is the cluster's hash tag: no script touches two tags. ``JOB``, ``MODEL``, ``TENANT`` and
``WORKER`` are names that passed :func:`common.names.is_name`, so no key can be forged.

================================  =======  =====================================  ==================
key                               type     what                                   lives
================================  =======  =====================================  ==================
``{j:JOB}:job``                   hash     the job record                         deadline+retention
``{j:JOB}:log``                   stream   the events, entry ``0-(n+1)``          same
``{j:JOB}:live``                  channel  the doorbell                           -
``{m:MODEL}:lane:PRIO:TENANT``    stream   job IDs, group ``workers``             until it is empty
``{m:MODEL}:lane:worker:WORKER``  stream   job IDs that this worker should take   until it is empty
``{m:MODEL}:lane:orphans``        stream   job IDs that lost their worker         until it is empty
``{m:MODEL}:lanes``               set      the suffixes of the lanes that exist   until it is empty
``{m:MODEL}:ring:PRIO``           zset     tenants with waiting work, by turn     until it is empty
``{m:MODEL}:clock:PRIO``          string   the ring's time, of the last turn          an hour
``{m:MODEL}:full:PRIO``           set      tenants whose slots are all in use     until it is empty
``{m:MODEL}:owners``              hash     tenants of unfinished jobs             until it is empty
``{m:MODEL}:slots``               set      unfinished jobs that have a slot       until it is empty
``{m:MODEL}:tenants``             hash     each tenant's jobs, slots and share;   until it is empty
                                           ``own:WORKER``: the rings are next
``{m:MODEL}:bucket:TENANT``       hash     tokens a tenant may still ask for      a minute
``{m:MODEL}:dead``                stream   dead letters                           a week
``{m:MODEL}:affinity``            zset     workers with such a lane, by steal_at  until it is empty
``{m:MODEL}:jobs``                zset     unfinished jobs by deadline (ms)       until it is empty
``{m:MODEL}:workers``             zset     workers by lease deadline (ms)         until it is empty
``{m:MODEL}:draining``            set      workers that no job should wait for    until it is empty
``{m:MODEL}:sweeper``             string   who sweeps now                         its lease
``{m:MODEL}:bell``                channel  "there is work"                        -
``{m:MODEL}:prompt:TENANT:PID``   hash     what a prompt ID stands for            prompt_ttl_s
``worker:WORKER``                 hash     what the worker says of itself         lease
``worker:WORKER:ctl``             channel  cancel or forget, now                  -
``models``                        zset     models by last lease deadline (ms)     one day
``jobs:TENANT``                   zset     a tenant's jobs by creation (ms)       deadline+retention
``secret``                        string   key of IDs and links made by hash      for ever
``api_keys``                      hash     API keys by ID, without their secrets  until revoked
``recovered:RUN``                 string   who looked at all jobs after a start   a week
``probe:GATEWAY``                 channel  the relay's own liveness probe         -
================================  =======  =====================================  ==================
"""

from dataclasses import dataclass

from common.jobs import Priority

GROUP = "workers"
ORPHANS = "orphans"


def scoped(tenant: str, name: str) -> str:
    """Return ``tenant:name``, from which both can be told: names may have colons of their own.

    No name has a ``%`` (``common.names.is_name``), so no other pair gives the same text.
    """
    return f"{tenant.replace(':', '%3A')}:{name}"


def unscoped(text: str) -> tuple[str, str]:
    """Return the tenant and the name of ``scoped``."""
    tenant, _, name = text.partition(":")
    return tenant.replace("%3A", ":"), name


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job; all share one hash tag."""

    record: str
    log: str
    live: str


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """The keys of one model; all share one hash tag."""

    prefix: str
    lanes: str
    jobs: str
    workers: str
    sweeper: str
    bell: str
    affinity: str
    draining: str
    owners: str
    slots: str
    tenants: str
    dead: str

    def lane(self, suffix: str) -> str:
        """Return the stream of a lane: ``orphans``, ``PRIO:TENANT`` or ``worker:WORKER``."""
        return f"{self.prefix}:lane:{suffix}"

    def prompt(self, tenant: str, prompt_id: str) -> str:
        """Return what is stored under a tenant's prompt ID."""
        return f"{self.prefix}:prompt:{scoped(tenant, prompt_id)}"

    def ring(self, priority: Priority) -> str:
        """Return the ring of the tenants that wait at this priority."""
        return f"{self.prefix}:ring:{priority}"

    def bucket(self, tenant: str) -> str:
        """Return the bucket of the tokens that a tenant may ask for in a minute."""
        return f"{self.prefix}:bucket:{tenant}"

    @property
    def turns(self) -> list[str]:
        """Return what ``_tenants.lua`` takes first: who has what, and whose turn it is."""
        rings = [
            f"{self.prefix}:{name}:{priority}"
            for priority in Priority
            for name in ("ring", "clock", "full")
        ]
        return [self.jobs, self.owners, self.slots, self.tenants, *rings]


@dataclass(frozen=True, slots=True)
class Keys:
    """Names under one prefix, so that several installations can share a server."""

    prefix: str = "hr"

    def job(self, job_id: str) -> JobKeys:
        """Return the keys of a job."""
        tag = f"{self.prefix}:{{j:{job_id}}}"
        return JobKeys(record=f"{tag}:job", log=f"{tag}:log", live=f"{tag}:live")

    @property
    def any_record(self) -> str:
        """Return the pattern of all job records."""
        return f"{self.prefix}:{{j:*}}:job"

    def job_of_record(self, name: str) -> str:
        """Return the job whose record the key is."""
        return name[len(self.prefix) + len(":{j:") : -len("}:job")]

    @property
    def any_dead(self) -> str:
        """Return the pattern of all streams of dead letters."""
        return f"{self.prefix}:{{m:*}}:dead"

    def model_of_dead(self, name: str) -> str:
        """Return the model whose dead letters the key has."""
        return name[len(self.prefix) + len(":{m:") : -len("}:dead")]

    def recovery(self, run_id: str) -> str:
        """Return what says that all jobs were looked at since the server began this run."""
        return f"{self.prefix}:recovered:{run_id}"

    def job_of_live(self, channel: str) -> str:
        """Return the job whose doorbell the channel is."""
        return channel[len(self.prefix) + len(":{j:") : -len("}:live")]

    def model(self, model: str) -> ModelKeys:
        """Return the keys of a model."""
        tag = f"{self.prefix}:{{m:{model}}}"
        return ModelKeys(
            prefix=tag,
            lanes=f"{tag}:lanes",
            jobs=f"{tag}:jobs",
            workers=f"{tag}:workers",
            sweeper=f"{tag}:sweeper",
            bell=f"{tag}:bell",
            affinity=f"{tag}:affinity",
            draining=f"{tag}:draining",
            owners=f"{tag}:owners",
            slots=f"{tag}:slots",
            tenants=f"{tag}:tenants",
            dead=f"{tag}:dead",
        )

    def worker(self, worker_id: str) -> str:
        """Return the hash in which a worker describes itself."""
        return f"{self.prefix}:worker:{worker_id}"

    def worker_ctl(self, worker_id: str) -> str:
        """Return the channel on which a worker is told to cancel a job or forget a prompt now."""
        return f"{self.prefix}:worker:{worker_id}:ctl"

    @property
    def models(self) -> str:
        """Return the index of the models that had a worker in the last day."""
        return f"{self.prefix}:models"

    @property
    def secret(self) -> str:
        """Return the fleet's key of all keyed hashes, made by the first gateway."""
        return f"{self.prefix}:secret"

    @property
    def api_keys(self) -> str:
        """Return the hash of the API keys."""
        return f"{self.prefix}:api_keys"

    def tenant_jobs(self, tenant: str) -> str:
        """Return the index of a tenant's jobs."""
        return f"{self.prefix}:jobs:{tenant}"

    def probe(self, gateway_id: str) -> str:
        """Return the channel on which a relay proves that messages still arrive."""
        return f"{self.prefix}:probe:{gateway_id}"
