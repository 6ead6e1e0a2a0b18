"""Listens to the model's bell ("there is work") and to this worker's own channel.

That one says the ID of a job to cancel now, or whose sequence to forget.

Both are only hints: the worker polls for work, and every append asks for the cancel flag.
"""

import asyncio
from collections.abc import Callable

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from common.connections import UNAVAILABLE
from common.keys import Keys
from common.prompts import read_forget
from worker.backend import RETRY_S

_log = structlog.get_logger()


class Bell:
    """One subscription connection, renewed for ever."""

    def __init__(self, redis: Redis, keys: Keys, model: str) -> None:
        self._redis = redis
        self._keys = keys
        self._bell = keys.model(model).bell
        self._control = ""  # the channel of the current worker ID
        self._pubsub: PubSub | None = None  # set while connected
        self.on_connect: Callable[[], None] = lambda: None  # called on every new connection
        # Called with a tenant and the token IDs of a sequence of its own.
        self.on_forget: Callable[[str, tuple[int, ...]], None] = _ignore

    async def rename(self, worker_id: str) -> None:
        """Listen to the channel of this worker ID from now on."""
        self._control = self._keys.worker_ctl(worker_id)
        if self._pubsub is None:
            return
        try:
            await self._pubsub.subscribe(self._control)
        except UNAVAILABLE as error:  # ``listen`` meets the same and subscribes anew
            _log.warning("rename_failed", error=str(error))

    async def listen(self, on_work: Callable[[], None], on_cancel: Callable[[str], None]) -> None:
        """Call back for every message; ends only by cancellation."""
        while True:
            try:
                await self._listen_once(on_work, on_cancel)
            except UNAVAILABLE as error:
                _log.warning("bell_lost", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _listen_once(
        self, on_work: Callable[[], None], on_cancel: Callable[[str], None]
    ) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(self._bell, self._control)
            self._pubsub = pubsub
            try:
                self.on_connect()
                on_work()  # it may have rung before
                async for message in pubsub.listen():
                    if message["channel"] == self._bell.encode():
                        on_work()
                    else:
                        self._obey(message["data"].decode(), on_cancel)
            finally:
                self._pubsub = None

    def _obey(self, message: str, on_cancel: Callable[[str], None]) -> None:
        forgotten = read_forget(message)
        if forgotten is None:
            on_cancel(message)
        else:
            self.on_forget(*forgotten)


def _ignore(_tenant: str, _ids: tuple[int, ...]) -> None:
    pass
