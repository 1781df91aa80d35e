/** Dead letters through the SDK: found, read, thrown away and sent again. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { anEndpoint } from "./endpoint.mjs";
import { account, client, deadLetter, historyUntil, refused, unique } from "./relay.mjs";

/** Ids of messages that have just failed for good. */
async function failed(endpoint, number, settings = {}, by = client) {
  const items = Array.from({ length: number }, () => ({ url: endpoint.url, retries: 0, ...settings }));
  const ids = (await by.batch(items)).map(({ messageId }) => messageId);
  for (const id of ids) await historyUntil(id, "FAILED", by);
  return ids;
}

async function aFailingEndpoint(t, settings) {
  const endpoint = await anEndpoint(t, settings);
  endpoint.answers({ status: 404, body: "404 Not Found", headers: { "X-Why": "gone" } });
  return endpoint;
}

test("a dead letter is its message with the last answer, and nothing that does not apply", async (t) => {
  const endpoint = await aFailingEndpoint(t);
  const [messageId] = await failed(endpoint, 1, { body: "dead" });
  const { dlqId, createdAt, notBefore, responseHeader, ...shown } = await deadLetter(messageId);
  assert.match(dlqId, /^\d+-\d+$/);
  assert.equal(createdAt, notBefore);
  assert.deepEqual(responseHeader["X-Why"], ["gone"]);
  assert.deepEqual(shown, {
    messageId,
    url: endpoint.url,
    method: "POST",
    header: {},
    body: "dead",
    maxRetries: 0,
    callerIP: "127.0.0.1",
    responseStatus: 404,
    responseBody: "404 Not Found",
    urlGroup: undefined,
    ratePerSecond: undefined,
  });
});

test("dead letters are listed by every filter, by their ids, and page by page", async (t) => {
  const endpoint = await aFailingEndpoint(t);
  const before = new Date();
  const [label, other] = [unique(), unique()];
  const ids = [...(await failed(endpoint, 3, { label })), ...(await failed(endpoint, 1, { label: other }))];
  const list = async (filter) => {
    const { messages, cursor } = await client.dlq.listMessages({ filter });
    assert.equal(cursor, undefined);
    return messages.map(({ messageId }) => messageId).sort();
  };
  const three = ids.slice(0, 3).sort();
  assert.deepEqual(await list({ label }), three);
  assert.deepEqual(await list({ label: [label, other] }), ids.toSorted());
  assert.deepEqual(await list({ url: endpoint.url }), ids.toSorted());
  assert.deepEqual(await list({ label, responseStatus: [404, 500], callerIp: "127.0.0.1" }), three);
  assert.deepEqual(await list({ label, responseStatus: 500 }), []);
  assert.deepEqual(await list({ label, fromDate: before, toDate: new Date() }), three);
  assert.deepEqual(await list({ label, toDate: before.getTime() - 1 }), []);
  assert.deepEqual(await list({ messageId: ids[3] }), [ids[3]]);

  const first = await client.dlq.listMessages({ filter: { label }, count: 2 });
  const second = await client.dlq.listMessages({ filter: { label }, count: 2, cursor: first.cursor });
  assert.deepEqual([first.messages.length, second.messages.length, second.cursor], [2, 1, undefined]);
  const pages = [...first.messages, ...second.messages];
  assert.deepEqual(pages.map(({ messageId }) => messageId).sort(), three);

  const dlqIds = pages.slice(0, 2).map(({ dlqId }) => dlqId);
  assert.deepEqual((await client.dlq.listMessages({ dlqIds })).messages, pages.slice(0, 2));
  await refused(400, () => client.dlq.listMessages({ filter: { labeel: label } }), "labeel");
});

test("dead letters are deleted one by one, by ids and by filter, each once", async (t) => {
  const endpoint = await aFailingEndpoint(t);
  const label = unique();
  await failed(endpoint, 6, { label });
  const { messages } = await client.dlq.listMessages({ filter: { label } });
  const ids = messages.map(({ dlqId }) => dlqId);
  assert.deepEqual(await client.dlq.delete(ids[0]), { deleted: 1 });
  await refused(404, () => client.dlq.delete(ids[0]), ids[0]);
  assert.deepEqual(await client.dlq.delete([ids[0], ids[1]]), { deleted: 1 });
  assert.deepEqual(await client.dlq.delete({ dlqIds: [ids[2]] }), { deleted: 1 });
  assert.deepEqual(await client.dlq.deleteMany({ dlqIds: [ids[3], "1-1"] }), { deleted: 1 });
  assert.deepEqual(await client.dlq.delete([]), { deleted: 0 });
  const { deleted, cursor } = await client.dlq.delete({ filter: { label }, count: 1 });
  assert.equal(deleted, 1);
  assert.deepEqual(await client.dlq.delete({ filter: { label }, count: 1, cursor }), { deleted: 1 });
  assert.deepEqual((await client.dlq.listMessages({ filter: { label } })).messages, []);
  await refused(400, () => client.dlq.delete({ filter: { labeel: label } }), "labeel");
  await assert.rejects(() => client.dlq.delete({ dlqIds: [] }), /Empty dlqIds array/);
  await assert.rejects(() => client.dlq.delete(""), /DLQ id cannot be empty/);
});

test("what is sent again is a new message, and no dead letter any more", async (t) => {
  const endpoint = await aFailingEndpoint(t);
  const label = unique();
  const ids = await failed(endpoint, 5, { label, body: "again", headers: { "X-Kept": "1" } });
  const { messages } = await client.dlq.listMessages({ filter: { label } });
  const dlqIds = messages.map(({ dlqId }) => dlqId);
  endpoint.answers({ status: 200 });
  const answers = [
    await client.dlq.retry(dlqIds[0]),
    await client.dlq.retry([dlqIds[1]]),
    await client.dlq.retry({ dlqIds: [dlqIds[2]] }),
    await client.dlq.retry({ filter: { label }, count: 1 }),
  ];
  answers.push(await client.dlq.retry({ filter: { label }, cursor: answers[3].cursor }));
  assert.equal(answers[4].cursor, undefined);
  for (const { responses } of answers) {
    assert.equal(responses.length, 1);
    const [{ messageId }] = responses;
    assert.ok(!ids.includes(messageId));
    await historyUntil(messageId, "DELIVERED");
    const { body, headers } = endpoint.deliveries.find((one) => one.headers["upstash-message-id"] === messageId);
    assert.deepEqual([body, headers["x-kept"]], ["again", "1"]);
  }
  assert.deepEqual(await client.dlq.retry({ filter: { label } }), { responses: [], cursor: undefined });
  assert.deepEqual(await client.dlq.retry([]), { responses: [] });
  await refused(404, () => client.dlq.delete(dlqIds[0]), dlqIds[0]);
  await refused(400, () => client.dlq.retry({ filter: { labeel: label } }), "labeel");
});

test("all of an account's dead letters are sent again or deleted, and none of another's", async (t) => {
  const { client: mine, receiver } = account(2);
  const [endpoint, theirs] = [await aFailingEndpoint(t, { receiver }), await aFailingEndpoint(t)];
  const [other] = await failed(theirs, 1);
  await failed(endpoint, 2, {}, mine);
  assert.equal((await mine.dlq.listMessages()).messages.length, 2);
  const { responses, cursor } = await mine.dlq.retry({ all: true });
  assert.deepEqual([responses.length, cursor], [2, undefined]);
  for (const { messageId } of responses) await historyUntil(messageId, "FAILED", mine);
  assert.deepEqual(await mine.dlq.delete({ all: true }), { deleted: 2 });
  assert.deepEqual(await mine.dlq.listMessages(), { messages: [], cursor: undefined });
  assert.equal((await deadLetter(other)).messageId, other);
});
