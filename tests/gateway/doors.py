"""What tests send to the HTTP door."""

from typing import Any

import httpx2

PROMPT = {"prompt": "Once"}


async def submit(client: httpx2.AsyncClient, **fields: Any) -> str:
    """Submit a job and return its ID."""
    response = await client.post("/v1/jobs", json={**PROMPT, **fields})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def check_problem(response: httpx2.Response, status: int, name: str) -> dict[str, Any]:
    """Return the problem document, which must be this one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:headrace:problem:{name}"
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"].endswith((".", ";")), body["detail"]
    return body
