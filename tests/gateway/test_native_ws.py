"""The ``event`` messages of a WebSocket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.events import Tokens
from gateway.dialects import native_ws
from tests.gateway.followers import EventMessage, decode_message
from tests.gateway.player import DONE


@pytest.mark.fault(31)
@given(st.text(), st.integers(0, 2**53))
def test_a_message_gives_the_event_back(text: str, n: int) -> None:
    """Whatever a token holds, the message is one JSON document with its job and number."""
    event = Tokens(0, (1,), text)
    assert decode_message(native_ws.frame("job_1", n, event)) == EventMessage("job_1", n, event)


def test_the_terminal_event_is_an_event_like_any_other() -> None:
    """Its fields are inside ``event``, beside its kind."""
    frame = native_ws.frame("job_1", 4, DONE)
    assert frame.startswith(b'{"type":"event","job":"job_1","n":4,"event":{"kind":"completed"')
    assert decode_message(frame).event == DONE
