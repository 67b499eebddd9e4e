import asyncio

from pixelgate_common.health import run_checks


async def fine() -> str:
    return "42 rows"


async def broken() -> None:
    raise ConnectionError("nobody listens there")


async def hangs() -> None:
    await asyncio.sleep(60)


async def test_one_part_that_fails_makes_only_itself_and_the_whole_unready() -> None:
    readiness = await run_checks({"database": fine, "index": broken, "objects": hangs}, timeout_s=0.05)
    assert readiness.ready is False
    assert readiness.parts["database"].model_dump() == {"ready": True, "detail": "42 rows"}
    assert readiness.parts["index"].detail == "nobody listens there"
    assert "no answer within" in readiness.parts["objects"].detail


async def test_all_parts_ready_is_ready() -> None:
    assert (await run_checks({"database": fine})).ready is True


async def test_an_optional_part_that_fails_is_shown_and_leaves_the_whole_ready() -> None:
    readiness = await run_checks({"database": fine, "index": broken}, optional={"index"})
    assert readiness.ready is True
    assert readiness.parts["index"].model_dump() == {"ready": False, "detail": "nobody listens there"}
    assert (await run_checks({"database": broken, "index": fine}, optional={"index"})).ready is False
