"""A relay's storage under load, as a program to be killed: says on stdout what it was told is durable."""

import asyncio
import os
import sys

from relay.domain.delivery import settle
from relay.domain.message import Callback
from relay.main import open_storage
from storage.protocol import ClaimTerms
from tests.builders import NOW, a_message, an_attempt, next_id

TERMS = ClaimTerms(limit=100, lease_ms=30_000)
FAILED = Callback(url="https://example.com/failed")


async def main(url: str) -> None:
    storage = await open_storage(url)

    def say(word: str, number: int) -> None:
        os.write(1, f"{word} {number}\n".encode())

    async def worker(number: int) -> None:
        while True:
            messages = [
                a_message(body=b"x" * 500, max_retries=0, labels=("l",), failure_callback=FAILED)
                for _ in range(3)
            ]
            published = await storage.publish(messages, now=NOW, claim=TERMS)
            for message in messages:
                say("accepted", message.id)
            good, bad, _ = published.claims
            await storage.settle(
                [
                    settle(good, an_attempt(), next_id=next_id),
                    settle(bad, an_attempt(status=500), next_id=next_id),
                ]
            )
            say("delivered", good.message.id)
            say("failed", bad.message.id)

    await asyncio.gather(*(worker(number) for number in range(16)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
