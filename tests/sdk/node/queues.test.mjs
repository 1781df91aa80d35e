/** Queues through the SDK: kept as they were put, in order, paused and resumed at once. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { Client, custom } from "@upstash/qstash";

import { anEndpoint } from "./endpoint.mjs";
import { account, client, deadLetter, eventually, historyUntil, refused, unique } from "./relay.mjs";

const NOWHERE = "https://example.com/";

/** A queue that nobody else uses, deleted when the test is over. */
function aQueue(t, by = client) {
  const queueName = unique();
  const queue = by.queue({ queueName });
  t.after(() => queue.delete());
  return { queue, queueName };
}

const isEmpty = (queue) => eventually(() => queue.get(), ({ lag }) => lag === 0);

/** Holds the first answers of an endpoint until it is called. */
function held(endpoint, ...answers) {
  const release = new AbortController();
  endpoint.answers({ after: once(release.signal, "abort") }, ...answers);
  return () => release.abort();
}

test("a queue is what it was configured to be, paused and resumed at once", async (t) => {
  const { queue, queueName } = aQueue(t);
  await refused(404, () => queue.get(), queueName);
  const before = Date.now();
  await queue.upsert({ parallelism: 2 });
  const { createdAt, updatedAt, ...shown } = await queue.get();
  assert.deepEqual(shown, { name: queueName, parallelism: 2, lag: 0, paused: false });
  assert.ok(before <= createdAt && createdAt <= updatedAt && updatedAt <= Date.now());
  await queue.upsert({ parallelism: 3, paused: true });
  const again = await queue.get();
  assert.deepEqual([again.parallelism, again.paused, again.createdAt], [3, true, createdAt]);
  await queue.resume();
  assert.equal((await queue.get()).paused, false);
  await queue.pause();
  assert.equal((await queue.get()).paused, true);
  await queue.upsert({});
  const defaults = await queue.get();
  assert.deepEqual([defaults.parallelism, defaults.paused], [1, false]);
  await queue.delete();
  await queue.delete();
  await refused(404, () => queue.get(), queueName);
});

test("the list is exactly what exists", async (t) => {
  const { client: mine } = account(3);
  const { queue } = aQueue(t, mine);
  assert.deepEqual(await mine.queue().list(), []);
  await queue.upsert({});
  assert.deepEqual(await mine.queue().list(), [await queue.get()]);
  await queue.delete();
  assert.deepEqual(await mine.queue().list(), []);
});

test("messages arrive one by one in their order, retries included", async (t) => {
  const endpoint = await anEndpoint(t);
  const { queue, queueName } = aQueue(t);
  const release = held(endpoint, { status: 503, headers: { "Retry-After": "1" } }, {});
  const ids = [];
  for (let number = 0; number < 10; number += 1) {
    const { messageId } = await queue.enqueue({ url: endpoint.url, body: `${number}` });
    ids.push(messageId);
  }
  await endpoint.delivery();
  const { lag, parallelism } = await queue.get();
  assert.deepEqual([lag, parallelism, endpoint.deliveries.length], [10, 1, 1]);
  const message = await client.messages.get(ids[9]);
  assert.equal(message.queueName, queueName);
  release();
  const rows = await historyUntil(ids[9], "DELIVERED");
  for (const row of rows) assert.equal(row.queueName, queueName);
  const order = endpoint.deliveries.map(({ body }) => Number(body));
  assert.deepEqual(order, [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  await isEmpty(queue);
  const { logs } = await client.logs({ filter: { queueName, state: "DELIVERED" } });
  assert.deepEqual(
    logs.map(({ messageId }) => messageId),
    ids.toReversed(),
  );
});

test("everything a message can be is enqueued as it is published", async (t) => {
  const endpoint = await anEndpoint(t);
  const { queue, queueName } = aQueue(t);
  const label = unique();
  const merging = new Client({ headers: { "X-All": "every" } }).queue({ queueName });
  const answer = await merging.enqueueJSON({
    url: endpoint.url,
    body: { a: "größer" },
    headers: { "X-Mine": "1" },
    method: "PUT",
    retries: 1,
    label,
    deduplicationId: label,
  });
  assert.deepEqual(answer, { messageId: answer.messageId, url: endpoint.url });
  const again = await queue.enqueueJSON({ url: endpoint.url, body: {}, deduplicationId: label });
  assert.deepEqual([again.messageId, again.deduplicated], [answer.messageId, true]);
  const { method, headers, body } = await endpoint.delivery();
  assert.deepEqual([method, body, headers["content-type"]], ["PUT", '{"a":"größer"}', "application/json"]);
  assert.deepEqual([headers["x-all"], headers["x-mine"]], ["every", "1"]);
  const message = await client.messages.get(answer.messageId);
  assert.deepEqual([message.maxRetries, message.labels], [1, [label]]);

  const api = { name: "llm", provider: custom({ baseUrl: endpoint.origin, token: "theirs" }) };
  await queue.enqueueJSON({ api, body: {}, callback: `${endpoint.origin}/callback` });
  const called = await endpoint.delivery(1);
  assert.deepEqual([called.target, called.headers.authorization], ["/v1/chat/completions", "Bearer theirs"]);
  assert.equal((await endpoint.delivery(2)).target, "/callback");
});

test("a paused queue holds its messages until it is resumed", async (t) => {
  const endpoint = await anEndpoint(t);
  const { queue } = aQueue(t);
  await queue.upsert({ paused: true });
  await queue.enqueue({ url: endpoint.url, body: "queued" });
  await client.publish({ url: endpoint.url, body: "not queued", delay: 1 });
  assert.equal((await endpoint.delivery()).body, "not queued");
  assert.equal((await queue.get()).lag, 1);
  await queue.resume();
  assert.equal((await endpoint.delivery(1)).body, "queued");
  await isEmpty(queue);
});

test("as many are delivered at once as the queue allows, and not one more", async (t) => {
  const endpoint = await anEndpoint(t);
  const { queue } = aQueue(t);
  await queue.upsert({ parallelism: 3 });
  const release = new AbortController();
  endpoint.answers({ after: once(release.signal, "abort") });
  for (let number = 0; number < 5; number += 1) await queue.enqueue({ url: endpoint.url });
  await endpoint.delivery(2);
  const one = await client.publish({ url: `${endpoint.origin}/other`, body: "not queued" });
  assert.equal((await endpoint.delivery(3)).headers["upstash-message-id"], one.messageId);
  release.abort();
  await endpoint.delivery(5);
  await isEmpty(queue);
});

test("a batch, a group and a schedule may name queues", async (t) => {
  const endpoint = await anEndpoint(t);
  const { queue, queueName } = aQueue(t);
  const items = ["0", "1", "2"].map((body) => ({ url: endpoint.url, body, queueName }));
  assert.equal((await client.batch(items)).length, 3);
  await endpoint.delivery(2);
  assert.deepEqual(
    endpoint.deliveries.map(({ body }) => body),
    ["0", "1", "2"],
  );
  const group = unique();
  const endpoints = [{ url: endpoint.url }, { url: `${endpoint.origin}/other` }];
  await client.urlGroups.addEndpoints({ name: group, endpoints });
  const answers = await queue.enqueue({ urlGroup: group, body: "to all" });
  assert.deepEqual(
    answers.map(({ url }) => url),
    endpoints.map(({ url }) => url),
  );
  await endpoint.delivery(4);
  await client.urlGroups.delete(group);
  const { scheduleId } = await client.schedules.create({ destination: NOWHERE, cron: "@yearly", queueName });
  assert.equal((await client.schedules.get(scheduleId)).queueName, queueName);
  await client.schedules.delete(scheduleId);
});

test("what is in a queue is found, cancelled and sent again by the queue", async (t) => {
  const endpoint = await anEndpoint(t);
  const { queue, queueName } = aQueue(t);
  endpoint.answers({ status: 500 }, {});
  const { messageId } = await queue.enqueue({ url: endpoint.url, retries: 0 });
  assert.equal((await deadLetter(messageId)).queueName, queueName);
  const { messages } = await client.dlq.listMessages({ filter: { queueName } });
  assert.deepEqual(
    messages.map((message) => message.messageId),
    [messageId],
  );
  const { responses } = await client.dlq.retry({ filter: { queueName } });
  await historyUntil(responses[0].messageId, "DELIVERED");
  assert.equal((await client.messages.get(responses[0].messageId)).queueName, queueName);
  await queue.pause();
  await client.batch([1, 2].map(() => ({ url: NOWHERE, queueName })));
  assert.deepEqual(await client.messages.cancel({ filter: { queueName } }), { cancelled: 2 });
  await isEmpty(queue);
});

test("deleting a queue cancels what waits in it", async (t) => {
  const { queue } = aQueue(t);
  await queue.upsert({ paused: true });
  const { messageId } = await queue.enqueue({ url: NOWHERE });
  await queue.delete();
  await historyUntil(messageId, "CANCELED");
});

test("a queue that cannot be is refused", async (t) => {
  const wrong = client.queue({ queueName: "a queue" });
  const { queue } = aQueue(t);
  await refused(400, () => wrong.upsert({}), "queueName");
  await refused(400, () => wrong.enqueue({ url: NOWHERE }), "queueName");
  await refused(400, () => client.batch([{ url: NOWHERE, queueName: "a queue" }]), "queue");
  await refused(400, () => queue.upsert({ parallelism: 0 }), "parallelism");
  await refused(412, () => queue.upsert({ parallelism: 1_000_000 }), "parallelism");
  await refused(400, () => queue.enqueue({ url: "example.com/path" }), "destination");
  await refused(400, () => queue.enqueue({ url: NOWHERE, delay: "soon" }), "Upstash-Delay");
  await assert.rejects(() => client.queue().get(), /provide a queue name/);
});
