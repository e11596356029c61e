"""Prints environment events with nats-py (`pip install "nats-py>=2.16"`), and acknowledges each after it is printed.

    python follow.py                                   continues where it ended
    python follow.py --replay-from 2026-01-22T10:00:00Z   begins again at a time

The variables AGENTBOX_EVENTS_URL, _USER and _PASSWORD are those that `make up` writes to .agentbox/local.env.
"""

import argparse
import asyncio
import json
import os
import sys
from datetime import datetime

import nats
from nats.errors import Error
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

STREAM = "ABX_EVENTS"
SUBJECTS = "abx.v1.evt.env.>"
WAIT = 5.0


def is_from_agentbox(subject: str, event: dict) -> bool:
    """Only a message on the subject of its own event was published by AgentBox."""
    return subject == f"abx.v1.evt.env.{event['owner']}.{event['environment_id']}.{event['kind']}"


async def subscribe(js, user: str, replay_from: datetime | None):
    """Opens the durable consumer, which has the name of the user."""
    if replay_from:
        try:
            await js.delete_consumer(STREAM, user)
        except NotFoundError:
            pass
    try:
        await js.consumer_info(STREAM, user)
    except NotFoundError:
        policy = DeliverPolicy.BY_START_TIME if replay_from else DeliverPolicy.ALL
        config = ConsumerConfig(
            name=user,
            durable_name=user,
            filter_subject=SUBJECTS,
            deliver_policy=policy,
            opt_start_time=replay_from,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=30,
            max_ack_pending=256,
        )
        await js.add_consumer(STREAM, config=config)
    return await js.pull_subscribe_bind(durable=user, stream=STREAM)


async def follow(subscription) -> None:
    while True:
        try:
            messages = await subscription.fetch(64, timeout=WAIT)
        except asyncio.TimeoutError:
            # There was no event. nats-py raises its own subclass of this error, and sometimes the error itself.
            continue
        for message in messages:
            event = json.loads(message.data)
            if not is_from_agentbox(message.subject, event):
                await message.term()
                continue
            message_id = (message.headers or {}).get("Nats-Msg-Id")
            sequence = message.metadata.sequence.stream
            print(json.dumps({"id": message_id, "sequence": sequence, "event": event}), flush=True)
            await message.ack_sync()


async def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--replay-from", metavar="TIME", type=datetime.fromisoformat, help="RFC 3339")
    replay_from = arguments.parse_args().replay_from
    user = os.environ["AGENTBOX_EVENTS_USER"]
    connection = await nats.connect(
        os.environ["AGENTBOX_EVENTS_URL"],
        user=user,
        password=os.environ["AGENTBOX_EVENTS_PASSWORD"],
        inbox_prefix=f"_INBOX_{user}",
        max_reconnect_attempts=-1,
    )
    js = connection.jetstream()
    while True:
        try:
            subscription = await subscribe(js, user, replay_from)
            # From now on the consumer has the position, also that of a replay.
            replay_from = None
            await follow(subscription)
        except Error as error:
            # NATS was lost.
            print(f"follow.py: {error!r}; retried", file=sys.stderr)
            await asyncio.sleep(0.5)


asyncio.run(main())
