"""A conversation that grows under a prompt ID."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

from bench.prompts import sheet
from bench.stacks import BenchStack, Ran

# No run finds what an earlier one left on the disk.
_run_number = time.time_ns()
_numbers = itertools.count()


@dataclass(slots=True)
class Conversation:
    """A chat with one prompt ID, and all its messages."""

    stack: BenchStack
    answer_tokens: int
    number: int = field(default_factory=lambda: next(_numbers))
    messages: list[dict[str, str]] = field(default_factory=list)
    holder: str = ""
    num_known: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def prompt_id(self) -> str:
        """The name under which the workers keep it."""
        return f"bench-{_run_number}-{self.number}"

    async def turn(self) -> Ran:
        """Ask the next question under the prompt ID."""
        question = self._question()
        payload: dict[str, Any] = {"prompt_id": self.prompt_id}
        payload |= {"append": [question]} if self.messages else {"messages": [question]}
        ran = await self.stack.run(payload | {"max_tokens": self.answer_tokens})
        self.messages += [question, {"role": "assistant", "content": ran.text}]
        self.holder = ran.end.worker
        self.num_known = ran.end.usage.prompt_tokens + ran.end.usage.completion_tokens
        return ran

    async def turn_without_id(self, first_word: str = "", instead: str = "") -> Ran:
        """Ask the next question with all messages; the conversation stays as it is.

        ``instead`` is another question than the next one.
        """
        question = {"role": "user", "content": instead} if instead else self._question()
        messages = [*self.messages, question]
        if first_word:
            content = f"{first_word} {messages[0]['content']}"
            messages[0] = messages[0] | {"content": content}
        return await self.stack.run({"messages": messages, "max_tokens": self.answer_tokens})

    def _question(self) -> dict[str, str]:
        place = len(self.messages) // 2
        text = sheet(self.number, 32)[place * 4 % 32]
        return {"role": "user", "content": f"Run {_run_number}, question {place}. {text}".strip()}
