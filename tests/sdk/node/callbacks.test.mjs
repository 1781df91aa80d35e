/** Callbacks asked for through the SDK: what another endpoint is told, signed like every delivery. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeBase64 } from "@upstash/qstash";

import { anEndpoint } from "./endpoint.mjs";
import { client, deadLetter } from "./relay.mjs";

test("a callback tells of a success", async (t) => {
  const [endpoint, listener] = [await anEndpoint(t), await anEndpoint(t)];
  endpoint.answers({ status: 201, body: "größer gemacht", headers: { "X-Answer": "yes" } });
  const { messageId } = await client.publishJSON({
    url: endpoint.url,
    body: { a: 1 },
    headers: {
      "X-Mine": "1",
      "Upstash-Callback-Forward-X-Theirs": "2",
      "Upstash-Callback-Method": "PUT",
    },
    retries: 2,
    callback: listener.url,
    failureCallback: `${listener.origin}/failed`,
  });
  const { method, target, headers, body } = await listener.delivery();
  assert.deepEqual([method, target, headers["content-type"]], ["PUT", "/hook", "application/json"]);
  assert.deepEqual([headers["x-theirs"], headers["x-mine"]], ["2", undefined]);
  assert.notEqual(headers["upstash-message-id"], messageId);
  const { header, ...said } = JSON.parse(body);
  assert.deepEqual(header["X-Answer"], ["yes"]);
  assert.equal(decodeBase64(said.body), "größer gemacht");
  const { createdAt, notBefore } = await client.messages.get(messageId);
  assert.deepEqual(said, {
    status: 201,
    body: Buffer.from("größer gemacht").toString("base64"),
    maxRetries: 2,
    sourceMessageId: messageId,
    url: endpoint.url,
    method: "POST",
    sourceHeader: { "Content-Type": ["application/json"], "X-Mine": ["1"] },
    sourceBody: btoa('{"a":1}'),
    notBefore,
    createdAt,
    callerIP: "127.0.0.1",
  });
  assert.equal(listener.deliveries.length, 1);
});

test("every attempt is told, and the end of a failure once more with its dead letter", async (t) => {
  const [endpoint, listener] = [await anEndpoint(t), await anEndpoint(t)];
  endpoint.answers({ status: 500, body: "first" }, { status: 503, body: "second" });
  const [{ messageId }] = await client.batch([
    {
      url: endpoint.url,
      retries: 1,
      retryDelay: "10",
      callback: listener.url,
      failureCallback: `${listener.origin}/failed`,
    },
  ]);
  await listener.delivery(2);
  const { dlqId } = await deadLetter(messageId);
  const told = (target) =>
    listener.deliveries
      .filter((delivery) => delivery.target === target)
      .map(({ body }) => JSON.parse(body))
      .sort((one, other) => (one.retried ?? 0) - (other.retried ?? 0));
  const attempts = told("/hook");
  assert.deepEqual(
    attempts.map(({ status, retried, body }) => [status, retried, decodeBase64(body)]),
    [
      [500, undefined, "first"],
      [503, 1, "second"],
    ],
  );
  assert.deepEqual(told("/failed"), [{ ...attempts[1], dlqId }]);
});
