/** The relay under test, as its environment names it: identities, clients, and questions several tests ask. */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

import { Client, QstashError, Receiver } from "@upstash/qstash";

const PATIENCE_MS = 15_000;

/** The development identities that the QStash documentation publishes; the first is the environment's. */
export const IDENTITIES = [
  [
    "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=",
    "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
    "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
  ],
  [
    "eyJVc2VySUQiOiJ0ZXN0VXNlcjEiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
    "sig_7GVPjvuwsfqF65iC8fSrs1dfYruM",
    "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua",
  ],
  [
    "eyJVc2VySUQiOiJ0ZXN0VXNlcjIiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
    "sig_6jWGaWRxHsw4vMSPJprXadyvrybF",
    "sig_7qHbvhmahe5GwfePDiS5Lg3pi6Qx",
  ],
  [
    "eyJVc2VySUQiOiJ0ZXN0VXNlcjMiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
    "sig_5T8FcSsynBjn9mMLBsXhpacRovJf",
    "sig_7GFR4YaDshFcqsxWRZpRB161jguD",
  ],
].map(([token, currentSigningKey, nextSigningKey]) => ({ token, currentSigningKey, nextSigningKey }));

/** A client that is told nothing: it finds URL and token in its environment, as an application's does. */
export const client = new Client();

/** A client and a receiver of another account, for tests that need one of their own. */
export function account(number) {
  const { token, ...keys } = IDENTITIES[number];
  return { client: new Client({ token }), receiver: new Receiver(keys) };
}

/** A word that nothing else has. */
export const unique = () => `n-${randomUUID()}`;

/** The first answer that is as it should be; fails with the last one when none is in time. */
export async function eventually(ask, holds) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const answer = await ask();
    if (holds(answer)) return answer;
    assert.ok(Date.now() < deadline, `still ${JSON.stringify(answer)}`);
    await pause(20);
  }
}

/** What happened to a message, earliest first, once it has come to rest in this state. */
export async function historyUntil(messageId, state, by = client) {
  const { logs } = await eventually(
    () => by.logs({ filter: { messageId } }),
    ({ logs }) => logs[0]?.state === state,
  );
  return logs.reverse();
}

/** The one dead letter of a message, as soon as it is there. */
export async function deadLetter(messageId, by = client) {
  const { messages } = await eventually(
    () => by.dlq.listMessages({ filter: { messageId } }),
    ({ messages }) => messages.length > 0,
  );
  assert.equal(messages.length, 1);
  return messages[0];
}

/** The call is refused by the relay with this status, in a text that has all these words in it. */
export async function refused(status, call, ...words) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof QstashError, `${error}`);
    assert.equal(error.status, status, error.message);
    const answer = JSON.parse(error.message);
    assert.deepEqual(Object.keys(answer), ["error"]);
    for (const word of words) assert.ok(answer.error.includes(word), `${word} is not in: ${answer.error}`);
    return true;
  });
}
