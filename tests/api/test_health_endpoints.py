"""/healthz, /readyz and /metrics answer machines, without a token."""

from tests.api.rig import Rig


async def test_the_process_is_up_even_when_storage_is_gone(rig: Rig) -> None:
    await rig.storage.close()
    reply = await rig.call("GET", "/healthz", token=None)
    assert (reply.status, reply.json) == (200, {"status": "ok"})


async def test_who_does_not_answer_of_the_relays_processes_is_said(rig: Rig) -> None:
    rig.silent += ["worker 1 does not answer"]
    reply = await rig.call("GET", "/healthz", token=None)
    assert (reply.status, reply.error) == (503, "not healthy: worker 1 does not answer")


async def test_ready_means_that_nothing_is_wrong(rig: Rig) -> None:
    reply = await rig.call("GET", "/readyz", token=None)
    assert (reply.status, reply.json) == (200, {"status": "ready"})


async def test_what_keeps_the_relay_from_working_is_said(rig: Rig) -> None:
    rig.problems += ["storage does not answer", "the engine stands still"]
    reply = await rig.call("GET", "/readyz", token=None)
    assert reply.status == 503
    assert reply.error == "not ready: storage does not answer; the engine stands still"


async def test_metrics_are_prometheus_text(rig: Rig) -> None:
    reply = await rig.call("GET", "/metrics", token=None)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.body == b"relay_messages_live 3.0\n"
