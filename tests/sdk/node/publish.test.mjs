/** What the SDK publishes arrives, and arrives as it was meant. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { Client } from "@upstash/qstash";

import { anEndpoint } from "./endpoint.mjs";
import { client, deadLetter, historyUntil, refused, unique } from "./relay.mjs";

const NOWHERE = "https://example.com/";
const states = (rows) => rows.map(({ state }) => state);
const redacted = (text) => `REDACTED:${createHash("sha256").update(text).digest("hex")}`;

test("a message arrives once with what the protocol promises, and with no telemetry", async (t) => {
  const endpoint = await anEndpoint(t);
  const answer = await client.publish({ url: endpoint.url, body: "hello", headers: { "X-Mine": "1" } });
  assert.deepEqual(Object.keys(answer).sort(), ["messageId", "url"]);
  assert.equal(answer.url, endpoint.url);
  assert.match(answer.messageId, /^msg_/);
  const rows = await historyUntil(answer.messageId, "DELIVERED");
  assert.deepEqual(states(rows), ["CREATED", "ACTIVE", "DELIVERED"]);
  const [{ method, target, body, headers }] = endpoint.deliveries;
  assert.deepEqual([method, target, body], ["POST", "/hook", "hello"]);
  const { "upstash-signature": signature, ...others } = headers;
  assert.ok(signature);
  assert.deepEqual(others, {
    host: endpoint.origin.slice("http://".length),
    // What fetch says of a string; the SDK sends it on as the message's own.
    "content-type": "text/plain;charset=UTF-8",
    "content-length": "5",
    "user-agent": "Upstash-QStash",
    "upstash-message-id": answer.messageId,
    "upstash-retried": "0",
    "upstash-caller-ip": "127.0.0.1",
    "upstash-region": "EU-CENTRAL-1",
    "x-mine": "1",
  });
  assert.equal(endpoint.deliveries.length, 1);
});

test("a JSON body arrives as JSON", async (t) => {
  const endpoint = await anEndpoint(t);
  const body = { text: "größer ☃", numbers: [1, 2.5, null] };
  const { messageId } = await client.publishJSON({ url: endpoint.url, body });
  const delivery = await endpoint.delivery();
  assert.deepEqual(JSON.parse(delivery.body), body);
  assert.equal(delivery.headers["content-type"], "application/json");
  assert.equal(delivery.headers["upstash-message-id"], messageId);
});

test("every kind of body that fetch takes arrives with its content type", async (t) => {
  const endpoint = await anEndpoint(t);
  const form = new FormData();
  form.set("field", "größe");
  const bodies = [
    [undefined, "", undefined],
    [new URLSearchParams({ a: "1 2" }), "a=1+2", "application/x-www-form-urlencoded;charset=UTF-8"],
    [new Blob(["blob"], { type: "text/x-blob" }), "blob", "text/x-blob"],
    [new TextEncoder().encode("bytes"), "bytes", undefined],
    [form, /name="field"\r\n\r\ngröße\r\n/, /^multipart\/form-data; boundary=/],
  ];
  for (const [number, [body, arrives, type]] of bodies.entries()) {
    await client.publish({ url: endpoint.url, body });
    const delivery = await endpoint.delivery(number);
    const matches = (is, wanted) =>
      wanted instanceof RegExp ? assert.match(is, wanted) : assert.equal(is, wanted);
    matches(delivery.body, arrives);
    matches(delivery.headers["content-type"], type);
  }
});

for (const method of ["GET", "POST", "PUT", "PATCH", "DELETE"]) {
  test(`${method} takes a body along`, async (t) => {
    const endpoint = await anEndpoint(t);
    await client.publish({ url: endpoint.url, body: "with a body", method });
    const delivery = await endpoint.delivery();
    assert.deepEqual([delivery.method, delivery.body], [method, "with a body"]);
  });
}

test("headers of the client and of the request are merged for the destination", async (t) => {
  const endpoint = await anEndpoint(t);
  const merging = new Client({ headers: { "X-All": "every", "X-Both": "client" } });
  const { messageId } = await merging.publish({
    url: endpoint.url,
    headers: { "X-Both": "request", Authorization: "Bearer theirs", "Content-Type": "text/x-mine" },
  });
  const { headers } = await endpoint.delivery();
  assert.equal(headers["x-all"], "every");
  assert.equal(headers["x-both"], "request");
  assert.equal(headers.authorization, "Bearer theirs");
  assert.equal(headers["content-type"], "text/x-mine");
  assert.deepEqual((await client.messages.get(messageId)).header, {
    Authorization: ["Bearer theirs"],
    "Content-Type": ["text/x-mine"],
    "X-All": ["every"],
    "X-Both": ["request"],
  });
});

test("a header in several spellings arrives as the one value the SDK makes of it", async (t) => {
  const endpoint = await anEndpoint(t);
  const { messageId } = await client.publish({
    url: endpoint.url,
    headers: { "X-Twice": "value-uppercase", "x-twice": "value-lowercase" },
  });
  assert.equal((await endpoint.delivery()).headers["x-twice"], "value-uppercase, value-lowercase");
  const { header } = await client.messages.get(messageId);
  assert.deepEqual(header["X-Twice"], ["value-uppercase, value-lowercase"]);
});

for (const [path, target] of [
  ["", "/"],
  ["/a//b", "/a//b"],
  ["/a%2Fb%20c", "/a%2Fb%20c"],
  ["/größe", "/gr%C3%B6%C3%9Fe"],
  ["/?asdasd=ooo", "/?asdasd=ooo"],
  ["/?url=https://example.com/?x=1,y=2", "/?url=https://example.com/?x=1,y=2"],
]) {
  test(`a destination that ends in "${path}" is called and shown as it was given`, async (t) => {
    const endpoint = await anEndpoint(t);
    const url = path ? endpoint.origin + target : endpoint.origin;
    endpoint.publishedAs = url;
    const { messageId } = await client.publish({ url: endpoint.origin + path });
    assert.equal((await endpoint.delivery()).target, target);
    assert.equal((await client.messages.get(messageId)).url, url);
  });
}

test("a delay puts a message off, in seconds and in words, and not-before wins over it", async (t) => {
  const endpoint = await anEndpoint(t);
  for (const [settings, seconds] of [
    [{ delay: 3600 }, 3600],
    [{ delay: "1h30m3s" }, 5403],
  ]) {
    const { messageId } = await client.publish({ url: NOWHERE, ...settings });
    const message = await client.messages.get(messageId);
    assert.equal(message.notBefore - message.createdAt, seconds * 1000);
    assert.equal((await client.messages.cancel(messageId)).cancelled, 1);
  }
  const { messageId } = await client.publish({ url: endpoint.url, body: "later", delay: 1 });
  const { notBefore } = await client.messages.get(messageId);
  const delivery = await endpoint.delivery();
  assert.ok(delivery.at >= notBefore && delivery.at < notBefore + 5000, `${delivery.at - notBefore} ms late`);
  const past = Math.floor(Date.now() / 1000) - 60;
  await client.publish({ url: endpoint.url, body: "now", notBefore: past, delay: "1h" });
  assert.equal((await endpoint.delivery(1)).body, "now");
});

test("a deduplication id lets one message through and says so", async (t) => {
  const endpoint = await anEndpoint(t);
  const deduplicationId = unique();
  const first = await client.publish({ url: endpoint.url, body: "first", deduplicationId });
  const again = await client.publish({ url: endpoint.url, body: "again", deduplicationId });
  assert.ok(!("deduplicated" in first));
  assert.deepEqual(again, { ...first, deduplicated: true });
  await historyUntil(first.messageId, "DELIVERED");
  assert.deepEqual(endpoint.bodies, ["first"]);
});

test("content-based deduplication compares what would be sent", async (t) => {
  const endpoint = await anEndpoint(t);
  const message = { url: endpoint.url, body: unique(), contentBasedDeduplication: true };
  const first = await client.publish(message);
  const again = await client.publish(message);
  const other = await client.publish({ ...message, headers: { "X-Other": "1" } });
  assert.deepEqual([again.messageId, again.deduplicated], [first.messageId, true]);
  assert.notEqual(other.messageId, first.messageId);
  await endpoint.delivery(1);
});

test("labels, one or several, are on the message and on every row of its history", async (t) => {
  const endpoint = await anEndpoint(t);
  for (const labels of [[unique()], [unique(), unique()]]) {
    const label = labels.length === 1 ? labels[0] : labels;
    const { messageId } = await client.publish({ url: endpoint.url, label });
    const message = await client.messages.get(messageId);
    assert.deepEqual([message.label, message.labels], [labels[0], labels]);
    for (const row of await historyUntil(messageId, "DELIVERED")) assert.deepEqual(row.labels, labels);
  }
});

test("retries, their delay and the timeout are kept and followed", async (t) => {
  const endpoint = await anEndpoint(t);
  endpoint.answers({ status: 500, body: "down", headers: { "X-Why": "maintenance" } }, {});
  const { messageId } = await client.publish({
    url: endpoint.url,
    body: "try me",
    retries: 2,
    retryDelay: "50 * (1 + retried)",
    timeout: 30,
  });
  const rows = await historyUntil(messageId, "DELIVERED");
  assert.deepEqual(states(rows), ["CREATED", "ACTIVE", "ERROR", "RETRY", "ACTIVE", "DELIVERED"]);
  const [error, retry] = rows.slice(2);
  assert.deepEqual([error.responseStatus, atob(error.responseBody)], [500, "down"]);
  assert.deepEqual(error.responseHeaders["X-Why"], ["maintenance"]);
  assert.match(error.error, /500/);
  assert.equal(retry.nextDeliveryTime - retry.time, 50);
  assert.deepEqual(new Set(rows.map(({ timeout }) => timeout)), new Set([30_000]));
  const message = await client.messages.get(messageId);
  assert.deepEqual([message.maxRetries, message.retryDelayExpression], [2, "50 * (1 + retried)"]);
  assert.deepEqual(
    endpoint.deliveries.map(({ headers }) => headers["upstash-retried"]),
    ["0", "1"],
  );
});

test("redacted fields reach the destination and nobody else", async (t) => {
  const endpoint = await anEndpoint(t);
  endpoint.answers({ status: 500 });
  const { messageId } = await client.publish({
    url: endpoint.url,
    body: "a secret body",
    headers: { "X-Secret": "a secret header", "X-Open": "no secret", "Content-Type": "text/plain" },
    redact: { body: true, header: ["x-secret"] },
    retries: 0,
  });
  const delivery = await endpoint.delivery();
  assert.deepEqual([delivery.body, delivery.headers["x-secret"]], ["a secret body", "a secret header"]);
  const header = {
    "Content-Type": ["text/plain"],
    "X-Open": ["no secret"],
    "X-Secret": [redacted("a secret header")],
  };
  for (const shown of [await client.messages.get(messageId), await deadLetter(messageId)]) {
    assert.deepEqual([shown.body, shown.header], [redacted("a secret body"), header]);
  }
  for (const row of await historyUntil(messageId, "FAILED")) {
    assert.deepEqual([row.body, row.header], [redacted("a secret body"), header]);
  }
  const all = await client.publish({ url: NOWHERE, headers: { "X-A": "1" }, redact: { header: true }, delay: 60 });
  assert.deepEqual((await client.messages.get(all.messageId)).header, { "X-A": [redacted("1")] });
  await client.messages.cancel(all.messageId);
});

for (const [status, header, settings] of [
  [400, "Upstash-Delay", { delay: "soon" }],
  [400, "Upstash-Retries", { retries: -1 }],
  [412, "Upstash-Retries", { retries: 1_000_000 }],
  [400, "Upstash-Retry-Delay", { retryDelay: "pow(2" }],
  [400, "Upstash-Timeout", { timeout: "long" }],
  [412, "Upstash-Timeout", { timeout: "13h" }],
  [400, "Upstash-Method", { method: "TRACE" }],
  [400, "Upstash-Callback", { callback: "nowhere" }],
  [400, "Upstash-Failure-Callback", { failureCallback: "ftp://example.com" }],
  [400, "destination", { url: "example.com/path" }],
  [404, "n-unknown-group", { url: undefined, urlGroup: "n-unknown-group" }],
  [404, "n-unknown-group", { url: undefined, topic: "n-unknown-group" }],
]) {
  test(`a publish with ${JSON.stringify(settings)} is refused for its ${header}`, async () => {
    await refused(status, () => client.publish({ url: NOWHERE, ...settings }), header);
  });
}

test("a body beyond the limit is refused and the client goes on", async (t) => {
  const endpoint = await anEndpoint(t);
  await refused(413, () => client.publish({ url: endpoint.url, body: "x".repeat(2 ** 20 + 1) }), "1048576");
  await client.publish({ url: endpoint.url, body: "after it" });
  assert.equal((await endpoint.delivery()).body, "after it");
});

test("a message without a destination is refused by the SDK itself", async () => {
  await assert.rejects(() => client.publish({ body: "x" }), { name: "QstashError", status: undefined });
});
