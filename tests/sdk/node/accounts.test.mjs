/** Who the SDK speaks for, and what it makes of refusals and of silence. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { test } from "node:test";

import { Client } from "@upstash/qstash";

import { anEndpoint } from "./endpoint.mjs";
import { IDENTITIES, account, client, historyUntil, refused, unique } from "./relay.mjs";

test("an unknown token may do nothing", async () => {
  for (const token of ["nonsense", IDENTITIES[0].token.slice(0, -2)]) {
    const stranger = new Client({ token });
    await refused(401, () => stranger.publish({ url: "https://example.com" }), "token");
    await refused(401, () => stranger.batch([{ url: "https://example.com" }]), "token");
    await refused(401, () => stranger.logs(), "token");
    await refused(401, () => stranger.dlq.delete({ all: true }), "token");
  }
});

test("an account sees nothing of another", async (t) => {
  const endpoint = await anEndpoint(t);
  const { client: other, receiver } = account(1);
  const theirs = await anEndpoint(t, { receiver });
  const label = unique();
  const { messageId } = await client.publish({ url: endpoint.url, label, deduplicationId: label });
  await historyUntil(messageId, "DELIVERED");
  await refused(404, () => other.messages.get(messageId));
  await refused(404, () => other.messages.cancel(messageId));
  assert.deepEqual((await other.logs({ filter: { label } })).logs, []);
  // Nor does deduplication reach over.
  const answer = await other.publish({ url: theirs.url, body: "mine", deduplicationId: label });
  assert.ok(!("deduplicated" in answer));
  assert.equal((await theirs.delivery()).body, "mine");
});

test("a base URL may end in a slash", async () => {
  const slashed = new Client({ baseUrl: `${process.env.QSTASH_URL}/` });
  await refused(404, () => slashed.messages.get("msg_unknown"));
});

test("a client without an answer tries again as often as it was told, and publishes once", async (t) => {
  const endpoint = await anEndpoint(t);
  const relay = new URL(process.env.QSTASH_URL);
  let connections = 0;
  // Breaks the first two connections, and passes the third on to the relay.
  const proxy = createServer((socket) => {
    connections += 1;
    if (connections < 3) return void socket.destroy();
    const through = connect(relay.port, relay.hostname);
    socket.pipe(through).pipe(socket);
    socket.on("error", () => through.destroy());
    through.on("error", () => socket.destroy());
  }).listen(0, "127.0.0.1");
  await once(proxy, "listening");
  t.after(() => proxy.close());
  const baseUrl = `http://127.0.0.1:${proxy.address().port}`;
  const { token } = IDENTITIES[0];
  const patient = new Client({ baseUrl, token, retry: { retries: 2, backoff: () => 1 } });
  const { messageId } = await patient.publish({ url: endpoint.url });
  await historyUntil(messageId, "DELIVERED");
  assert.deepEqual([connections, endpoint.deliveries.length], [3, 1]);
});
