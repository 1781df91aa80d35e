/** Schedules made, read, changed and ended through the SDK, and one that fires at the next full minute. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { anEndpoint } from "./endpoint.mjs";
import { account, client, historyUntil, refused, unique } from "./relay.mjs";

const NOWHERE = "https://example.com/path";
const MINUTE_MS = 60_000;

test("a plain schedule shows what applies to it and nothing else", async () => {
  const before = Date.now();
  const created = await client.schedules.create({ destination: NOWHERE, cron: " 0 0 1 1 * " });
  assert.deepEqual(Object.keys(created), ["scheduleId"]);
  assert.match(created.scheduleId, /^scd_/);
  const { createdAt, nextScheduleTime, ...shown } = await client.schedules.get(created.scheduleId);
  assert.ok(before <= createdAt && createdAt <= Date.now());
  assert.equal(new Date(nextScheduleTime).toISOString().slice(4), "-01-01T00:00:00.000Z");
  assert.deepEqual(shown, {
    ...created,
    cron: "0 0 1 1 *",
    destination: NOWHERE,
    method: "POST",
    // The SDK gives every schedule one.
    header: { "Content-Type": ["application/json"] },
    retries: 3,
    isPaused: false,
    callerIP: "127.0.0.1",
    callerIp: "127.0.0.1",
  });
  await client.schedules.delete(created.scheduleId);
});

test("a schedule with every setting shows each of them, and is replaced completely", async () => {
  const [scheduleId, label] = [unique(), [unique(), unique()]];
  await client.schedules.create({
    scheduleId,
    destination: NOWHERE,
    cron: "*/10 * * * *",
    method: "PUT",
    body: "größer",
    headers: {
      "Bypass-Tunnel-Reminder": "client-test",
      "test-header": "test-value",
      "Upstash-Callback-Forward-X-Theirs": "1",
    },
    delay: "2h",
    timeout: 90,
    retries: 5,
    retryDelay: "7000 * retried",
    callback: "https://example.com/callback",
    failureCallback: "https://example.com/failure",
    label,
  });
  const first = await client.schedules.get(scheduleId);
  const { createdAt, nextScheduleTime, callerIP, callerIp, ...shown } = first;
  assert.deepEqual(shown, {
    scheduleId,
    cron: "*/10 * * * *",
    destination: NOWHERE,
    method: "PUT",
    body: "größer",
    header: {
      "Bypass-Tunnel-Reminder": ["client-test"],
      "Content-Type": ["application/json"],
      "Test-Header": ["test-value"],
    },
    delay: 7200,
    timeout: 90,
    retries: 5,
    retryDelayExpression: "7000 * retried",
    callback: "https://example.com/callback",
    callbackHeader: { "X-Theirs": ["1"] },
    failureCallback: "https://example.com/failure",
    isPaused: false,
    label: label[0],
    labels: label,
  });
  await client.schedules.create({ scheduleId, destination: NOWHERE, cron: "0 0 1 1 *" });
  const second = await client.schedules.get(scheduleId);
  assert.equal(second.createdAt, first.createdAt);
  for (const gone of ["body", "delay", "timeout", "callback", "label", "retryDelayExpression"]) {
    assert.ok(!(gone in second), gone);
  }
  await client.schedules.delete(scheduleId);
});

test("pausing and resuming shows at once", async () => {
  const { scheduleId } = await client.schedules.create({ destination: NOWHERE, cron: "@yearly" });
  await client.schedules.pause({ schedule: scheduleId });
  assert.equal((await client.schedules.get(scheduleId)).isPaused, true);
  await client.schedules.resume({ schedule: scheduleId });
  assert.equal((await client.schedules.get(scheduleId)).isPaused, false);
  await client.schedules.delete(scheduleId);
});

test("the list is exactly what exists", async () => {
  const { client: mine } = account(3);
  assert.deepEqual(await mine.schedules.list(), []);
  const { scheduleId } = await mine.schedules.create({ destination: NOWHERE, cron: "@yearly" });
  assert.deepEqual(await mine.schedules.list(), [await mine.schedules.get(scheduleId)]);
  await mine.schedules.delete(scheduleId);
  assert.deepEqual(await mine.schedules.list(), []);
});

test("a deleted schedule is unknown to everything", async () => {
  const { scheduleId } = await client.schedules.create({ destination: NOWHERE, cron: "@yearly" });
  await client.schedules.delete(scheduleId);
  await refused(404, () => client.schedules.get(scheduleId), scheduleId);
  await refused(404, () => client.schedules.delete(scheduleId), scheduleId);
  await refused(404, () => client.schedules.pause({ schedule: scheduleId }), scheduleId);
  await refused(404, () => client.schedules.resume({ schedule: scheduleId }), scheduleId);
});

test("what a schedule redacts is not shown", async () => {
  const { scheduleId } = await client.schedules.create({
    destination: NOWHERE,
    cron: "@yearly",
    body: "a secret",
    headers: { "X-Secret": "another" },
    redact: { body: true, header: ["X-Secret"] },
  });
  const shown = await client.schedules.get(scheduleId);
  assert.match(shown.body, /^REDACTED:[0-9a-f]{64}$/);
  assert.match(shown.header["X-Secret"][0], /^REDACTED:[0-9a-f]{64}$/);
  assert.deepEqual(shown.header["Content-Type"], ["application/json"]);
  await client.schedules.delete(scheduleId);
});

for (const [header, settings] of [
  ["Upstash-Cron", { cron: "61 * * * *" }],
  ["Upstash-Cron", { cron: "CRON_TZ=Mars/Base * * * * *" }],
  ["Upstash-Schedule-Id", { scheduleId: "no blanks" }],
  ["Upstash-Delay", { delay: "soon" }],
  ["Upstash-Timeout", { timeout: "long" }],
  ["Upstash-Retries", { retries: -1 }],
  ["Upstash-Retry-Delay", { retryDelay: "pow(2" }],
  ["Upstash-Method", { method: "TRACE" }],
  ["Upstash-Callback", { callback: "nowhere" }],
  ["destination", { destination: "example.com/path" }],
]) {
  test(`a schedule with ${JSON.stringify(settings)} is refused for its ${header}`, async () => {
    const create = () => client.schedules.create({ destination: NOWHERE, cron: "@daily", ...settings });
    await refused(400, create, header);
  });
}

test("a schedule fires at the minute its cron names, once, and a paused one does not", async (t) => {
  const [endpoint, silent] = [await anEndpoint(t), await anEndpoint(t)];
  const tick = new Date(Math.ceil((Date.now() + 5000) / MINUTE_MS) * MINUTE_MS);
  // Once a year, so that there is one run to look at.
  const cron = [tick.getUTCMinutes(), tick.getUTCHours(), tick.getUTCDate(), tick.getUTCMonth() + 1, "*"].join(" ");
  const fires = { cron, destination: endpoint.url, method: "PUT", body: "tick", headers: { "X-A": "b" } };
  const { scheduleId } = await client.schedules.create(fires);
  const paused = await client.schedules.create({ cron, destination: silent.url });
  await client.schedules.pause({ schedule: paused.scheduleId });

  const delivery = await endpoint.delivery(0, 90_000);
  assert.ok(+tick <= delivery.at && delivery.at < +tick + 5000, `${delivery.at - tick} ms late`);
  const { method, body, headers } = delivery;
  assert.deepEqual([method, body, headers["x-a"]], ["PUT", "tick", "b"]);
  assert.equal(headers["upstash-schedule-id"], scheduleId);
  const rows = await historyUntil(headers["upstash-message-id"], "DELIVERED");
  assert.deepEqual(new Set(rows.map((row) => row.scheduleId)), new Set([scheduleId]));
  const { lastScheduleStates, lastScheduleTime, error } = await client.schedules.get(scheduleId);
  assert.deepEqual(lastScheduleStates, { [headers["upstash-message-id"]]: "SUCCESS" });
  assert.ok(lastScheduleTime >= +tick);
  assert.equal(error, undefined);
  assert.deepEqual([endpoint.deliveries.length, silent.deliveries.length], [1, 0]);
  await client.schedules.delete(scheduleId);
  await client.schedules.delete(paused.scheduleId);
});
