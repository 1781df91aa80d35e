/** URL groups by the SDK: kept, changed, and delivered to every endpoint that is in them. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { anEndpoint } from "./endpoint.mjs";
import { account, client, deadLetter, historyUntil, refused, unique } from "./relay.mjs";

/** The name of a group that does not exist, and is deleted when the test is over. */
function aGroup(t, by = client) {
  const name = unique();
  t.after(() => by.urlGroups.delete(name));
  return name;
}

test("a group is kept as it was put, changed by name and by url, and gone with its last endpoint", async (t) => {
  const name = aGroup(t);
  await refused(404, () => client.urlGroups.get(name), name);
  const before = Date.now();
  const a = { url: "https://a.example" };
  const b = { url: "https://b.example?x=y", name: "b" };
  await client.urlGroups.addEndpoints({ name, endpoints: [a, b] });
  const { createdAt, updatedAt, ...shown } = await client.urlGroups.get(name);
  assert.deepEqual(shown, { name, endpoints: [a, b] });
  assert.ok(before <= createdAt && createdAt === updatedAt && updatedAt <= Date.now());
  const moved = { url: "https://c.example", name: "b" };
  await client.topics.addEndpoints({ name, endpoints: [moved] });
  assert.deepEqual((await client.topics.get(name)).endpoints, [a, moved]);
  await client.urlGroups.removeEndpoints({ name, endpoints: [{ name: "b" }] });
  assert.deepEqual((await client.urlGroups.get(name)).endpoints, [a]);
  await client.urlGroups.removeEndpoints({ name, endpoints: [a] });
  await refused(404, () => client.urlGroups.removeEndpoints({ name, endpoints: [a] }), name);
});

test("the list is exactly what exists, and deleting what does not is no error", async (t) => {
  const { client: mine } = account(3);
  const name = aGroup(t, mine);
  assert.deepEqual(await mine.urlGroups.list(), []);
  await mine.urlGroups.addEndpoints({ name, endpoints: [{ url: "https://a.example" }] });
  assert.deepEqual(await mine.urlGroups.list(), [await mine.urlGroups.get(name)]);
  await mine.urlGroups.delete(name);
  await mine.urlGroups.delete(name);
  assert.deepEqual(await mine.urlGroups.list(), []);
});

test("publish and batch to a group are answered with a list and reach every endpoint", async (t) => {
  const name = aGroup(t);
  const [one, two] = [await anEndpoint(t), await anEndpoint(t)];
  await client.urlGroups.addEndpoints({ name, endpoints: [{ url: one.url }, { url: two.url, name: "two" }] });

  const published = await client.publish({ urlGroup: name, body: "published", headers: { "X-Mine": "1" } });
  assert.deepEqual(
    published.map(({ url }) => url),
    [one.url, two.url],
  );
  for (const [number, endpoint] of [one, two].entries()) {
    const { body, headers } = await endpoint.delivery();
    assert.deepEqual([body, headers["x-mine"], headers["upstash-topic-name"]], ["published", "1", name]);
    const { messageId } = published[number];
    assert.equal(headers["upstash-message-id"], messageId);
    const rows = await historyUntil(messageId, "DELIVERED");
    const endpointName = number === 1 ? "two" : undefined;
    for (const row of rows) assert.deepEqual([row.urlGroup, row.endpointName], [name, endpointName]);
    const shown = await client.messages.get(messageId);
    assert.deepEqual([shown.urlGroup, shown.topicName, shown.endpointName], [name, name, endpointName]);
    assert.equal("endpointName" in shown, number === 1);
  }
  const json = await client.publishJSON({ topic: name, body: { a: 1 } });
  assert.equal(json.length, 2);
  const [single, several] = await client.batch([
    { url: `${one.url}/single`, body: "single" },
    { urlGroup: name, body: "batch" },
  ]);
  assert.equal(single.url, `${one.url}/single`);
  assert.deepEqual(
    several.map(({ url }) => url),
    [one.url, two.url],
  );
  await one.delivery(3);
  await two.delivery(2);
  assert.deepEqual(one.bodies, ["batch", "published", "single", '{"a":1}']);
  assert.deepEqual(two.bodies, ["batch", "published", '{"a":1}']);
});

test("a dead letter of a group is found by the group", async (t) => {
  const name = aGroup(t);
  const endpoint = await anEndpoint(t);
  endpoint.answers({ status: 404, body: "gone" });
  await client.urlGroups.addEndpoints({ name, endpoints: [{ url: endpoint.url, name: "end" }] });
  const [{ messageId }] = await client.publish({ urlGroup: name, retries: 0 });
  const letter = await deadLetter(messageId);
  assert.deepEqual([letter.urlGroup, letter.endpointName, letter.url], [name, "end", endpoint.url]);
  const found = await client.dlq.listMessages({ filter: { urlGroup: name } });
  assert.deepEqual(found.messages, [letter]);
  const { logs } = await client.logs({ filter: { urlGroup: name, state: "FAILED" } });
  assert.deepEqual(
    logs.map((row) => row.messageId),
    [messageId],
  );
  assert.deepEqual(await client.dlq.delete({ filter: { urlGroup: name } }), { deleted: 1 });
});

test("waiting messages of a group are cancelled by the group", async (t) => {
  const name = aGroup(t);
  const endpoints = [{ url: "https://a.example" }, { url: "https://b.example" }];
  await client.urlGroups.addEndpoints({ name, endpoints });
  await client.publish({ urlGroup: name, delay: "1h" });
  assert.deepEqual(await client.messages.cancel({ filter: { urlGroup: name } }), { cancelled: 2 });
});

test("a schedule may name a group", async (t) => {
  const name = aGroup(t);
  const create = () => client.schedules.create({ destination: name, cron: "@yearly" });
  await refused(404, create, name);
  await client.urlGroups.addEndpoints({ name, endpoints: [{ url: "https://a.example" }] });
  const { scheduleId } = await create();
  assert.equal((await client.schedules.get(scheduleId)).destination, name);
  await client.schedules.delete(scheduleId);
});

test("what cannot be a group is refused", async (t) => {
  const name = aGroup(t);
  const add = (changed) => () => client.urlGroups.addEndpoints({ name, endpoints: [], ...changed });
  await refused(400, add({}), "endpoints");
  await refused(400, add({ endpoints: [{ url: "nowhere" }] }), "url");
  await refused(400, add({ name: "a group", endpoints: [{ url: "https://a.example" }] }), "name");
  await assert.rejects(() => client.urlGroups.get(""), /Url group name cannot be empty/);
  await assert.rejects(() => client.urlGroups.delete(""), /Url group name cannot be empty/);
});
