"""What the client reads is what the gateway writes, though neither imports the other."""

import msgspec
import pytest

from common.registry import KvCacheInfo
from gateway import schemas
from headrace import views

PAIRS = [
    (views.JobRequest, schemas.JobRequest),
    (views.Submitted, schemas.SubmittedJob),
    (views.Job, schemas.JobView),
    (views.Choice, schemas.ChoiceView),
    (views.JobPage, schemas.JobList),
    (views.Cancellation, schemas.CancelledJob),
    (views.Worker, schemas.WorkerView),
    (views.KvCache, KvCacheInfo),
    (views.Prompt, schemas.PromptView),
    (views.Workers, schemas.WorkerList),
    (views.Model, schemas.ModelView),
    (views.Models, schemas.ModelList),
    (views.Readiness, schemas.Readiness),
    (views.ProblemDocument, schemas.ProblemView),
]


@pytest.mark.parametrize(("read", "written"), PAIRS, ids=lambda pair: pair.__name__)
def test_the_client_knows_no_field_that_the_gateway_lacks(
    read: type[msgspec.Struct], written: type[msgspec.Struct]
) -> None:
    """Every field of a client's type is one of the gateway's."""
    assert set(read.__struct_fields__) <= set(written.__struct_fields__)
