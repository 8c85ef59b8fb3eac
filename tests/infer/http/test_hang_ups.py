import asyncio

import pytest

from ai.infer.http.hang_ups import HangUps


async def gone():
    return {"type": "http.disconnect"}


class Stays:
    """A client that says nothing more; `asked` is set once somebody listens."""

    def __init__(self):
        self.asked = asyncio.Event()

    async def __call__(self):
        self.asked.set()
        await asyncio.Event().wait()


def test_who_hangs_up_ends_the_own_wait_alone():
    async def run():
        hang_ups, client = HangUps(), Stays()
        first, second = hang_ups.begin(client), hang_ups.begin(gone)
        with pytest.raises(ConnectionResetError, match="the client hung up"):
            await second.done
        await client.asked.wait()
        assert not first.done.done()
        first.finish(None)
        await first.done
        hang_ups.end(first)
        hang_ups.end(second)

    asyncio.run(run())


def test_client_of_a_request_that_is_answered_soon_is_never_asked():
    async def run():
        hang_ups, soon, late = HangUps(), Stays(), Stays()
        first, second = hang_ups.begin(soon), hang_ups.begin(late)
        first.finish(None)
        hang_ups.end(first)
        await late.asked.wait()
        assert not soon.asked.is_set()
        hang_ups.end(second)

    asyncio.run(run())


def test_requests_that_come_later_and_in_another_loop_are_watched_too():
    hang_ups = HangUps()

    async def run():
        for _ in range(2):
            request = hang_ups.begin(gone)
            with pytest.raises(ConnectionResetError):
                await request.done
            hang_ups.end(request)
        hang_ups.end(hang_ups.begin(gone))  # its timer ends with this loop

    for _ in range(2):
        asyncio.run(run())
