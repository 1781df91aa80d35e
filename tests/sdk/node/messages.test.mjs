/** Messages read and cancelled through the SDK. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { anEndpoint } from "./endpoint.mjs";
import { account, client, historyUntil, refused, unique } from "./relay.mjs";

const NOWHERE = "https://example.com/path?x=y";

/** Ids of messages that wait for an hour. */
async function waiting(by, number, settings = {}) {
  const items = Array.from({ length: number }, () => ({ url: NOWHERE, delay: "1h", ...settings }));
  return (await by.batch(items)).map(({ messageId }) => messageId);
}

test("a plain message shows what applies to it and nothing else", async () => {
  const before = Date.now();
  const { messageId } = await client.publish({ url: NOWHERE, delay: 5 });
  const { createdAt, notBefore, ...shown } = await client.messages.get(messageId);
  assert.ok(before <= createdAt && createdAt <= Date.now());
  assert.equal(notBefore, createdAt + 5000);
  assert.deepEqual(shown, {
    messageId,
    url: NOWHERE,
    method: "POST",
    header: {},
    maxRetries: 3,
    callerIP: "127.0.0.1",
    // Not from the relay: the SDK sets these on every message.
    urlGroup: undefined,
    ratePerSecond: undefined,
  });
  await client.messages.cancel(messageId);
});

test("a message with every setting shows each of them", async () => {
  const label = [unique(), unique()];
  const { messageId } = await client.publish({
    url: NOWHERE,
    method: "PATCH",
    body: "größer",
    headers: {
      "Content-Type": "text/plain",
      "test-header": "value",
      "Upstash-Callback-Forward-X-Theirs": "1",
      "Upstash-Failure-Callback-Forward-X-Theirs": "2",
    },
    retries: 7,
    retryDelay: "1000 * (1 + retried)",
    callback: "https://example.com/callback",
    failureCallback: "https://example.com/failure",
    delay: "1h",
    label,
  });
  const { createdAt, notBefore, urlGroup, ratePerSecond, ...shown } = await client.messages.get(messageId);
  assert.equal(notBefore, createdAt + 3_600_000);
  assert.deepEqual(shown, {
    messageId,
    url: NOWHERE,
    method: "PATCH",
    header: { "Content-Type": ["text/plain"], "Test-Header": ["value"] },
    body: "größer",
    maxRetries: 7,
    retryDelayExpression: "1000 * (1 + retried)",
    callback: "https://example.com/callback",
    callbackHeader: { "X-Theirs": ["1"] },
    failureCallback: "https://example.com/failure",
    failureCallbackHeader: { "X-Theirs": ["2"] },
    callerIP: "127.0.0.1",
    label: label[0],
    labels: label,
  });
  await client.messages.cancel(messageId);
});

test("a message can be read after its delivery", async (t) => {
  const endpoint = await anEndpoint(t);
  const { messageId } = await client.publish({ url: endpoint.url, body: "read me" });
  await historyUntil(messageId, "DELIVERED");
  assert.equal((await client.messages.get(messageId)).body, "read me");
});

test("an unknown message is not found, and an empty id never asks", async () => {
  await refused(404, () => client.messages.get("msg_unknown"), "msg_unknown");
  await refused(404, () => client.messages.cancel("msg_unknown"), "msg_unknown");
  await refused(404, () => client.messages.delete("msg_unknown"), "msg_unknown");
  for (const call of ["get", "cancel", "delete"]) {
    await assert.rejects(() => client.messages[call](""), /Message id cannot be empty/);
  }
});

test("one message is cancelled once", async () => {
  const [first, second] = await waiting(client, 2);
  assert.deepEqual(await client.messages.cancel(first), { cancelled: 1 });
  assert.equal((await historyUntil(first, "CANCELED")).at(-1).state, "CANCELED");
  await refused(404, () => client.messages.cancel(first), first);
  assert.equal(await client.messages.delete(second), undefined);
  await historyUntil(second, "CANCELED");
});

test("a message in flight can be cancelled and is not tried again", async (t) => {
  const endpoint = await anEndpoint(t);
  const answer = new AbortController();
  endpoint.answers({ status: 500, after: once(answer.signal, "abort") });
  const { messageId } = await client.publish({ url: endpoint.url, retryDelay: "1" });
  await endpoint.delivery();
  assert.deepEqual(await client.messages.cancel(messageId), { cancelled: 1 });
  answer.abort();
  const rows = await historyUntil(messageId, "CANCELED");
  assert.ok(rows.some(({ state }) => state === "CANCEL_REQUESTED"));
  assert.equal(endpoint.deliveries.length, 1);
});

test("several are cancelled by their ids, and only what can be counts", async (t) => {
  const endpoint = await anEndpoint(t);
  const ids = await waiting(client, 3);
  const { messageId: delivered } = await client.publish({ url: endpoint.url });
  await historyUntil(delivered, "DELIVERED");
  assert.deepEqual(await client.messages.cancel([ids[0], delivered, "msg_unknown"]), { cancelled: 1 });
  assert.deepEqual(await client.messages.cancel({ messageIds: ids.slice(0, 2) }), { cancelled: 1 });
  assert.equal(await client.messages.deleteMany(ids), 1);
  assert.equal(await client.messages.deleteMany(ids), 0);
  assert.deepEqual(await client.messages.cancel([]), { cancelled: 0 });
  await assert.rejects(() => client.messages.cancel({ messageIds: [] }), /Empty messageIds array/);
});

test("filters choose what is cancelled: any of several values, all of several filters", async () => {
  const [one, two, three] = [unique(), unique(), unique()];
  const ids = [
    ...(await waiting(client, 2, { label: one })),
    ...(await waiting(client, 1, { label: two })),
    ...(await waiting(client, 1, { label: three, url: "https://example.org/other" })),
  ];
  const cancel = async (filter) => (await client.messages.cancel({ filter })).cancelled;
  assert.equal(await cancel({ label: [one, two, three], url: "https://example.org" }), 0);
  assert.equal(await cancel({ label: one, url: NOWHERE, fromDate: new Date(Date.now() + 60_000) }), 0);
  assert.equal(await cancel({ label: three, host: "example.org", path: "/other" }), 1);
  assert.equal(await cancel({ label: [one, two], toDate: new Date(Date.now() + 60_000) }), 3);
  assert.equal(await cancel({ label: [one, two, three] }), 0);
  for (const id of ids) await historyUntil(id, "CANCELED");
  await refused(400, () => client.messages.cancel({ filter: { labeel: one } }), "labeel");
  await assert.rejects(() => client.messages.cancel({ filter: { label: [] } }), { name: "QstashEmptyArrayError" });
});

test("all of an account's messages are cancelled, and none of another's", async () => {
  const { client: mine } = account(1);
  const [theirs] = await waiting(client, 1);
  await waiting(mine, 3);
  assert.deepEqual(await mine.messages.cancel({ all: true, count: 2 }), { cancelled: 2 });
  assert.deepEqual(await mine.messages.cancel({ all: true }), { cancelled: 1 });
  await waiting(mine, 2);
  assert.equal(await mine.messages.deleteAll(), 2);
  assert.equal(await mine.messages.deleteAll(), 0);
  assert.deepEqual(await client.messages.cancel(theirs), { cancelled: 1 });
});
