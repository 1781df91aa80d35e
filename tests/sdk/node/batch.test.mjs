/** Batches of the SDK: every item a message of its own, with its own settings and its own fate. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Client } from "@upstash/qstash";

import { anEndpoint } from "./endpoint.mjs";
import { client, historyUntil, refused, unique } from "./relay.mjs";

test("items are answered in order and arrive with their own settings", async (t) => {
  const endpoint = await anEndpoint(t);
  const label = unique();
  const merging = new Client({ headers: { "X-All": "every" } });
  const answers = await merging.batch([
    { url: `${endpoint.url}/1`, body: "one", headers: { "X-Item": "1", "Content-Type": "text/x" } },
    { url: `${endpoint.url}/2`, body: "two", method: "PUT", label },
    { url: `${endpoint.url}/3?a=b`, retries: 9 },
    { url: `${endpoint.url}/4`, body: "later", delay: "1h" },
  ]);
  assert.deepEqual(
    answers.map(({ url }) => url),
    ["1", "2", "3?a=b", "4"].map((end) => `${endpoint.url}/${end}`),
  );
  await endpoint.delivery(2);
  const arrived = answers.map(({ messageId }) =>
    endpoint.deliveries.find(({ headers }) => headers["upstash-message-id"] === messageId),
  );
  const [first, second, third, fourth] = arrived;
  assert.deepEqual([first.target, first.method, first.body], ["/hook/1", "POST", "one"]);
  assert.deepEqual([second.target, second.method, second.body], ["/hook/2", "PUT", "two"]);
  assert.deepEqual([third.target, third.method, third.body], ["/hook/3?a=b", "POST", ""]);
  assert.equal(fourth, undefined);
  for (const { headers } of [first, second, third]) assert.equal(headers["x-all"], "every");
  assert.deepEqual([first.headers["x-item"], first.headers["content-type"]], ["1", "text/x"]);
  // The outer request is JSON; its items are not.
  assert.equal(second.headers["content-type"], undefined);
  const messages = await Promise.all(answers.map(({ messageId }) => client.messages.get(messageId)));
  assert.deepEqual([messages[1].label, messages[2].maxRetries], [label, 9]);
  assert.equal(messages[3].notBefore - messages[3].createdAt, 3_600_000);
  assert.deepEqual(await client.messages.cancel([answers[3].messageId]), { cancelled: 1 });
});

test("a JSON batch arrives as JSON", async (t) => {
  const endpoint = await anEndpoint(t);
  const bodies = [{ number: 1 }, ["ä", null], "text", 4];
  await client.batchJSON(bodies.map((body) => ({ url: endpoint.url, body })));
  await endpoint.delivery(bodies.length - 1);
  assert.deepEqual(endpoint.bodies, bodies.map((body) => JSON.stringify(body)).sort());
  for (const { headers } of endpoint.deliveries) assert.equal(headers["content-type"], "application/json");
});

test("the second item of a deduplication id is answered with the first", async (t) => {
  const endpoint = await anEndpoint(t);
  const deduplicationId = unique();
  const [first, second] = await client.batch([
    { url: endpoint.url, body: "first", deduplicationId },
    { url: endpoint.url, body: "second", deduplicationId },
  ]);
  assert.deepEqual(second, { ...first, deduplicated: true });
  await historyUntil(first.messageId, "DELIVERED");
  assert.deepEqual(endpoint.bodies, ["first"]);
});

test("an item that is refused has an error in its place and does not hold back the others", async (t) => {
  const endpoint = await anEndpoint(t);
  const answers = await client.batch([
    { url: endpoint.url, body: "good" },
    { url: endpoint.url, body: "bad", delay: "soon" },
    { url: endpoint.url, body: "good too" },
  ]);
  assert.deepEqual(Object.keys(answers[1]), ["error"]);
  assert.match(answers[1].error, /Upstash-Delay/);
  await endpoint.delivery(1);
  assert.deepEqual(endpoint.bodies, ["good", "good too"]);
});

test("a batch of which nothing can be accepted is refused for its first item", async () => {
  const item = { url: "https://example.com", delay: "soon" };
  await refused(400, () => client.batch([item, { url: "example.com" }]), "Upstash-Delay");
});
