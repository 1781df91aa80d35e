/** Flow control through the SDK: limits a message brings, limits that are pinned, and what they hold back. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { anEndpoint } from "./endpoint.mjs";
import { client, deadLetter, eventually, historyUntil, refused, unique } from "./relay.mjs";

const NOWHERE = "https://example.com/";

test("a key shows every member as soon as it is used", async (t) => {
  const endpoint = await anEndpoint(t);
  const key = unique();
  await client.publish({ url: endpoint.url, delay: "1h", flowControl: { key, parallelism: 3 } });
  assert.deepEqual(await client.flowControl.get(key), {
    flowControlKey: key,
    waitListSize: 0,
    parallelismMax: 3,
    parallelismCount: 0,
    rateMax: 0,
    rateCount: 0,
    ratePeriod: 0,
    ratePeriodStart: 0,
    isPaused: false,
    isPinnedParallelism: false,
    isPinnedRate: false,
  });
  assert.deepEqual(await client.messages.cancel({ filter: { flowControlKey: key } }), { cancelled: 1 });
});

test("a message, its log and its schedule show the limits it was given and no others", async (t) => {
  for (const [settings, shown] of [
    [{ parallelism: 2 }, { parallelism: 2, period: 1 }],
    [{ rate: 5 }, { rate: 5, period: 1 }],
    [{ ratePerSecond: 7 }, { rate: 7, period: 1 }],
    [
      { parallelism: 2, rate: 5, period: "1m" },
      { parallelism: 2, rate: 5, period: 60 },
    ],
    [
      { rate: 5, period: 90 },
      { rate: 5, period: 90 },
    ],
  ]) {
    const flowControl = { key: unique(), ...settings };
    const limits = ({ flowControlKey, parallelism, rate, period }) =>
      JSON.parse(JSON.stringify({ flowControlKey, parallelism, rate, period }));
    const wanted = { flowControlKey: flowControl.key, ...shown };
    const { messageId } = await client.publish({ url: NOWHERE, delay: "1h", flowControl });
    assert.deepEqual(limits(await client.messages.get(messageId)), wanted);
    assert.deepEqual(limits((await historyUntil(messageId, "CREATED"))[0]), wanted);
    await client.messages.cancel(messageId);
    const { scheduleId } = await client.schedules.create({ destination: NOWHERE, cron: "@yearly", flowControl });
    assert.deepEqual(limits(await client.schedules.get(scheduleId)), wanted);
    await client.schedules.delete(scheduleId);
  }
});

test("a paused key holds, and what is pinned wins over what messages bring", async (t) => {
  const endpoint = await anEndpoint(t);
  const key = unique();
  const publish = (body, limits) => client.publish({ url: endpoint.url, body, flowControl: { key, ...limits } });
  await client.flowControl.pause(key);
  for (const body of ["0", "1"]) await publish(body, { parallelism: 9 });
  await client.batch([{ url: endpoint.url, body: "2", flowControl: { key, parallelism: 9 } }]);
  const waiting = await client.flowControl.get(key);
  assert.deepEqual([waiting.isPaused, waiting.waitListSize, waiting.parallelismCount], [true, 3, 0]);
  await client.flowControl.pin(key, { parallelism: 1, rate: 10, period: 60 });
  await publish("3", { parallelism: 9, rate: 99 });
  const pinned = await client.flowControl.get(key);
  assert.deepEqual([pinned.parallelismMax, pinned.rateMax, pinned.ratePeriod], [1, 10, 60]);
  assert.deepEqual([pinned.isPinnedParallelism, pinned.isPinnedRate], [true, true]);
  assert.deepEqual(endpoint.deliveries, []);
  await client.flowControl.resume(key);
  await endpoint.delivery(3);
  assert.deepEqual(endpoint.bodies, ["0", "1", "2", "3"]);
  await client.flowControl.unpin(key, { parallelism: true });
  const unpinned = await client.flowControl.get(key);
  assert.deepEqual([unpinned.isPinnedParallelism, unpinned.isPinnedRate], [false, true]);
  assert.equal(unpinned.parallelismMax, 1);
  await publish("4", { parallelism: 7, rate: 7 });
  const changed = await client.flowControl.get(key);
  assert.deepEqual([changed.parallelismMax, changed.rateMax], [7, 10]);
});

test("no more attempts are made at once than a key allows, and all are counted", async (t) => {
  const endpoint = await anEndpoint(t);
  const key = unique();
  const release = new AbortController();
  endpoint.answers({ after: once(release.signal, "abort") });
  for (let number = 0; number < 5; number += 1) {
    await client.publish({ url: endpoint.url, flowControl: { key, parallelism: 2 } });
  }
  await endpoint.delivery(1);
  const full = await eventually(() => client.flowControl.get(key), ({ waitListSize }) => waitListSize === 3);
  assert.deepEqual([full.parallelismCount, endpoint.deliveries.length], [2, 2]);
  const total = await client.flowControl.getGlobalParallelism();
  assert.deepEqual(Object.keys(total).sort(), ["parallelismCount", "parallelismMax"]);
  assert.ok(total.parallelismMax >= total.parallelismCount && total.parallelismCount >= 2);
  release.abort();
  await endpoint.delivery(4);
  await eventually(() => client.flowControl.get(key), ({ parallelismCount }) => parallelismCount === 0);
});

test("a rate lets so many through in a period, and a reset begins another", async (t) => {
  const endpoint = await anEndpoint(t);
  const key = unique();
  const flowControl = { key, rate: 2, period: "1h" };
  await client.batch(["0", "1", "2"].map((body) => ({ url: endpoint.url, body, flowControl })));
  await endpoint.delivery(1);
  const used = await eventually(() => client.flowControl.get(key), ({ rateCount }) => rateCount === 2);
  assert.deepEqual([used.rateMax, used.ratePeriod, used.waitListSize], [2, 3600, 1]);
  assert.ok(Math.abs(used.ratePeriodStart * 1000 - Date.now()) < 60_000);
  assert.equal(endpoint.deliveries.length, 2);
  await client.flowControl.resetRate(key);
  await endpoint.delivery(2);
  assert.deepEqual(endpoint.bodies, ["0", "1", "2"]);
  await eventually(() => client.flowControl.get(key), ({ rateCount }) => rateCount === 1);
});

test("what a key holds is found by it", async (t) => {
  const endpoint = await anEndpoint(t);
  const key = unique();
  endpoint.answers({ status: 500 });
  const { messageId } = await client.publish({ url: endpoint.url, retries: 0, flowControl: { key, rate: 9 } });
  assert.equal((await deadLetter(messageId)).flowControlKey, key);
  const { messages } = await client.dlq.listMessages({ filter: { flowControlKey: key } });
  const { logs } = await client.logs({ filter: { flowControlKey: key, state: "FAILED" } });
  for (const found of [messages, logs]) assert.deepEqual([found.length, found[0].messageId], [1, messageId]);
});

test("flow control that cannot be is refused", async () => {
  const key = unique();
  await refused(404, () => client.flowControl.get(key), "flow-control key");
  for (const [status, flowControl] of [
    [400, { key, parallelism: -1 }],
    [400, { key, rate: 1.5 }],
    [400, { key, rate: 1, period: "soon" }],
    [412, { key, rate: 1, period: "8d" }],
  ]) {
    const [publish, schedule] = [
      () => client.publish({ url: NOWHERE, flowControl }),
      () => client.schedules.create({ destination: NOWHERE, cron: "@yearly", flowControl }),
    ];
    await refused(status, publish, "Upstash-Flow-Control-Value");
    await refused(status, schedule, "Upstash-Flow-Control-Value");
  }
  await refused(400, () => client.flowControl.pin(key, {}));
  await refused(400, () => client.flowControl.pin(key, { parallelism: -1 }), "parallelism");
  await assert.rejects(() => client.flowControl.get(""), /Flow control key cannot be empty/);
  await assert.rejects(() => client.publish({ url: NOWHERE, flowControl: { key } }), { name: "QstashError" });
});
