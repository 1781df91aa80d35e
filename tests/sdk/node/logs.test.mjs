/** The log through the SDK: every change of every message, by filters and pages. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { anEndpoint } from "./endpoint.mjs";
import { client, eventually, historyUntil, refused, unique } from "./relay.mjs";

test("rows say what happened, when, and nothing that does not apply", async (t) => {
  const endpoint = await anEndpoint(t);
  const before = Date.now();
  const { messageId } = await client.publish({ url: endpoint.url, method: "PUT", body: "größer" });
  const rows = await historyUntil(messageId, "DELIVERED");
  let earlier = before;
  for (const { time } of rows) {
    assert.ok(earlier <= time && time <= Date.now());
    earlier = time;
  }
  const common = {
    messageId,
    url: endpoint.url,
    method: "PUT",
    header: { "Content-Type": ["text/plain;charset=UTF-8"] },
    body: Buffer.from("größer").toString("base64"),
    maxRetries: 3,
    urlGroup: undefined,
  };
  const [created, active, delivered] = rows.map(({ time, ...row }) => row);
  assert.deepEqual(created, { ...common, state: "CREATED" });
  assert.deepEqual(active, { ...common, state: "ACTIVE" });
  assert.deepEqual(delivered, { ...common, state: "DELIVERED" });
});

test("every filter finds what it names, and an unknown one is an error", async (t) => {
  const endpoint = await anEndpoint(t);
  const [label, other] = [unique(), unique()];
  const publish = async (settings) => {
    const { messageId } = await client.publish({ url: endpoint.url, ...settings });
    await historyUntil(messageId, "DELIVERED");
    return messageId;
  };
  const before = new Date();
  const one = await publish({ label });
  const two = await publish({ label: other, url: `${endpoint.origin}/other?a=b` });
  const list = async (filter) => {
    const { logs, events, cursor } = await client.logs({ filter: { state: "DELIVERED", ...filter } });
    assert.equal(logs, events);
    assert.equal(cursor, undefined);
    return logs.map(({ messageId }) => messageId);
  };
  const labels = { label: [label, other] };
  assert.deepEqual(await list({ label }), [one]);
  assert.deepEqual(await list(labels), [two, one]);
  assert.deepEqual(await list({ messageId: one }), [one]);
  assert.deepEqual(await list({ url: endpoint.url }), [one]);
  assert.deepEqual(await list({ url: [endpoint.url, `${endpoint.origin}/other?a=b`] }), [two, one]);
  assert.deepEqual(await list({ ...labels, host: "127.0.0.1", path: "/other" }), [two]);
  assert.deepEqual(await list({ ...labels, callerIp: "127.0.0.1", fromDate: before, toDate: new Date() }), [two, one]);
  assert.deepEqual(await list({ ...labels, toDate: before.getTime() - 1 }), []);
  assert.deepEqual(await list({ ...labels, scheduleId: "scd_unknown" }), []);
  assert.deepEqual(await list({ ...labels, state: ["FAILED", "CANCELED"] }), []);
  assert.deepEqual(await list({ label: unique() }), []);
  await refused(400, () => client.logs({ filter: { labeel: label } }), "labeel");
  await refused(400, () => client.logs({ filter: { state: "LOST" } }), "state");
  await refused(400, () => client.logs({ cursor: "nonsense" }), "cursor");

  const byIds = await client.logs({ messageIds: [one, two] });
  assert.deepEqual(new Set(byIds.logs.map(({ messageId }) => messageId)), new Set([one, two]));
  assert.equal(byIds.logs.length, 6);
  assert.deepEqual((await client.events({ filter: { messageId: one } })).events.length, 3);
});

test("pages follow each other without a gap or a repetition", async (t) => {
  const endpoint = await anEndpoint(t);
  const label = unique();
  await client.batch(Array.from({ length: 5 }, (_, number) => ({ url: endpoint.url, body: `${number}`, label })));
  const { logs: all } = await eventually(
    () => client.logs({ filter: { label } }),
    ({ logs }) => logs.filter(({ state }) => state === "DELIVERED").length === 5,
  );
  const paged = [];
  let cursor;
  do {
    const page = await client.logs({ filter: { label }, count: 4, cursor });
    assert.ok(page.logs.length <= 4);
    paged.push(...page.logs);
    cursor = page.cursor;
  } while (cursor !== undefined);
  assert.equal(paged.length, 15);
  assert.deepEqual(paged, all);
});
