"""What a release has written, every later version reads: two of them may run side by side."""

import base64
import json
from pathlib import Path

import pytest

from tests.common.wire_samples import SAMPLES

RELEASES = sorted((Path(__file__).parent / "wire").glob("*.json"))


@pytest.mark.parametrize("name", SAMPLES)
def test_todays_messages_are_read(name: str) -> None:
    """Each comes back as it was sent."""
    sample = SAMPLES[name]
    assert sample.decode(sample.encode(sample.message)) == sample.message


@pytest.mark.fault(7)
@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_releases_messages_are_read(release: Path, name: str) -> None:
    """With the meaning that they had then; what is newer than the release is not in its file."""
    kept = json.loads(release.read_text())
    if name in kept:
        assert SAMPLES[name].decode(base64.b64decode(kept[name])) == SAMPLES[name].message


def test_there_is_a_release_to_read() -> None:
    """The newest one has every kind of message that there is."""
    assert json.loads(RELEASES[-1].read_text()).keys() == SAMPLES.keys()


@pytest.mark.control(7)
def test_a_field_that_has_gone_is_seen() -> None:
    """The control: a message of a release that lacks what is needed is not read."""
    sample = SAMPLES["event accepted"]
    with pytest.raises(ValueError, match="model"):
        sample.decode(b"\x82\xa4kind\xa8accepted\xa3job\xa5job_1")
